"""Samples of prefix language models (PaliGemma): a prompt that sees itself both ways, one answer.

Their processor writes more of the prompt than it is given: behind the last image BOS, behind the
words a line break, and only then comes the answer. Their chat template leaves that to it, so that
whoever asks the model through the processor asks it as it was trained. Here it is written for
training, where the processor is not called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from sailplan.data.labels import UNTRAINED, Marked
from sailplan.errors import DataError
from sailplan.model.families import Family


def require_image(family: Family, num_images: int) -> None:
    """Refuses a sample without an image where the family takes none.

    Raises:
        DataError: It is one.
    """
    if family.needs_images and num_images == 0:
        raise DataError(
            f"no image, and {family.name} takes no text without one",
            todo="drop the row, or train a model of another family",
            kind="no-image",
        )


def last_answer(marked: Marked) -> Marked:
    """Returns a sample up to its last answer, which alone is trained.

    Earlier ones stand in its prefix, where each token sees those that it would have to predict.
    """
    if not marked.spans:
        return marked
    method = "last turn" if len(marked.spans) > 1 else marked.method
    return replace(
        marked, text=marked.text[: marked.spans[-1][1]], spans=marked.spans[-1:], method=method
    )


def split(marked: Marked) -> tuple[str, str]:
    """Returns the prompt as the processor takes it, and the answer, ended."""
    start = marked.spans[0][0] if marked.spans else len(marked.text)
    return marked.text[:start], marked.text[start:].lstrip()


def framed(marked: Marked, image_token: str, bos_token: str) -> Marked:
    """Returns a sample as the processor writes it, placeholders not yet expanded.

    This is `PaliGemmaProcessor.prepare_inputs_layout` of transformers 5.23.

    Args:
        marked: The sample, with one answer.
        image_token: An image's placeholder.
        bos_token: What goes behind the last one.
    """
    prompt, answer = split(marked)
    images, words = _behind(prompt, image_token)
    prompt = f"{images}{bos_token}{words}\n"
    spans = ((len(prompt), len(prompt) + len(answer)),) if marked.spans else ()
    return replace(marked, text=prompt + answer, spans=spans)


def token_types(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns `token_type_ids` of a padded batch, `[rows, tokens]`: 0 up to the answer, 1 in it.

    A row without labels is all prompt. Padding is 0, as the processor has it.
    """
    answered = (batch["labels"] != UNTRAINED).cumsum(dim=1) > 0
    return answered.long() * batch["attention_mask"]


def _behind(text: str, token: str) -> tuple[str, str]:
    end = text.rfind(token) + len(token) if token in text else 0
    return text[:end], text[end:]

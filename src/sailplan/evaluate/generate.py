"""Lets a model answer questions about images, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sailplan.data.prefix import require_image
from sailplan.data.sample import Message
from sailplan.errors import DataError
from sailplan.evaluate.comparison import Answer
from sailplan.evaluate.speaker import Speaker
from sailplan.model.families import family_of, tokenizer_of

if TYPE_CHECKING:
    from PIL import Image
    from transformers import TextStreamer


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A conversation that waits for the assistant's answer, or a text that waits for its end."""

    messages: Sequence[Message] = ()
    """The turns so far, without the answer."""
    text: str = ""
    """In place of messages: the beginning of a text, for models without a chat template."""
    images: Sequence[Image.Image] = ()
    """RGB images, one for each image part of the messages, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen. The model's own settings for it are not used."""

    max_new_tokens: int = 256
    """Most tokens of an answer."""
    temperature: float = 0.8
    """Divides the logits: below 1 the likely tokens become likelier. 0 takes the likeliest."""
    top_p: float = 1.0
    """Samples from the fewest tokens that together are this likely."""
    seed: int | None = None
    """Of the sampling; with the same seed and batch the answers are the same."""


GREEDY = Sampling(temperature=0.0)
"""Always the likeliest token."""


def generate(
    speaker: Speaker,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    batch_size: int = 1,
    streamer: TextStreamer | None = None,
) -> Iterator[Answer]:
    """Yields the answer to each question, in order.

    A batch goes on until its last answer ends, and its rows are padded to the longest: questions of
    like length beside each other are answered soonest.

    Args:
        speaker: Who is asked.
        questions: What is asked.
        sampling: How tokens are chosen.
        batch_size: Questions answered together, which changes no greedy answer.
        streamer: Is given tokens as they come; for a batch of one.

    Raises:
        DataError: A question's images do not fit its text.
    """
    import torch

    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    tokenizer = tokenizer_of(speaker.processor)
    if family_of(speaker.model.config).cross_attention:
        # Tokens before the first image see all image places alike, those that only pad too.
        batch_size = 1
    for start in range(0, len(questions), batch_size):
        inputs = _inputs(speaker, questions[start : start + batch_size])
        # Not inference_mode: ZeRO-3 keeps weights that were gathered in it, and trains on them.
        with torch.no_grad():
            tokens = speaker.model.generate(
                **inputs,
                **_settings(sampling),
                eos_token_id=list(speaker.end_token_ids),
                pad_token_id=tokenizer.pad_token_id,
                streamer=streamer,
            )
        for generated in tokens[:, inputs["input_ids"].shape[1] :].tolist():
            yield _answer(tokenizer, generated, speaker.end_token_ids)


def text_streamer(speaker: Speaker, write: Callable[[str], None]) -> TextStreamer:
    """Returns a streamer that hands an answer's text to `write`, word by word."""
    from transformers import TextStreamer

    tokenizer = tokenizer_of(speaker.processor)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.on_finalized_text = lambda text, stream_end=False: write(text)  # noqa: ARG005
    return streamer


def _inputs(speaker: Speaker, questions: Sequence[Question]) -> Any:
    """Returns the model's inputs, padded on the left: answers go on from the right end."""
    processor, tokenizer = speaker.processor, tokenizer_of(speaker.processor)
    texts = [_text(speaker, question) for question in questions]
    family = family_of(speaker.model.config)
    for text, question in zip(texts, questions, strict=True):
        require_image(family, len(question.images))
        _check_images(processor, text, question)
    # As in training: BOS is the tokenizer's to add, unless the template wrote it.
    is_chat = bool(questions[0].messages)
    begun = texts[0].startswith(tokenizer.bos_token or "\0")
    is_complete = begun or (is_chat and processor is tokenizer)
    settings = {
        "add_special_tokens": not is_complete,
        "padding": True,
        "padding_side": "left",
        "return_tensors": "pt",
    }
    if processor is tokenizer:
        batch = tokenizer(texts, return_token_type_ids=False, **settings)
        return batch.to(speaker.model.device)
    # A list for each question, of none where it has no image: so every family knows whose they are.
    images = [list(question.images) for question in questions]
    batch = processor(text=texts, images=images if any(images) else None, **settings)
    batch.pop("labels", None)  # PaliGemma's processor makes some, of nothing
    return batch.to(speaker.model.device, speaker.model.dtype)


def _answer(tokenizer: Any, tokens: Sequence[int], end_token_ids: Collection[int]) -> Answer:
    """Reads an answer from what was generated; behind its end stands padding, up to the longest."""
    end = next((place for place, token in enumerate(tokens) if token in end_token_ids), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    count = len(tokens) if end is None else end + 1
    return Answer(text=text.strip(), num_tokens=count, ended=end is not None)


def _text(speaker: Speaker, question: Question) -> str:
    if speaker.template is None or not question.messages:
        return question.text
    return speaker.template.render(question.messages, add_generation_prompt=True)


def _check_images(processor: Any, text: str, question: Question) -> None:
    token = getattr(processor, "image_token", None)
    if token is None and question.images:
        raise DataError("images for a model that sees none", todo="leave them out")
    places = text.count(token) if token else 0
    if places != len(question.images):
        raise DataError(
            f"{places} image placeholder(s) for {len(question.images)} image(s)",
            allowed="one placeholder for each image",
        )


def _settings(sampling: Sampling) -> dict[str, Any]:
    # What is None or 0 here would otherwise come from the model's own generation_config: Qwen2-VL
    # samples with top_k 1, with which no temperature has any effect.
    settings = {"max_new_tokens": sampling.max_new_tokens, "num_beams": 1, "use_cache": True}
    if sampling.temperature == 0:
        return {**settings, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        **settings,
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
    }

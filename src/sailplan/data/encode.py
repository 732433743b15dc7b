"""Turns a sample into token ids and labels, once, before training.

Pixels stay where they are: the sizes of images are all that is needed to know their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transformers
import xxhash

import sailplan
from sailplan.data.chat_template import PINNED_DATE, ChatTemplate
from sailplan.data.labels import (
    UNTRAINED,
    Endings,
    Marked,
    Method,
    label_tokens,
    mark_conversation,
    mark_segments,
)
from sailplan.data.media import ImageExpander, Size
from sailplan.data.prefix import framed, last_answer, require_image
from sailplan.data.sample import Sample
from sailplan.errors import DataError, ModelError, RunFileError
from sailplan.model.families import Family, tokenizer_of

_NO_LIMIT_TOKENS = 10**9
"""Tokenizers without a limit of their own say 10**30."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A sample as the model is trained on it, images written out."""

    input_ids: list[int]
    """Token ids, `[tokens]`."""
    labels: list[int]
    """For each token its id where it is trained, else -100, `[tokens]`."""
    image_tokens: int
    """Tokens that stand for images; those that frame one do not count."""
    method: Method
    """How it was found what is trained."""


class Encoder:
    """Encodes the samples of one run.

    Args:
        processor: The model's processor, or its tokenizer for a text-only model.
        family: The model's family.
        everything: Train all text instead of the assistant's words.
        max_length: Most tokens of a sample; the model's own limit where not given.
        truncate: Cut text off the end of longer samples where that harms nothing else.

    Raises:
        ModelError: The tokenizer cannot say which characters a token stands for.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        *,
        everything: bool = False,
        max_length: int | None = None,
        truncate: bool = False,
    ) -> None:
        self.processor, self.family = processor, family
        self.everything, self.truncate = everything, truncate
        self.max_length = max_length or _own_limit(processor, family)
        self.expander = ImageExpander(processor, family)
        self._tokenizer = tokenizer_of(processor)
        if not self._tokenizer.is_fast:
            raise ModelError(
                f"{type(self._tokenizer).__name__} gives no character offsets",
                todo="save the model with a fast tokenizer (tokenizer.json)",
            )
        token = family.image_token(processor)
        self._image_id = -1 if token is None else self._tokenizer.convert_tokens_to_ids(token)
        self.untrained_ids = family.untrained_token_ids(processor)
        self.endings = Endings.of(processor, self.untrained_ids)
        self._template: ChatTemplate | None = None

    @classmethod
    def of(cls, run: Any, processor: Any, family: Family) -> Encoder:
        """Builds the encoder that a run asks for.

        Trained is the assistant alone, and the completion alone, unless `assistant_only_loss` or
        `completion_only_loss` is written as false.

        Raises:
            RunFileError: That is written for a prefix language model.
        """
        names = ("assistant_only_loss", "completion_only_loss")
        written = [name for name in names if run.get(name) is False]
        if written and family.prefix_lm:
            raise RunFileError(
                f"{written[0]}: false for {family.name}, whose prompt sees itself in both "
                "directions: there is nothing to predict in it",
                todo="leave it out",
            )
        return cls(
            processor,
            family,
            everything=bool(written),
            max_length=run.get("max_length"),
            truncate=run.get("over_length") == "truncate_text",
        )

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template, read when the first conversation comes."""
        if self._template is None:
            self._template = ChatTemplate.of(self.processor)
        return self._template

    def encode(self, sample: Sample, sizes: Sequence[Size]) -> Encoded:
        """Encodes one sample.

        Args:
            sample: The sample.
            sizes: Width and height of each of its images, in order.

        Raises:
            DataError: Nothing in it can be trained on, its images do not fit its text, or the
                chat template refuses it.
            ModelError: The model has no chat template, or lacks embeddings for its own tokens.
        """
        require_image(self.family, len(sizes))
        marked = self.mark(sample)
        if self.family.prefix_lm:
            marked = framed(marked, self.processor.image_token, self._tokenizer.bos_token)
        expanded = self.expander.expand(marked.text, marked.spans, sizes)
        ids, offsets = self._tokenize(expanded.text, is_chat=bool(sample["messages"]))
        labels = label_tokens(
            ids,
            offsets,
            expanded.text,
            expanded.spans,
            untrained_spans=expanded.images,
            untrained_ids=self.untrained_ids,
        )
        if not any(label != UNTRAINED for label in labels):
            raise DataError(
                "nothing in it is trained on",
                todo="drop the row or add an answer",
                kind="nothing-trained",
            )
        self._check_vocabulary(ids)
        ids, labels = self.expander.runs.unfold(
            ids, labels, offsets, expanded.images, expanded.lengths
        )
        if self.truncate and self.max_length is not None and len(ids) > self.max_length:
            ids, labels = self._cut(ids, labels, self.max_length)
        return Encoded(
            input_ids=ids,
            labels=labels,
            image_tokens=ids.count(self._image_id),
            method=marked.method,
        )

    def fingerprint(self) -> str:
        """Returns a key of everything that decides about ids and labels, stable between runs."""
        tokenizer = self._tokenizer
        # What the last call asked for stays there, and is asked for anew by each call.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        digest = xxhash.xxh3_128()
        for part in (
            sailplan.__version__,
            transformers.__version__,
            PINNED_DATE.isoformat(),
            repr((self.family.name, self.family.vocabulary_size, sorted(self.untrained_ids))),
            repr((self.everything, self.max_length if self.truncate else None)),
            tokenizer.backend_tokenizer.to_str(),
            repr(sorted(tokenizer.special_tokens_map.items())),
            repr(tokenizer.split_special_tokens),
            repr(tokenizer.chat_template),
            repr(getattr(self.processor, "chat_template", None)),
            self.processor.to_json_string() if self.processor is not tokenizer else "",
        ):
            digest.update(part.encode())
            digest.update(b"\0")
        return str(digest.hexdigest())

    def mark(self, sample: Sample) -> Marked:
        """Returns the sample as text with what is trained of it, its images still placeholders.

        Raises:
            DataError: The chat template refuses it, or it has no answer.
            ModelError: The model has no chat template.
        """
        if sample["messages"]:
            marked = mark_conversation(
                sample["messages"], self.template, self.endings, everything=self.everything
            )
            return last_answer(marked) if self.family.prefix_lm else marked
        return mark_segments(sample["segments"], self.endings, everything=self.everything)

    def _tokenize(self, text: str, *, is_chat: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenises as the model is prompted later.

        A processor adds BOS unless the template wrote it; a tokenizer's chat template is taken to
        be complete; plain text gets what the tokenizer adds.
        """
        tokenizer = self._tokenizer
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"its text holds half a character ({text[error.start]!r}), which is no Unicode",
                todo="write the text as UTF-8",
                kind="broken-text",
            ) from None
        bos = tokenizer.bos_token
        begun = bos is not None and text.startswith(bos)
        complete = begun or (is_chat and self.processor is tokenizer)
        encoding = tokenizer(
            text,
            add_special_tokens=not complete,
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )
        ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
        opening = bos or tokenizer.eos_token
        if self.family.opened_by_processor and not text.startswith(opening):
            ids.insert(0, tokenizer.convert_tokens_to_ids(opening))
            offsets.insert(0, (0, 0))
        if ids[-2:] == [tokenizer.eos_token_id] * 2 and offsets[-1][0] == offsets[-1][1]:
            # The text ends with EOS and the tokenizer adds another.
            del ids[-1], offsets[-1]
        return ids, offsets

    def _check_vocabulary(self, ids: Sequence[int]) -> None:
        largest = max(ids)
        if largest >= self.family.vocabulary_size and largest not in self.untrained_ids:
            raise ModelError(
                f"token {self._tokenizer.convert_ids_to_tokens(largest)!r} has id {largest}, "
                f"beyond the model's {self.family.vocabulary_size} embeddings",
                todo="the tokenizer does not belong to this model",
            )

    def _cut(self, ids: list[int], labels: list[int], limit: int) -> tuple[list[int], list[int]]:
        """Cuts text off the end, but no image and not all that is trained; else cuts nothing."""
        last_image = max((i for i, t in enumerate(ids) if t in self.untrained_ids), default=-1)
        if last_image >= limit or all(label == UNTRAINED for label in labels[:limit]):
            return ids, labels
        return ids[:limit], labels[:limit]


def _own_limit(processor: Any, family: Family) -> int | None:
    own = family.max_length_tokens
    if own is None:
        own = tokenizer_of(processor).model_max_length
    return None if own is None or own > _NO_LIMIT_TOKENS else int(own)

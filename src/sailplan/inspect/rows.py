"""Looks at one row as training would encode it, and goes on where training would stop."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from sailplan.data.encode import Encoded, Encoder
from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
from sailplan.data.labels import UNTRAINED
from sailplan.data.media import Size
from sailplan.data.mixture import Entry, entry_of
from sailplan.data.sample import ImageReference, Sample
from sailplan.errors import DataError
from sailplan.inspect.chat_template import TemplateCheck, trained_turns
from sailplan.inspect.findings import Problem
from sailplan.model.families import tokenizer_of


@dataclass(kw_only=True, slots=True)
class Facts:
    """What is known of a row; the numbers are 0 where it could not be encoded."""

    length_tokens: int = 0
    trained_tokens: int = 0
    image_tokens: int = 0
    num_images: int = 0
    method: str = ""
    """How it was found what is trained."""
    content: int = 0
    """A hash of all that the model is given, images by their path or bytes."""
    question: int = 0
    """The same without what is trained; 0 where everything is."""
    images: tuple[int, ...] = ()
    """A hash of each image."""
    problems: list[Problem] = field(default_factory=list)


class RowReader:
    """Looks at the rows of a run one by one.

    Args:
        encoder: The run's encoder.
        format: How rows become samples.
        opener: Opens their images.
        entries: Where the rows are from.
        decode: Whether to decode the pixels too.
    """

    def __init__(
        self,
        encoder: Encoder,
        format: Format,
        opener: ImageOpener,
        entries: tuple[Entry, ...],
        *,
        decode: bool = False,
    ) -> None:
        self.encoder, self.format, self.opener = encoder, format, opener
        self.entries, self.decode = entries, decode
        self._template = TemplateCheck(encoder)
        tokenizer = tokenizer_of(encoder.processor)
        self._bos_id = tokenizer.bos_token_id
        self._writes_bos = self._bos_id is not None and (
            tokenizer("a")["input_ids"][:1] == [self._bos_id]
        )
        self._ending_ids = frozenset(tokenizer.convert_tokens_to_ids(list(encoder.endings.special)))
        # Which ids stand for or frame images, the last entry for all that are larger than those.
        self._is_media = np.zeros(max(encoder.untrained_ids, default=-1) + 2, dtype=bool)
        self._is_media[list(encoder.untrained_ids)] = True
        written = [token for token in encoder.endings.special if len(token) > 2]
        self._special = re.compile("|".join(map(re.escape, written)) or r"(?!)")

    def look(self, number: int, row: Mapping[str, Any]) -> Facts:
        """Returns what is known of a row, and what is wrong with it.

        Args:
            number: The row's number among all rows, before any were held out.
            row: The row.

        Raises:
            ModelError: The model cannot be trained on any row.
        """
        facts = Facts()
        try:
            sample = self.format.sample(row)
        except DataError as error:
            facts.problems.append(Problem.of(error, "row-format"))
            return facts
        sizes, digests = self._images(sample["images"], entry_of(self.entries, number), facts)
        facts.problems += self._text_problems(sample)
        if sizes is None:
            return facts
        try:
            encoded = self.encoder.encode(sample, sizes)
        except DataError as error:
            problem = Problem.of(error, "row-format")
            if problem.name == "nothing-trained" and is_silent(sample):
                facts.problems = [p for p in facts.problems if p.name != "empty-turn"]
                problem = Problem(name="empty-answer", message="the assistant's words are empty")
            facts.problems.append(problem)
            return facts
        self._measure(encoded, digests, facts)
        facts.num_images, facts.method = len(sizes), encoded.method
        facts.problems += self._template.look(sample)
        if encoded.method == "last turn" and len(trained_turns(sample)) > 1:
            facts.problems.append(
                Problem(
                    name="earlier-turns-untrained",
                    message=f"of {len(trained_turns(sample))} answers the last one is trained",
                )
            )
        return facts

    def _images(
        self, references: Sequence[ImageReference], entry: int, facts: Facts
    ) -> tuple[list[Size] | None, tuple[int, ...]]:
        """Returns the images' sizes, None where one cannot be had, and a hash of each."""
        sizes: list[Size] = []
        digests: list[int] = []
        for reference in references:
            try:
                sizes.append(self.opener.size(reference, entry))
                if self.decode:
                    image = self.opener.open(reference, entry)
                    digests.append(_hash(repr(image.size).encode(), image.tobytes()))
            except DataError as error:
                facts.problems.append(Problem.of(error, "image-broken"))
            if not self.decode:
                path = reference["path"] if reference["bytes"] is None else ""
                digests.append(_hash(f"{entry}:{path}".encode(), reference["bytes"] or b""))
        return (sizes if len(sizes) == len(references) else None), tuple(digests)

    def _measure(self, encoded: Encoded, digests: tuple[int, ...], facts: Facts) -> None:
        ids = np.asarray(encoded.input_ids, dtype=np.int64)
        trained = np.asarray(encoded.labels, dtype=np.int64) != UNTRAINED
        facts.length_tokens, facts.trained_tokens = len(ids), int(trained.sum())
        images = self._is_media[np.minimum(ids, len(self._is_media) - 1)]
        facts.image_tokens = encoded.image_tokens
        seen = np.array(digests, dtype=np.uint64).tobytes()
        facts.images = digests
        facts.content = _hash(ids.tobytes(), trained.tobytes(), seen)
        if not trained[1:].all():
            facts.question = _hash(ids[~trained].tobytes(), seen)
        if self._bos_id is not None:
            self._look_at_bos(encoded.input_ids, facts)
        if not self.encoder.everything:
            # The last token of each run of trained ones; an image may interrupt an answer.
            following = np.append(trained[1:], False)
            last = np.flatnonzero(trained & ~following & ~np.append(images[1:], False))
            cut = [at for at in last.tolist() if encoded.input_ids[at] not in self._ending_ids]
            if cut:
                facts.problems.append(
                    Problem(
                        name="end-of-turn-untrained",
                        message=f"what is trained ends at token {cut[0]} of {len(ids)}, "
                        "which ends no turn",
                    )
                )

    def _look_at_bos(self, ids: Sequence[int], facts: Facts) -> None:
        name = tokenizer_of(self.encoder.processor).bos_token
        if list(ids[:2]) == [self._bos_id] * 2:
            facts.problems.append(Problem(name="bos-twice", message=f"begins with {name}{name}"))
        elif self._writes_bos and ids[0] != self._bos_id:
            facts.problems.append(Problem(name="bos-missing", message=f"begins without {name}"))

    def _text_problems(self, sample: Sample) -> list[Problem]:
        problems: dict[str, Problem] = {}
        for position, message in enumerate(sample["messages"], start=1):
            text = "".join(part["text"] for part in message["content"] if part["type"] == "text")
            found = self._special.search(text)
            if found:
                problems.setdefault(
                    "special-token-in-text",
                    Problem(
                        name="special-token-in-text",
                        message=f"turn {position} ({message['role']}) holds {found[0]}",
                    ),
                )
            speaks = text.strip() or message.get("tool_calls") or len(message["content"]) > 1
            if not speaks and not any(part["type"] == "image" for part in message["content"]):
                problems.setdefault(
                    "empty-turn",
                    Problem(
                        name="empty-turn", message=f"turn {position} ({message['role']}) is empty"
                    ),
                )
        return list(problems.values())


def is_silent(sample: Sample) -> bool:
    """Tells whether all that the assistant says, or the text to be trained, is white space."""
    texts = [
        part["text"]
        for message in sample["messages"]
        if message["role"] == "assistant" and message.get("trained", True)
        for part in message["content"]
        if part["type"] == "text"
    ]
    texts += [segment["text"] for segment in sample["segments"] if segment["trained"]]
    return not any(text.strip() for text in texts)


def _hash(*parts: bytes) -> int:
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
        digest.update(b"\0")
    return digest.intdigest()

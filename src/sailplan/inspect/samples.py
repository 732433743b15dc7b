"""Shows samples as the collator makes them: a kind and a text for each token, and the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from sailplan.data.collator import Collator
from sailplan.data.encode_row import RowEncoder
from sailplan.data.labels import UNTRAINED
from sailplan.errors import DataError
from sailplan.inspect.findings import Problem, Tally
from sailplan.inspect.survey import Split
from sailplan.model.families import tokenizer_of

Kind = Literal["trained", "context", "image", "padding"]
"""The loss is on it; it is read; it stands for an image or frames one; it is there for nothing."""

KINDS: tuple[Kind, ...] = ("trained", "context", "image", "padding")


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A token, or several that are one character only together, or a run of equal ones."""

    kind: Kind
    text: str
    """As the tokenizer decodes it."""
    ids: tuple[int, ...]
    """Of the tokens; of a run of equal ones that one's."""
    count: int = 1
    """How often the tokens stand there one after another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownImage:
    """An image of a sample."""

    name: str
    """Its path as written, or `embedded`."""
    image: Image.Image
    """As the processor is given it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One sample in its micro batch."""

    number: int
    """The row's number before any were held out."""
    place: str
    """Where a user finds it."""
    pieces: tuple[Piece, ...]
    images: tuple[ShownImage, ...]
    num_tokens: dict[Kind, int]
    """Tokens of each kind."""


def pick(indices: Sequence[int], count: int) -> list[int]:
    """Returns `count` of the indices, the first and the last among them, evenly between."""
    if count <= 0 or not indices:
        return []
    count = min(count, len(indices))
    step = (len(indices) - 1) / max(count - 1, 1)
    return [indices[round(step * number)] for number in range(count)]


def show(
    split: Split,
    indices: Sequence[int],
    encode: RowEncoder,
    collator: Collator,
    *,
    micro_batch_size: int,
    tally: Tally,
) -> list[Shown]:
    """Returns rows as they stand in micro batches of one another.

    Args:
        split: The rows.
        indices: Which of them.
        encode: Encodes a row as training does.
        collator: The run's collator.
        micro_batch_size: How many are padded together.
        tally: Is told of pixels that cannot be decoded.
    """
    shown: list[Shown] = []
    for start in range(0, len(indices), micro_batch_size):
        chosen = indices[start : start + micro_batch_size]
        rows = [_encoded(split, index, encode) for index in chosen]
        try:
            batches = [(chosen, rows, collator(rows))]
        except DataError:  # an image of one of them cannot be decoded: each for itself
            batches = []
            for index, row in zip(chosen, rows, strict=True):
                try:
                    batches.append(([index], [row], collator([row])))
                except DataError as error:
                    cause = error.__cause__
                    problem = Problem.of(
                        cause if isinstance(cause, DataError) else error, "image-broken"
                    )
                    tally.add(split.name, split.numbers[index], problem)
        for some, encoded, batch in batches:
            for position, index in enumerate(some):
                shown.append(
                    _shown(split.numbers[index], encoded[position], batch, position, encode)
                )
    return shown


def _encoded(split: Split, index: int, encode: RowEncoder) -> dict[str, Any]:
    row, number = split.rows[index], split.numbers[index]
    encoded, entry, _ = encode(number, row)
    fields = {name: row.get(name) for name in encode.format.image_fields}
    found = {"input_ids": encoded.input_ids, "labels": encoded.labels}
    return {**fields, **found, "entry": entry, "place": encode.place(number)}


def _shown(
    number: int, row: Mapping[str, Any], batch: Mapping[str, Any], position: int, encode: RowEncoder
) -> Shown:
    ids, labels, mask = (
        batch[name][position].tolist() for name in ("input_ids", "labels", "attention_mask")
    )
    image_ids = encode.encoder.untrained_ids
    kinds: list[Kind] = [
        "padding"
        if not attended
        else "trained"
        if label != UNTRAINED
        else "image"
        if token in image_ids
        else "context"
        for token, label, attended in zip(ids, labels, mask, strict=True)
    ]
    images = [
        ShownImage(
            name=str(reference["path"] or "embedded in the row"),
            image=encode.opener.open(reference, row["entry"]),
        )
        for reference in encode.format.images(row)
    ]
    return Shown(
        number=number,
        place=row["place"],
        pieces=tuple(_folded(pieces(tokenizer_of(encode.encoder.processor), ids, kinds))),
        images=tuple(images),
        num_tokens={kind: kinds.count(kind) for kind in KINDS},
    )


def pieces(tokenizer: Any, ids: Sequence[int], kinds: Sequence[Kind]) -> Iterator[Piece]:
    """Yields the tokens with their text; tokens that hold parts of a character go together."""
    held: list[int] = []
    for position, (token, kind) in enumerate(zip(ids, kinds, strict=True)):
        held.append(token)
        text = tokenizer.decode(held, clean_up_tokenization_spaces=False)
        ends = position + 1 == len(ids) or kinds[position + 1] != kind
        if "\ufffd" in text and len(held) < 8 and not ends:
            continue
        if len(held) == 1 and not tokenizer.all_special_ids.count(token):
            text = _alone(tokenizer, token, text)
        yield Piece(kind=kind, text=text, ids=tuple(held))
        held = []


def _alone(tokenizer: Any, token: int, text: str) -> str:
    """Returns a token's text with the space in front that decoding strips (SentencePiece)."""
    written = str(tokenizer.convert_ids_to_tokens(token) or "")
    return f" {text}" if written.startswith("▁") and not text.startswith(" ") else text


def _folded(found: Iterator[Piece]) -> Iterator[Piece]:
    """Yields runs of equal image and padding tokens as one piece with its count."""
    last: Piece | None = None
    for piece in found:
        folds = last is not None and piece.kind in ("image", "padding")
        if folds and last is not None and (last.kind, last.ids) == (piece.kind, piece.ids):
            last = Piece(kind=last.kind, text=last.text, ids=last.ids, count=last.count + 1)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last

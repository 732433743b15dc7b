"""Prompt texts with `{column}` fields, as the user writes them in a run file.

Not `str.format`: a field is a column's exact name and nothing else, so there is no attribute
access, no indexing and no format specification, and what a value holds is never expanded again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sailplan.errors import DataError, RunFileError

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of a prompt: literal text, or a field."""

    text: str
    """The literal text, or the name of the column."""
    is_field: bool
    """Whether `text` names a column."""


def parse(text: str, *, option: str, columns: Collection[str]) -> tuple[Piece, ...]:
    """Cuts a prompt at its fields.

    Args:
        text: The prompt; `{{` and `}}` are literal braces.
        option: Where it was written, for errors.
        columns: The names that a field may have.

    Raises:
        RunFileError: A brace stands alone.
        DataError: A field names no column.
    """
    pieces: list[Piece] = []
    literal, end = "", 0
    for match in _TOKEN.finditer(text):
        literal += text[end : match.start()]
        end = match.end()
        name = match.group(1)
        if name is None:
            if len(match.group()) == 1:
                raise RunFileError(
                    f"{option} has a lone {match.group()!r} at character {match.start() + 1}",
                    todo="write {{ and }} for literal braces",
                )
            literal += match.group()[0]
            continue
        if name not in columns:
            raise DataError(
                f"{option} names the field {{{name}}}, which is no column",
                allowed=", ".join(map(repr, columns)),
                todo="write {{ and }} for literal braces",
            )
        if literal:
            pieces.append(Piece(text=literal, is_field=False))
            literal = ""
        pieces.append(Piece(text=name, is_field=True))
    literal += text[end:]
    if literal:
        pieces.append(Piece(text=literal, is_field=False))
    return tuple(pieces)


def as_text(
    row: Mapping[str, Any],
    column: str,
    class_names: Mapping[str, Sequence[str]] | None = None,
    *,
    kind: str = "empty-column",
) -> str:
    """Returns a row's value as it stands in a prompt.

    Whole numbers lose a trailing `.0`, which pandas gives to columns with gaps. A class label
    stands by its name.

    Args:
        row: The row.
        column: The column to read.
        class_names: The names of the classes, for columns of class labels.
        kind: What it is called that the column is empty.

    Raises:
        DataError: The value is missing, or is neither text nor a number nor a date.
    """
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(
            f"column {column!r} is empty", todo="drop the row or fill the column", kind=kind
        )
    if isinstance(value, list | tuple | Mapping | bytes):
        raise DataError(
            f"column {column!r} holds a {type(value).__name__}", allowed="text, a number, a date"
        )
    if class_names and column in class_names and isinstance(value, int):
        return class_names[column][value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)

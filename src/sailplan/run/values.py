"""Values as they are written, and what they become for a field of a given type."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from sailplan.errors import RunFileError
from sailplan.run.fields import Field, FieldType, dataset_table
from sailplan.run.secrets import is_secret

_TRUE = {"true", "yes", "t", "y", "on", "1"}
_FALSE = {"false", "no", "f", "n", "off", "0"}

_LIST = re.compile(r"\[.*\]|[\w.-]+(\s*,\s*[\w.-]+)+")
"""Lists in one word: Alpaca-LoRA's '[q_proj,v_proj]', and q_proj,v_proj. No regular expressions."""

_PATH_OR_DICT = {"deepspeed", "fsdp_config", "accelerator_config", "data_files"}
"""Mappings that may also be given as the path of a JSON file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scalar:
    """One written word. Its text counts: YAML reads `no`, `08:30` and `0123` as others."""

    text: str
    value: Any
    """What YAML makes of it; the text itself where it came from the command line."""


Raw: TypeAlias = "Scalar | list[Raw] | dict[str, Raw]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One setting as written."""

    name: str
    raw: Raw
    where: str
    """`train.yaml:3` or `--learning_rate`, for messages."""


class _UnfitError(Exception):
    """The value does not fit the type; says why where the type alone does not."""


def scalar(value: Any) -> Scalar:
    """Returns a value of our own as if it had been written."""
    return Scalar(text=str(value), value=value)


def plain(raw: Raw) -> Any:
    """Returns what plain YAML makes of it: lists, dicts and scalars."""
    if isinstance(raw, list):
        return [plain(item) for item in raw]
    if isinstance(raw, dict):
        return {key: plain(item) for key, item in raw.items()}
    return raw.value if isinstance(raw.value, bool | int | float | None) else raw.text


def shown(raw: Raw, name: str = "") -> str:
    """Returns the value of a setting for a message, shortened; that of a secret hidden."""
    if is_secret(name, raw.text if isinstance(raw, Scalar) else ""):
        return "(hidden)"
    text = raw.text if isinstance(raw, Scalar) else json.dumps(plain(raw), default=str)
    text = " ".join(text.split())
    return repr(text) if isinstance(raw, Scalar) else text if len(text) < 60 else text[:57] + "..."


def coerce(field: Field, raw: Raw, where: str) -> Any:
    """Returns the typed value of a field.

    Raises:
        RunFileError: The value does not fit the field's type, or is none of its choices.
    """
    try:
        value = _convert(field, field.type, raw)
    except _UnfitError as unfit:
        got = f"{where}: {field.name} is {shown(raw, field.name)}"
        raise RunFileError(f"{got}{unfit}", allowed=str(field.type)) from None
    if field.choices is not None and value is not None and not isinstance(value, bool):
        for choice in value if isinstance(value, list) else [value]:
            if str(choice) not in field.choices:
                got = f"{where}: {field.name} is {str(choice)!r}"
                raise RunFileError(got, allowed=", ".join(field.choices))
    return value


def _convert(field: Field, type_: FieldType, raw: Raw) -> Any:
    if isinstance(raw, Scalar):
        return _from_scalar(field, type_, raw)
    if isinstance(raw, list) and "list" in type_.kinds:
        return [_item(type_, item) for item in raw]
    if isinstance(raw, dict) and "dict" in type_.kinds:
        return plain(raw)
    raise _UnfitError


def _from_scalar(field: Field, type_: FieldType, raw: Scalar) -> Any:
    kinds, text = type_.kinds, raw.text.strip()
    word = text.lower()
    if _is_null(kinds, raw):
        return None
    if field.bare is not None and raw.value is True:
        return field.bare
    if "bool" in kinds and ("str" not in kinds or word in ("true", "false")):
        if word in _TRUE | _FALSE:
            return word in _TRUE
        raise _UnfitError
    if "int" in kinds or "float" in kinds:
        number = _number(text, whole="float" not in kinds)
        if number is not None:
            return number
    if "list" in kinds and _LIST.fullmatch(text):
        return [_item(type_, scalar(part)) for part in _split(text)]
    if "dict" in kinds and (text.startswith("{") or field.name not in _PATH_OR_DICT):
        return _json_mapping(text)
    if "str" in kinds:
        return raw.text
    if "list" in kinds and text:
        return [_item(type_, raw)]
    raise _UnfitError


def _is_null(kinds: frozenset[str], raw: Scalar) -> bool:
    """Says whether null is meant: YAML's own, or HfArgumentParser's and Python's word for it."""
    if "none" not in kinds:
        return False
    if raw.value is None or raw.text == "None":
        return True
    return raw.text.lower() in ("none", "null") and ("str" not in kinds or "dict" in kinds)


def _number(text: str, *, whole: bool) -> int | float | None:
    """Returns a finite number, whole where asked; None where the text is none."""
    try:
        return int(text) if whole else _finite(float(text))
    except ValueError:
        pass
    try:
        number = _finite(float(text))
    except ValueError:
        return None
    return int(number) if whole and number is not None and number == int(number) else None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _split(text: str) -> list[str]:
    return [part.strip(" '\"") for part in text.strip("[]").split(",") if part.strip()]


def _json_mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise _UnfitError(", which is no JSON mapping") from None
    if not isinstance(value, dict):
        raise _UnfitError(", which is no JSON mapping")
    return value


def _item(type_: FieldType, raw: Raw) -> Any:
    if type_.item == "DatasetConfig":
        return _dataset(raw)
    if isinstance(raw, Scalar) and raw.value is not None:
        return raw.text
    raise _UnfitError


def _dataset(raw: Raw) -> dict[str, Any]:
    """Returns one entry of `datasets:`, its keys and types checked."""
    if isinstance(raw, Scalar):
        raw = (
            {key: scalar(value) for key, value in _json_mapping(raw.text).items()}
            if raw.text.lstrip().startswith("{")
            else {"path": raw}
        )
    if not isinstance(raw, dict) or "path" not in raw:
        raise _UnfitError(", and an entry has no path")
    table, entry = dataset_table(), {}
    for key, value in raw.items():
        if key not in table:
            raise _UnfitError(f", with an unknown key {key!r} (known: {', '.join(table)})")
        try:
            entry[key] = _convert(table[key], table[key].type, value)
        except _UnfitError:
            kind = table[key].type
            raise _UnfitError(f", with {key} {shown(value)} where {kind} belongs") from None
    return entry

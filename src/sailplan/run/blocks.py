"""The blocks of a run file that training does not read: `launch:`, `slurm:`, `generation:`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sailplan.errors import RunFileError
from sailplan.run.nearest import nearest
from sailplan.run.secrets import is_secret
from sailplan.run.slurm_block import OneLine, SlurmBlock
from sailplan.run.values import Raw, Scalar, shown

Strategy = Literal[
    "auto", "single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"
]  # one accelerate preset each, but for `auto`


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LaunchBlock(_Block):
    """On what hardware, and how it is divided; `auto` and None leave it to sailplan."""

    gpu: OneLine | None = None
    """The GPU's name as the catalogue or the driver writes it, such as `L4` or `H100`."""
    gpus_per_node: int | None = Field(default=None, ge=1)
    nodes: int = Field(default=1, ge=1)
    processes: int | None = Field(default=None, ge=1)
    """Processes of a machine where there is no GPU."""
    strategy: Strategy = "auto"
    cpu: bool = False
    """Train on the CPU even where there are GPUs."""
    main_process_port: int | None = Field(default=None, ge=1, le=65535)
    price_per_hour: float | None = Field(default=None, ge=0)
    """Of one GPU, in the user's currency."""


class GenerationBlock(_Block):
    """How `sailplan compare` lets models answer."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(default=0.8, ge=0)
    """Divides the logits; 0 always takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Samples from the fewest tokens that together are this likely."""
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=8, ge=1)
    """Rows answered together on one rank."""


B = TypeVar("B", LaunchBlock, SlurmBlock, GenerationBlock)

NESTED: Mapping[str, tuple[str, ...]] = {
    "slurm": ("merge", "compare", "container", "environment"),
}
"""Settings of a block that are mappings themselves: what is in them is `slurm.merge.time`."""

Written: TypeAlias = "Mapping[str, tuple[Raw, str]]"
"""Each setting as written, and where."""


def build_block(block: type[B], written: Written, name: str) -> B:
    """Returns a block from its settings.

    Args:
        block: `LaunchBlock`, `SlurmBlock` or `GenerationBlock`.
        written: Its settings, those of a mapping in it as `merge.time`.
        name: `launch`, `slurm` or `generation`; empty where the settings are a whole file.

    Raises:
        RunFileError: A setting is unknown or does not fit, or may be a secret.
    """
    prefix = f"{name}." if name else ""
    flat = dict(_flattened(block, written))
    values: dict[str, Any] = {}
    for key, (raw, where) in flat.items():
        _refuse_secret(key, raw, f"{where}: {prefix}{key}")
        _put(values, block, key, raw, f"{where}: unknown key {prefix}{key}")
    try:
        return block.model_validate(values)
    except ValidationError as error:
        raise _unfit(error, flat, prefix) from None


def kind_of(block: type[BaseModel], key: str) -> str:
    """Returns what a flag for a setting takes: `bool`, `list`, or else `str`, which is one word."""
    head, _, rest = key.partition(".")
    inner, annotation = _inner(block, head), _annotation(block, head)
    if rest and isinstance(inner, type) and issubclass(inner, BaseModel):
        return kind_of(inner, rest)
    return "bool" if annotation is bool else "list" if get_origin(annotation) is tuple else "str"


def _annotation(block: type[BaseModel], key: str) -> Any:
    return block.model_fields[key].annotation if key in block.model_fields else None


def _may_be_null(block: type[BaseModel], key: str) -> bool:
    return type(None) in get_args(_annotation(block, key))


def _inner(block: type[BaseModel], key: str) -> Any:
    """Returns the block or `dict` that a setting is; None where it is one value, or none at all."""
    annotation = _annotation(block, key)
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is dict:
            return dict
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _flattened(block: type[BaseModel], written: Written) -> Iterator[tuple[str, tuple[Raw, str]]]:
    """Yields what is in a mapping one by one, however it was written."""
    for key, (raw, where) in written.items():
        if isinstance(raw, dict) and _inner(block, key):
            yield from ((f"{key}.{inner}", (value, where)) for inner, value in raw.items())
        else:
            yield key, (raw, where)


def _put(values: dict[str, Any], block: type[BaseModel], key: str, raw: Raw, unknown: str) -> None:
    """Puts a setting where pydantic looks for it."""
    head, dot, rest = key.partition(".")
    inner = _inner(block, head)
    if head not in block.model_fields:
        raise RunFileError(unknown, todo=nearest(head, block.model_fields))
    if dot and inner is None:
        raise RunFileError(unknown)
    if dot:
        below = values[head] if isinstance(values.get(head), dict) else {}
        values[head] = below
        if inner is dict:
            below[rest] = _as_text(raw)
        else:
            _put(below, inner, rest, raw, unknown)
        return
    value = _as_text(raw)
    if value is None and inner is not None and not _may_be_null(block, head):
        return  # nothing is written below it
    is_list = get_origin(_annotation(block, head)) is tuple
    values[head] = [value] if is_list and isinstance(value, str) else value


def _refuse_secret(key: str, raw: Raw, place: str) -> None:
    """Refuses what would stand in job scripts, which others may read."""
    texts = [raw] if isinstance(raw, Scalar) else raw if isinstance(raw, list) else []
    words = [text.text for text in texts if isinstance(text, Scalar)]
    group, _, name = key.partition(".")
    names = [name] if group == "environment" else []
    for word in words:
        if word.startswith("--export"):
            names += re.split(r"[=,\s]", word)
    if any(is_secret("", word) for word in words) or any(map(_is_secret_variable, names)):
        todo = "set it in the environment of `sailplan submit` instead"
        raise RunFileError(
            f"{place} may hold a secret, and it would stand in job scripts", todo=todo
        )


def _is_secret_variable(name: str) -> bool:
    return is_secret(name, "") or name.upper().endswith(("TOKEN", "_KEY"))


def _unfit(error: ValidationError, written: Written, prefix: str) -> RunFileError:
    """Returns what does not fit, by the line where it stands."""
    detail = error.errors()[0]
    names = [str(part) for part in detail["loc"] if isinstance(part, str) and part != "[key]"]
    key = ".".join(names)
    allowed = _allowed(detail["type"], detail["msg"])
    if key not in written:  # it is missing, below what is there
        where = next(where for name, (_, where) in written.items() if name.startswith(names[0]))
        return RunFileError(f"{where}: {prefix}{key} is missing")
    raw, where = written[key]
    if detail["loc"][-1] == "[key]":
        got = f"{where}: {prefix}{key} is not named as a variable is"
        return RunFileError(got, allowed="letters, digits and _")
    return RunFileError(f"{where}: {prefix}{key} is {shown(raw, names[-1])}", allowed=allowed)


def _as_text(raw: Raw) -> object:
    """Returns a value as pydantic is to read it: YAML makes a number of seconds of 08:00:00."""
    if isinstance(raw, list):
        return [_as_text(item) for item in raw]
    if isinstance(raw, dict):
        return {key: _as_text(value) for key, value in raw.items()}
    return None if raw.value is None else raw.text


_ALLOWED = {
    "string_pattern_mismatch": "one line of text",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}
"""pydantic's kinds of error, as the thing that was asked for."""


def _allowed(kind: str, message: str) -> str:
    return _ALLOWED.get(kind, message.removeprefix("Input should be "))

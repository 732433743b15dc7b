"""The blocks of a run file that training does not read: `launch:`, `slurm:`, `generation:`."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sailplan.errors import RunFileError
from sailplan.run.nearest import nearest
from sailplan.run.slurm_block import OneLine, SlurmBlock
from sailplan.run.values import Raw, shown

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


def build_block(block: type[B], written: dict[str, tuple[Raw, str]], name: str) -> B:
    """Returns a block from its settings.

    Args:
        block: `LaunchBlock`, `SlurmBlock` or `GenerationBlock`.
        written: Each setting as written, and where.
        name: `launch`, `slurm` or `generation`.

    Raises:
        RunFileError: A setting is unknown or does not fit.
    """
    values: dict[str, object] = {}
    for key, (raw, where) in written.items():
        if key not in block.model_fields:
            got = f"{where}: unknown key {name}.{key}"
            raise RunFileError(got, todo=nearest(key, block.model_fields))
        values[key] = _as_text(raw)
    try:
        return block.model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        key = str(detail["loc"][0])
        raw, where = written[key]
        got = f"{where}: {name}.{key} is {shown(raw)}"
        raise RunFileError(got, allowed=_allowed(detail["type"], detail["msg"])) from None


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

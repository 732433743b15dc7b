"""`method`: one word for full fine-tuning, LoRA or QLoRA, in place of the fields that make it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sailplan.errors import RunFileError

if TYPE_CHECKING:
    from sailplan.run.config import Run

AUTO = "auto"
"""The word for a value that the plan chooses."""

MICRO_BATCH = "per_device_train_batch_size"

METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "full": {"use_peft": False, "load_in_4bit": False},
        # Weights that stay frozen are published in 16 bits: float32 would hold nothing more.
        "lora": {"use_peft": True, "load_in_4bit": False, "dtype": "bfloat16"},
        "qlora": {"use_peft": True, "load_in_4bit": True, "dtype": "bfloat16"},
    }
)
"""The fields that each method is, from the most faithful to the one that needs least memory."""

_DECIDING = ("use_peft", "load_in_4bit", "load_in_8bit")
"""Fields that say the method themselves, and win over the word."""


def settle(explicit: dict[str, Any], where: Mapping[str, str]) -> list[str]:
    """Puts the fields of a written method beside it; what is written already wins.

    Args:
        explicit: The written fields, changed in place.
        where: Where each was written.

    Returns:
        A note for each field that wins over the word.
    """
    method = explicit.get("method")
    if method is None:
        return []
    written = [name for name in _DECIDING if name in explicit]
    if method == AUTO:
        if written:
            del explicit["method"]
            return [f"{where['method']}: method auto is not used: {written[0]} is written"]
        return []
    notes = []
    for name, value in METHODS[method].items():
        if name in written and bool(explicit[name]) != value:
            says = f"{name}: {str(bool(explicit[name])).lower()}"
            notes.append(f"{where['method']}: {says} wins over method: {method}")
        explicit.setdefault(name, value)
    return notes


def with_method(run: Run, method: str) -> Run:
    """Returns a run whose method is decided.

    Args:
        run: The run; its `method` is `auto`.
        method: One of `METHODS`.
    """
    explicit = {**METHODS[method], **run.explicit, "method": method}
    return dataclasses.replace(run, explicit=explicit)


def method_of(run: Run) -> str:
    """Returns how a run trains, in a word: `full`, `lora`, `qlora`, or `auto` where it is open."""
    if run.get("method") == AUTO:
        return AUTO
    if not run.get("use_peft"):
        return "full"
    return "qlora" if run.get("load_in_4bit") else "lora"


def is_open(run: Run) -> bool:
    """Says whether the run leaves its method or its micro batch to the plan."""
    return AUTO in (run.get("method"), run.get(MICRO_BATCH))


def refuse_open(run: Run) -> None:
    """Refuses a run that leaves something to the plan where there is no plan.

    Raises:
        RunFileError: Its method or its micro batch is `auto`.
    """
    for name in ("method", MICRO_BATCH):
        if run.get(name) == AUTO:
            got = f"{run.source or 'the command line'}: {name} is auto"
            todo = "start it with `sailplan train`, which decides, or write a value"
            raise RunFileError(got, todo=todo)

"""Values that have the right type and still cannot be meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sailplan.errors import RunFileError
from sailplan.run.method import AUTO, MICRO_BATCH

Get = Callable[[str], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Range:
    """Bounds of a number, both included unless said otherwise."""

    low: float
    high: float = float("inf")
    above: bool = False
    """The lower bound itself is not allowed."""
    below: bool = False
    """The upper bound itself is not allowed."""

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        if self.high == float("inf"):
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"


_AT_LEAST_ONE = _Range(low=1)
_NOT_NEGATIVE = _Range(low=0)
_POSITIVE = _Range(low=0, above=True)
_SHARE = _Range(low=0, high=1, below=True)

RANGES: Mapping[str, _Range] = {
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "per_device_eval_batch_size": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "global_batch_size": _AT_LEAST_ONE,
    "eval_accumulation_steps": _AT_LEAST_ONE,
    "eval_generation_tokens": _AT_LEAST_ONE,
    "early_stopping_patience": _AT_LEAST_ONE,
    "dataset_num_proc": _AT_LEAST_ONE,
    "max_length": _AT_LEAST_ONE,
    "shuffle_buffer_size": _AT_LEAST_ONE,
    "min_pixels": _AT_LEAST_ONE,
    "max_pixels": _AT_LEAST_ONE,
    "lora_r": _AT_LEAST_ONE,
    "lora_alpha": _AT_LEAST_ONE,
    "max_steps": _Range(low=-1),
    "hang_timeout": _NOT_NEGATIVE,
    "max_bad_samples": _NOT_NEGATIVE,
    "num_train_epochs": _POSITIVE,
    "eval_size": _POSITIVE,
    "test_split_size": _POSITIVE,
    "adam_epsilon": _POSITIVE,
    "ddp_timeout": _POSITIVE,
    "learning_rate": _NOT_NEGATIVE,
    "vision_tower_learning_rate": _NOT_NEGATIVE,
    "projector_learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "eval_delay": _NOT_NEGATIVE,
    "eval_generations": _NOT_NEGATIVE,
    "early_stopping_threshold": _NOT_NEGATIVE,
    "logging_steps": _NOT_NEGATIVE,
    "save_steps": _NOT_NEGATIVE,
    "save_total_limit": _NOT_NEGATIVE,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "gradient_check_steps": _NOT_NEGATIVE,
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "seed": _NOT_NEGATIVE,
    "data_seed": _NOT_NEGATIVE,
    "lora_dropout": _SHARE,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "label_smoothing_factor": _SHARE,
}


def check(explicit: Mapping[str, Any], get: Get, where: Mapping[str, str]) -> None:
    """Refuses numbers out of range, and settings that contradict each other.

    Args:
        explicit: The written values.
        get: Gives a value, written or default.
        where: Where each value was written.

    Raises:
        RunFileError: The first that is wrong.
    """
    for name, value in explicit.items():
        if name not in RANGES or value in (None, AUTO):
            continue
        if value not in RANGES[name]:
            raise RunFileError(f"{where[name]}: {name} is {value:g}", allowed=str(RANGES[name]))
    if explicit.get("output_dir") == "":  # it would be the working directory
        raise RunFileError(f"{where['output_dir']}: output_dir is empty", allowed="a folder")
    held_out = get("eval_size")
    if held_out is not None and held_out > 1 and held_out != int(held_out):
        allowed = "a count of rows, or a fraction below 1"
        raise RunFileError(f"{where['eval_size']}: eval_size is {held_out:g}", allowed=allowed)
    _refuse_contradictions(get, where)


def without_effect(explicit: Mapping[str, Any], get: Get) -> list[str]:
    """Returns notes on what is written and does nothing, because of another setting."""
    notes = []
    if get("lr_scheduler_type") == "constant" and get("warmup_steps"):
        notes.append("lr_scheduler_type constant ignores warmup_steps; constant_with_warmup counts")
    lora = [name for name in explicit if name.startswith("lora_")]
    if lora and "use_peft" not in explicit:
        notes.append(f"{lora[0]} does nothing without use_peft: true; all weights are trained")
    return notes


def _refuse_contradictions(get: Get, where: Mapping[str, str]) -> None:
    if get("load_in_4bit") and get("load_in_8bit"):
        got = f"{where['load_in_8bit']}: load_in_4bit and load_in_8bit are both true"
        raise RunFileError(got, todo="keep one")
    for bits in ("load_in_4bit", "load_in_8bit"):
        if get(bits) and not get("use_peft"):
            got = (
                f"{where[bits]}: {bits} with full fine-tuning: quantised weights cannot be trained"
            )
            raise RunFileError(got, todo="write use_peft: true, or drop it")
    if get("fp16") and get("bf16"):
        got = f"{where['fp16']}: fp16 and bf16 are both true"
        raise RunFileError(got, todo="keep one")
    if get(MICRO_BATCH) == AUTO and get("global_batch_size") is None:
        got = f"{where[MICRO_BATCH]}: {MICRO_BATCH} is auto without global_batch_size"
        raise RunFileError(got, todo="write the samples of an optimizer step as global_batch_size")
    low, high = get("min_pixels"), get("max_pixels")
    if low is not None and high is not None and low > high:
        got = f"{where['min_pixels']}: min_pixels is {low}, more than max_pixels {high}"
        raise RunFileError(got, todo="swap them")

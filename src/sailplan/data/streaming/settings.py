"""What a run that streams may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sailplan.errors import RunFileError

if TYPE_CHECKING:
    from sailplan.run.config import Run


def is_streaming(run: Run) -> bool:
    """Whether the rows are read while training."""
    return bool(run.get("dataset_streaming") or run.get("streaming"))


def check_streaming(run: Run) -> None:
    """Refuses settings that need to know all rows beforehand.

    Raises:
        RunFileError: Such a setting is written, or `max_steps` is not.
    """
    if run.get("max_steps") <= 0:
        raise RunFileError("dataset_streaming without max_steps", todo="set max_steps")
    held_out = run.get("eval_size")
    if held_out is not None and held_out < 1:
        raise RunFileError(
            f"eval_size {held_out:g} of a stream", allowed="a count: a stream has no known length"
        )
    if run.get("test_split_size") is not None:
        raise RunFileError("test_split_size of a stream", todo="set eval_size, a count of rows")
    strategy = run.get("train_sampling_strategy")
    if strategy not in (None, "random"):
        raise RunFileError(
            f"train_sampling_strategy {strategy} with dataset_streaming",
            todo="drop it: a stream has its own order",
        )

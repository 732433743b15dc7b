"""What a run tells its user, said once however many ranks there are."""

from __future__ import annotations


def say(*lines: str) -> None:
    """Prints the lines on the main process of the run, and nowhere else."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        for line in lines:
            print(line, flush=True)

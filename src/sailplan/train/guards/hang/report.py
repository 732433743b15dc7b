"""What a run that hung leaves: a page about all ranks, and the failure of the one to blame."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sailplan.errors import HangError
from sailplan.run.failure import Failure, asked_folder, write_failure
from sailplan.run.paths import RunPaths
from sailplan.train.guards.hang.verdict import Account, Verdict


def stacks_file(directory: RunPaths, rank: int) -> Path:
    """Returns where the stacks of a rank lie."""
    return directory.logs / f"stacks-rank-{rank}.txt"


def record_file(directory: RunPaths, rank: int) -> Path:
    """Returns where a rank's flight record lies, by a name that `torchfrtrace` finds."""
    return directory.logs / f"flight-record-rank_{rank}"


def report_file(directory: RunPaths) -> Path:
    """Returns where the page about all ranks lies."""
    return directory.logs / "hang.txt"


def page(
    directory: RunPaths, accounts: Sequence[Account], verdict: Verdict, *, hang_timeout_s: float
) -> str:
    """Returns the page: the verdict, what each rank does, and where its stack is.

    Args:
        directory: The run's.
        accounts: Of every rank.
        verdict: Who holds the run up.
        hang_timeout_s: How long no rank has made progress.
    """
    lines = [
        time.strftime("%Y-%m-%d %H:%M:%S %z"),
        f"No rank made progress for {hang_timeout_s:g} s (hang_timeout).",
        verdict.words,
        "",
    ]
    for one in sorted(accounts, key=lambda one: (one.rank != verdict.rank, one.rank)):
        beat = one.beat
        lines.append(f"rank {one.rank}, process {beat.pid} on {beat.host}")
        lines.append(f"  {one.trouble}; last: {one.doing()}" if one.trouble else f"  {one.doing()}")
        for name, group in one.groups.items():
            does = "waits in the last of them" if group.waits else "waits in none"
            lines.append(f"  process group {name}: has entered {group.entered} collectives, {does}")
        lines += [f"    {call.words()}" for call in one.frames]
        for number, calls in enumerate(one.workers):
            lines.append(f"  DataLoader's worker {number}")
            lines += [f"    {call.words()}" for call in calls]
        lines.append(f"  all threads: {stacks_file(directory, one.rank)}")
        if record_file(directory, one.rank).is_file():
            lines.append(f"  collectives: {record_file(directory, one.rank)}")
        lines.append("")
    return "\n".join(lines)


def failure_of(directory: RunPaths, accounts: Sequence[Account], verdict: Verdict) -> Failure:
    """Returns the failure of the rank that holds the run up, as that rank cannot tell it itself."""
    slowest = next(one for one in accounts if one.rank == verdict.rank)
    calls = [f"  {call.words()}\n" for call in reversed(slowest.frames)]
    error = HangError(verdict.words, todo=f"the stacks of all ranks: {report_file(directory)}")
    return Failure(
        rank=verdict.rank,
        kind="hang",
        error=str(error),
        exit_code=error.exit_code,
        traceback="".join(calls),
        step=slowest.beat.step,
        phase=slowest.beat.phase,
    )


def tell(failure: Failure) -> None:
    """Leaves a failure to the launcher where that asks for it, else says it."""
    folder = asked_folder()
    if folder is not None:
        with suppress(OSError):
            write_failure(folder, failure)
            return
    print(
        f"error: {failure.error}; the same command goes on from the last whole checkpoint",
        file=sys.stderr,
        flush=True,
    )

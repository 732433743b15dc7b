"""The one report of a launch that failed: the real error first, what to do, where the logs lie."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from sailplan.checkpoint.layout import quick_latest
from sailplan.errors import OutputError
from sailplan.plan.choice.explain import gib
from sailplan.plan.measured import read_measured
from sailplan.plan.record import Plan
from sailplan.run.directory import RunDirectory
from sailplan.run.failure import Failure
from sailplan.supervise.ending import Ending

_WITH_TRACEBACK = ("unknown", "connection")
"""Kinds whose error says little without the place where it came from."""


def report(ending: Ending, directory: RunDirectory, plan: Plan | None) -> Iterator[str]:
    """Yields what went wrong; nothing where there is nothing that others have not said.

    Args:
        ending: How the launch ended.
        directory: The run's.
        plan: What the run was planned to need.
    """
    first = ending.first
    if first is None:
        if ending.kind == "unknown" and ending.began:
            yield f"error: the launch ended with exit code {ending.code}"
        return
    yield _headline(ending, first)
    if first.kind in _WITH_TRACEBACK:
        yield from first.traceback.rstrip().splitlines()
    if ending.began or first.kind != "user":  # else it is all that there is to say
        yield from _others(first, ending.failures[1:])
    if first.kind == "oom":
        yield from _memory(directory, plan)


def _headline(ending: Ending, first: Failure) -> str:
    """Returns the first line: what was wrong, and where where that does not say so itself."""
    if first.kind in ("user", "hang"):
        return f"error: {first.error}"
    if first.kind == "stopped":
        return first.error
    doing = f" ({first.phase})" if first.phase else ""
    where = f"after step {max(first.step, ending.step)}{doing}"
    if ending.by_kernel:
        return f"error: {first.error}, {where}"
    if first.kind == "oom":
        return f"error: rank {first.rank} had no memory {where}: {first.error}"
    if first.kind == "signal":
        return f"error: rank {first.rank} was ended by {first.error} {where}"
    return f"error: rank {first.rank} failed {where}: {first.error}"


def _others(first: Failure, failures: Sequence[Failure]) -> Iterator[str]:
    """Yields what the other ranks said, each thing once."""
    said: dict[str, list[int]] = {}
    for one in failures:
        word = {
            "signal": f"ended by {one.error}",
            "connection": "lost the connection to the others",  # its log has gloo's or NCCL's words
        }.get(one.kind, one.error)
        word = "the same" if (one.kind, one.error) == (first.kind, first.error) else word
        said.setdefault(word, []).append(one.rank)
    for word, ranks in said.items():
        yield f"  rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}: {word}"


def _memory(directory: RunDirectory, plan: Plan | None) -> Iterator[str]:
    """Yields what was planned of memory, and measured."""
    if plan is None:
        return
    needs = f"{gib(plan.chosen.needed_bytes)} of {gib(plan.card.card_bytes)} per {plan.card.gpu}"
    yield f"planned: {needs}, {gib(plan.host.peak_bytes)} of the machine ({plan.chosen.words})"
    try:
        _, found = read_measured(directory)
    except OutputError:
        return
    yield found.words()


def where(ending: Ending, directory: RunDirectory) -> Iterator[str]:
    """Yields what a run that has begun goes on from, how, and where its logs lie."""
    if not ending.began or ending.kind in ("finished", "interrupted"):
        return
    again = shlex.join(["sailplan", "train", str(directory.path)])
    whole = quick_latest(directory.checkpoints())
    if ending.kind != "stopped":  # which says so itself
        if whole is None:
            yield f"no checkpoint is whole; `{again}` begins at step 0"
        else:
            yield f"last whole checkpoint: {whole}; `{again}` goes on from it"
    logs = sorted(directory.logs.glob("rank-*.log"), key=lambda path: (len(path.name), path.name))
    if logs:
        others = f" to {logs[-1].name}" if len(logs) > 1 else ""
        yield f"logs by rank: {logs[0]}{others}"


def advice(ending: Ending, name: str, flags: Sequence[str], *, on_gpu: bool) -> Iterator[str]:
    """Yields what to do where memory ran out and nothing is changed without being asked.

    Args:
        ending: How the launch ended.
        name: The run, as `sailplan train` takes it.
        flags: The next plan, as flags; none where there is no next plan.
        on_gpu: Whether the ranks trained on GPUs.
    """
    if flags:
        again = shlex.join(["sailplan", "train", name, *flags])
        yield f"to go on with it: {again}; with on_oom: next_plan it is done without asking"
    elif ending.place == "saving":
        yield (
            "what would make the save fit: more memory for the machine, an adapter "
            "(method: lora), or strategy zero3 with save_sharded: true"
        )
    elif ending.of_host and on_gpu:
        yield (
            "what takes the machine's memory: dataloader_num_workers, offloading, the whole model "
            "on one rank while it is loaded or saved; or ask for more (slurm.mem)"
        )
    else:
        yield (
            "no plan is left that needs less: a shorter max_length, fewer max_pixels, "
            f"method: lora or qlora, or more {'GPUs' if on_gpu else 'memory'} would"
        )

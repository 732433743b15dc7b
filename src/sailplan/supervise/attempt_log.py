"""The launches of a run, one line each in its directory, and what the next one begins with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sailplan.hardware.catalogue import of_driver
from sailplan.hardware.detect import Machine
from sailplan.launcher.strategy import divide, on_cpu
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.supervise.next_plan import values


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One launch, and how it ended."""

    number: int
    """From 1 on, over the life of the run."""
    started_at: float
    ended_at: float
    device: str
    """The GPU as the catalogue names it, else as its driver does; or `cpu`."""
    strategy: str
    processes: int
    micro_batch: int
    accumulation: int
    exit_code: int
    kind: str
    """`finished`, `interrupted`, or the kind of the failure."""
    error: str = ""
    step: int = 0
    """Optimizer steps that were done at its end."""
    checkpoint: int = 0
    """The step of the last checkpoint that was whole at its end; 0 where there was none."""
    job: int | None = None
    """The Slurm job that it was part of."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What the run file and the flags said of all that may be changed."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """What was changed of it before this launch, for want of memory."""
    next_changed: Mapping[str, Any] | None = None
    """The same for the next launch, where this one ended for want of memory."""
    next_words: str = ""
    """What is new in it."""


_ASKED = ("finished", "interrupted", "stopped")
"""Kinds of ends that are no failures."""


def read_attempts(path: Path) -> list[Attempt]:
    """Returns the launches that are written down, the first one first."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(Attempt(**json.loads(line)))
        except (ValueError, TypeError):  # cut off by a kill, or of another version
            continue
    return found


def append_attempts(path: Path, attempts: Sequence[Attempt]) -> None:
    """Adds launches, each in one write.

    Raises:
        OSError: They cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        for attempt in attempts:
            file.write((json.dumps(asdict(attempt)) + "\n").encode())
        os.fsync(file.fileno())


def num_fruitless(attempts: Sequence[Attempt]) -> int:
    """Returns how many of the last launches in a row failed without a newer whole checkpoint.

    Those that somebody asked to stop neither count nor end the row.
    """
    count, saved = 0, 0
    for attempt in attempts:
        if attempt.kind == "finished" or attempt.checkpoint > saved:
            count = 0
        if attempt.kind not in _ASKED:
            count += 1
        saved = max(saved, attempt.checkpoint)
    return count


def num_in_vain(attempts: Sequence[Attempt]) -> int:
    """Returns how many of the last launches in a row left no newer whole checkpoint."""
    count, saved = 0, 0
    for attempt in attempts:
        is_newer = attempt.checkpoint > saved
        count = 0 if is_newer or attempt.kind == "finished" else count + 1
        saved = max(saved, attempt.checkpoint)
    return count


def device_of(run: Run, machine: Machine) -> str:
    """Returns what a run trains on here."""
    if on_cpu(run, machine):
        return "cpu"
    gpu = machine.gpus.value[0]
    model = of_driver(gpu.name, gpu.memory_bytes)
    return model.name if model else gpu.name


def settled_before(run: Run, machine: Machine) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns what earlier launches changed for want of memory, and a line that says so.

    It holds as long as the run asks for the same, on the same hardware: who writes another value,
    in the run file or as a flag, gets what is written.

    Args:
        run: The run as it is asked for now.
        machine: This machine.
    """
    directory = RunDirectory.of(run)
    attempts = read_attempts(directory.attempts_file)
    if not attempts:
        return {}, ()
    last = attempts[-1]
    changed = dict(last.changed if last.next_changed is None else last.next_changed)
    if not changed:
        return {}, ()
    shown = ", ".join(f"{name} {_shown(value)}" for name, value in changed.items())
    why = f"launch {last.number} ran out of memory" if last.kind == "oom" else "memory ran out"
    where = f"({directory.attempts_file})"
    device, processes = device_of(run, machine), divide(run, machine).processes
    if (device, processes) != (last.device, last.processes):
        there = f"{last.processes} × {last.device}"
        return {}, (f"begins as the run file says: {shown} was for {there} {where}",)
    if values(run) != dict(last.asked):
        return {}, (f"begins with the values that are written now, not with {shown} {where}",)
    return changed, (f"begins with {shown}, since {why} before {where}",)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

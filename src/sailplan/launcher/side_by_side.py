"""Starts the same work several times beside itself, each with a device or cores of its own.

For work whose parts know nothing of one another: no rendezvous, no collective, and one that fails
leaves the others at work.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sailplan.hardware.detect import Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """One of the processes, at its end."""

    rank: int
    exit_code: int
    last_words: str
    """The last line that it wrote to its log; empty of the first rank, which has none."""


def environments(
    machine: Machine, num_ranks: int, *, on_cpu: bool, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """Returns the variables of each rank: its own GPU, or its share of the cores.

    Args:
        machine: This machine.
        num_ranks: Of them; with GPUs at most as many as there are.
        on_cpu: Whether they compute on the CPU.
        environment: Variables of all of them.
    """
    threads = max(1, machine.cpu_cores.value // num_ranks)
    common = {"OMP_NUM_THREADS": str(threads), **environment}
    if on_cpu:
        return [{**common, "CUDA_VISIBLE_DEVICES": ""} for _ in range(num_ranks)]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(n) for n in range(len(machine.gpus.value))]
    return [{**common, "CUDA_VISIBLE_DEVICES": name.strip()} for name in names[:num_ranks]]


def run_all(
    module: str, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], logs: Path
) -> list[Ended]:
    """Runs a module once an environment, and returns how each has ended.

    The first one's output goes where this process's does, that of the others to `rank-N.log`.

    Args:
        module: What is run; it is given `arguments`, its rank and the number of ranks.
        arguments: What all of them are given first.
        environments: The variables of each.
        logs: The folder of the logs, which is there.

    Raises:
        OSError: A log cannot be written.
    """
    with ExitStack() as held:
        processes: list[subprocess.Popen[bytes]] = []
        held.callback(_end, processes)
        for rank, variables in enumerate(environments):
            log = held.enter_context((logs / f"rank-{rank}.log").open("wb")) if rank else None
            command = [sys.executable, "-m", module, *arguments]
            processes.append(
                subprocess.Popen(
                    [*command, str(rank), str(len(environments))],
                    env=variables,
                    stdout=log,
                    stderr=log,
                )
            )
        codes = [process.wait() for process in processes]
    return [
        Ended(
            rank=rank,
            exit_code=code if code >= 0 else 128 - code,
            last_words=_last_line(logs / f"rank-{rank}.log") if rank and code else "",
        )
        for rank, code in enumerate(codes)
    ]


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends what is still at work, where this process was interrupted."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "")

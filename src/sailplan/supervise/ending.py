"""How a launch ended: which rank failed first, why, and whether memory had run out."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sailplan.errors import HardwareError, StoppedError
from sailplan.run.failure import Failure, in_order, read_failures, read_kills
from sailplan.run.paths import RunPaths
from sailplan.run.state import read_state
from sailplan.supervise.next_plan import Place

OUT_OF_MEMORY = HardwareError.exit_code
"""What `sailplan train` exits with where memory ran out."""

_KILLED = "SIGKILL"
_KERNEL = "the kernel ended"
_LAST_OF_SAVE = "trainer_state.json"
"""What the first rank writes into a checkpoint when all else is in it."""
_WORKER_KILLED = re.compile(r"DataLoader worker .*(killed by signal: Killed|exited unexpectedly)")
_OF_HOST = re.compile(r"DefaultCPUAllocator|Cannot allocate memory|std::bad_alloc|^MemoryError")
_ASKED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """The end of one launch."""

    code: int
    """What the launch exits with: the code of the rank that failed first."""
    began: bool
    """Whether training began in it."""
    failures: tuple[Failure, ...]
    """What the ranks left, the one that the others follow from first."""
    by_kernel: bool = False
    """Whether the kernel ended the first of them for want of memory."""
    step: int = 0
    """Optimizer steps that were done, as far as is known."""

    @property
    def first(self) -> Failure | None:
        """The failure that the others follow from."""
        return self.failures[0] if self.failures else None

    @property
    def kind(self) -> str:
        """The kind of the end, in a word."""
        if self.code == 0:
            return "finished"
        if self.code in _ASKED and self.first is None:
            return "interrupted"
        if self.code == StoppedError.exit_code:
            return "stopped"
        return self.first.kind if self.first else "unknown"

    @property
    def place(self) -> Place:
        """Where it failed, as far as it matters for memory."""
        phase = self.first.phase if self.first else ""
        if not self.began:
            return "loading"
        if "saving" in phase:
            return "saving"
        return "evaluating" if "held-out" in phase or "evaluat" in phase else "training"

    @property
    def of_host(self) -> bool:
        """Whether it is the machine's memory that ran out, not a GPU's."""
        return self.by_kernel or bool(self.first and _OF_HOST.search(self.first.error))


def ending_of(
    code: int, left: Path, paths: RunPaths, *, since: float, began: bool, kills: int
) -> Ending:
    """Judges how a launch ended.

    Args:
        code: What the launcher exited with.
        left: The folder where its ranks left their failures.
        paths: The run's.
        since: When it began.
        began: Whether training began in it.
        kills: Processes that the kernel ended here meanwhile for want of memory; those that the
            launchers of other machines have counted come to it.
    """
    state = read_state(paths.state_file) if began else None
    failures: Sequence[Failure] = [] if code == 0 or code in _ASKED else read_failures(left)
    if code == StoppedError.exit_code:  # the first ranks that leave make no failure of the others
        failures = [one for one in failures if not one.is_echo]
    by_kernel = False
    if kills + read_kills(left) > 0:
        failures = in_order(_with_kernel(one, paths, since) for one in failures)
        by_kernel = any(_KERNEL in one.error for one in failures[:1])
    if failures and code != StoppedError.exit_code:
        code = failures[0].exit_code
    return Ending(
        code=code,
        began=began,
        failures=tuple(failures),
        by_kernel=by_kernel,
        step=max([state.step if state else 0, *(one.step for one in failures)]),
    )


def _with_kernel(failure: Failure, paths: RunPaths, since: float) -> Failure:
    """Returns a failure as what it is where the kernel has ended processes for want of memory."""
    killed = failure.kind == "signal" and failure.error == _KILLED
    if not killed and not _WORKER_KILLED.search(failure.error):
        return failure
    whose = "" if killed else "a DataLoader's worker of "
    step, phase = _last_word(paths, failure.rank, since) if killed else (0, "")
    return replace(
        failure,
        kind="oom",
        exit_code=OUT_OF_MEMORY,
        error=f"{_KERNEL} {whose}rank {failure.rank}, for want of memory",
        step=max(failure.step, step),
        phase=failure.phase or phase,
    )


def _last_word(paths: RunPaths, rank: int, since: float) -> tuple[int, str]:
    """Returns the step and the phase of a rank that was killed, from what lies in the directory."""
    step, phase = 0, ""
    try:
        beat = json.loads((paths.beats / f"rank-{rank}.json").read_text(encoding="utf-8"))
        if beat["moved_at"] >= since:
            step, phase = int(beat["step"]), str(beat["phase"])
    except (OSError, ValueError, LookupError, TypeError):  # it gave none
        pass
    # The word may be a second old, a half written checkpoint is not.
    newest = paths.checkpoints()[-1:]
    half = [one for one in newest if not (one / _LAST_OF_SAVE).exists()]
    if rank == 0 and half and half[0].stat().st_mtime >= since:
        phase = "saving"
    return step, phase

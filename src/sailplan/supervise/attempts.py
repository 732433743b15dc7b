"""Launches a run, and launches it again with the next plan where memory ran out.

The end of each launch is judged, told in one report and written down. What comes next is decided
by `on_oom`; it is bounded, and each next launch goes on from the last whole checkpoint.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sailplan.checkpoint.layout import quick_latest
from sailplan.errors import SailplanError
from sailplan.hardware.detect import Machine
from sailplan.hardware.memory_kills import oom_kills
from sailplan.launcher import local
from sailplan.launcher.command import Launch
from sailplan.launcher.planned import asked_strategy
from sailplan.launcher.strategy import on_cpu
from sailplan.plan.record import Plan
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.failure import ATTEMPT_VARIABLE, FOLDER_VARIABLE
from sailplan.run.method import MICRO_BATCH
from sailplan.run.paths import step_of
from sailplan.run.state import ended, read_state, starting, write_state
from sailplan.supervise.attempt_log import Attempt, append_attempts, device_of, read_attempts
from sailplan.supervise.ending import Ending, ending_of
from sailplan.supervise.next_plan import (
    ACCUMULATION,
    Failed,
    Next,
    next_plan,
    opened,
    values,
)
from sailplan.supervise.report import advice, report, where

MOST_RELAUNCHES = 4
"""Launches in a row that may end for want of memory without having come further."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A run that only has to be launched."""

    run: Run
    """With everything settled."""
    kept: Run
    """What is written as run.yaml: as it was asked for."""
    launch: Launch
    plan: Plan | None
    notes: tuple[str, ...]
    """What was decided, one line each."""


Prepare = Callable[[Mapping[str, Any]], Ready]
"""Makes a run ready with some settings changed."""


@dataclass(kw_only=True, slots=True)
class Attempts:
    """The launches of one `sailplan train`."""

    prepare: Prepare
    machine: Machine
    environment: Mapping[str, str]
    """Of the ranks, and of this process: a Slurm job shows in it."""
    run_file: str
    """What `sailplan train` was called with."""
    asked: Run
    """As the run file and the flags have it."""
    changed: dict[str, Any]
    """What earlier launches changed of it for want of memory."""
    _unwritten: list[Attempt] = field(default_factory=list)
    """Launches that ended before there was a directory to write them to."""
    _fruitless: int = 0
    """Launches in a row that came no further than those before them."""
    _step: int = -1

    @property
    def directory(self) -> RunDirectory:
        """The run's."""
        return RunDirectory.of(self.asked)

    @property
    def _whole(self) -> Path | None:
        return quick_latest(self.directory.checkpoints())

    def train(self, ready: Ready) -> int:
        """Launches until the run is finished, or ends for another reason; returns the exit code.

        Args:
            ready: The first launch.

        Raises:
            OutputError: The directory cannot be written, or holds another run.
        """
        while True:
            ending, attempt = self._launch(ready)
            following = self.after_out_of_memory(ready, ending) if ending.kind == "oom" else None
            if following is not None:
                self._write(self.noted(attempt, following))
                ready = self.with_less()
                continue
            now = read_state(self.directory.state_file)
            if now is not None and (now.state, now.pid) == ("starting", os.getpid()):
                ended(self.directory, ending.code)
            for line in where(ending, self.directory):
                _tell(line)
            if ending.began or ending.kind == "oom":  # else nothing of the run has changed
                self._write(attempt)
            return ending.code

    def noted(self, attempt: Attempt, following: Next) -> Attempt:
        """Returns a launch with what the next one does otherwise, which holds from now on."""
        self.changed |= following.settings
        return replace(attempt, next_changed=dict(self.changed), next_words=following.words)

    def with_less(self) -> Ready:
        """Returns the run made ready with what was changed for want of memory, and tells how."""
        # A checkpoint that was named, or not wanted, is behind what has been saved since.
        since = {"resume_from_checkpoint": None} if self._whole else {}
        ready = self.prepare({**self.changed, **since})
        for note in ready.notes:
            print(note, flush=True)
        return ready

    def _launch(self, ready: Ready) -> tuple[Ending, Attempt]:
        """Launches once, and tells how it ended."""
        directory = self.directory
        number = len(read_attempts(directory.attempts_file)) + len(self._unwritten) + 1
        began_before, kills_before, since = directory.began_at(), oom_kills(), time.time()
        with _folder_of_failures() as left:
            environment = {
                **self.environment,
                FOLDER_VARIABLE: str(left),
                ATTEMPT_VARIABLE: str(number),
            }
            code = local.train(ready.kept, ready.launch, self.machine, environment, plan=ready.plan)
            began = directory.began_at() not in (None, began_before)
            ending = ending_of(
                code,
                left,
                directory,
                since=since,
                began=began,
                kills=oom_kills() - kills_before,
            )
            if began:
                _keep(left, directory.failures)
        lines = list(report(ending, directory, ready.plan))
        for line in lines:
            _tell(line)
        if began:
            why = lines[0].removeprefix("error: ") if lines else ""
            if ending.kind == "oom":  # perhaps it goes on: who watches it should not leave
                write_state(directory.state_file, starting(directory, why))
            else:
                ended(directory, ending.code, why)
        return ending, self._attempt(number, ready, ending, since)

    def after_out_of_memory(self, ready: Ready, ending: Ending) -> Next | None:
        """Returns what the next launch does otherwise; None where there is to be none."""
        self._fruitless = 1 if ending.step > self._step else self._fruitless + 1
        self._step = max(self._step, ending.step)
        found = self._next(ready, ending)
        if found is not None and self._fruitless > MOST_RELAUNCHES:
            _tell(f"{MOST_RELAUNCHES} launches in a row came no further than step {self._step}")
        elif found is not None and self._goes_on(ready.run, found):
            return found
        name = str(self.directory.path) if self.directory.run_file.is_file() else self.run_file
        on_gpu = not on_cpu(ready.run, self.machine)
        for line in advice(ending, name, _flags(found), on_gpu=on_gpu):
            _tell(line)
        return None

    def _next(self, ready: Ready, ending: Ending) -> Next | None:
        cpu = on_cpu(ready.run, self.machine)
        failed = Failed(
            place=ending.place,
            strategy=ready.launch.strategy,
            processes=ready.launch.processes,
            on_gpu=not cpu,
            of_host=ending.of_host,
            may_change_strategy=self._whole is None
            and (not cpu or self.machine.cpu_zero.value)
            and not any(ready.run.get(name) for name in ("deepspeed", "fsdp")),
            memory_ratio=_memory_ratio(self.directory),
        )
        return next_plan(ready.run, self._plan_of(ready, failed), failed)

    def _plan_of(self, ready: Ready, failed: Failed) -> Plan | None:
        """Returns a plan that leaves open what may be changed; None where none is to be had."""
        if ready.plan is None or not failed.on_gpu or failed.place == "saving" or failed.of_host:
            return None
        from sailplan.plan.of_run import plan_of  # it simulates, with torch

        run = opened(ready.run, failed)
        try:
            return plan_of(run, ready.plan.card, strategy=asked_strategy(run)[0])
        except SailplanError:  # the rungs are left
            return None

    def _goes_on(self, run: Run, found: Next) -> bool:
        """Says whether the next launch is to be made: by the run, by whoever is asked, or not."""
        wish = run.get("on_oom")
        terminal = sys.stdin.isatty() and sys.stderr.isatty()
        if wish is None and "SLURM_JOB_ID" in self.environment:
            wish = "next_plan"
        if wish == "next_plan":
            start = f"from {self._whole.name}" if self._whole else "from the beginning"
            _tell(f"on_oom: goes on {start} with {found.words}")
            return True
        _tell(f"the next plan: {found.words}")
        if wish == "stop" or not terminal:
            return False
        return _answer("go on with it? [Y/n] ")

    def _attempt(self, number: int, ready: Ready, ending: Ending, since: float) -> Attempt:
        settled = ready.run.for_world_size(ready.launch.processes)
        return Attempt(
            number=number,
            started_at=since,
            ended_at=time.time(),
            device=device_of(ready.run, self.machine),
            strategy=ready.launch.strategy,
            processes=ready.launch.processes,
            micro_batch=settled.get(MICRO_BATCH),
            accumulation=settled.get(ACCUMULATION),
            exit_code=ending.code,
            kind=ending.kind,
            error=ending.first.error if ending.first else "",
            step=ending.step,
            checkpoint=step_of(self._whole),
            asked=values(self.asked),
            changed=dict(self.changed),
        )

    def _write(self, attempt: Attempt) -> None:
        """Writes a launch down, once there is a run to write of."""
        self._unwritten.append(attempt)
        if self.directory.began_at() is None:
            return
        with suppress(OSError):  # the run's own error is the one to tell
            append_attempts(self.directory.attempts_file, self._unwritten)
            self._unwritten.clear()


@contextmanager
def _folder_of_failures() -> Iterator[Path]:
    """Gives a folder that is not the run's: a run that fails before training leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="sailplan-") as name:
        yield Path(name)


def _keep(left: Path, failures: Path) -> None:
    """Puts what went wrong in this launch in the place of what did in the last one."""
    with suppress(OSError):
        shutil.rmtree(failures, ignore_errors=True)
        if any(left.iterdir()):
            shutil.copytree(left, failures)


def _memory_ratio(directory: RunDirectory) -> float:
    from sailplan.plan.measured import read_measured

    try:
        return read_measured(directory)[1].memory_ratio or 1.0
    except SailplanError:
        return 1.0


def _flags(found: Next | None) -> Sequence[str]:
    settings = found.settings if found else {}
    return [word for name, value in settings.items() for word in (f"--{name}", _word(value))]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _answer(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("", "y", "yes") and answer != ""  # "" is the end of input

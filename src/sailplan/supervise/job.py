"""The launches of a training job under Slurm: what is settled before, and what follows from each.

The job's script starts the ranks on all nodes and knows no more than an exit code. It asks here:
before a launch whether there is one to be made, after it what comes next. Only the first node's
script does, so that each file has one writer.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sailplan.checkpoint.layout import quick_latest
from sailplan.errors import RunFileError, SailplanError, StoppedError, TrainingError
from sailplan.launcher.local import launch_texts
from sailplan.processes import STOP_SIGNALS
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.failure import Failure, read_failures
from sailplan.run.method import MICRO_BATCH
from sailplan.run.paths import STOP_FILE, RunPaths, step_of
from sailplan.run.state import RunState, ended, read_state, starting, write_state
from sailplan.slurm.inside import Inside
from sailplan.supervise.attempt_log import (
    Attempt,
    append_attempts,
    device_of,
    num_fruitless,
    num_in_vain,
    read_attempts,
)
from sailplan.supervise.attempts import MOST_RELAUNCHES, Attempts
from sailplan.supervise.ending import Ending, ending_of
from sailplan.supervise.next_plan import ACCUMULATION, Next, values
from sailplan.supervise.report import report, where

Word = Literal["finished", "again", "requeue", "stopped", "failed"]
"""What a job does next: it is done; it launches again at once, with the next plan; it is queued
again; somebody stopped the run; the run failed for good."""

MOST_IN_VAIN = 10
"""Launches in a row that may be stopped before they have trained a step: the job's time may be too
short even to begin."""

LOST = "lost"
"""The kind of a launch that left no word of its end: its node went, or its job was killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """A training job, as one of its launches sees it."""

    run: Run
    """As the run's directory has it."""
    job_id: int
    num_restarts: int
    """How often Slurm has started the job again."""
    max_restarts: int
    """How often in a row the run is started again that fails without having come further."""

    @classmethod
    def of(cls, run: Run, here: Inside, *, max_restarts: int) -> TrainingJob:
        """Returns the job that this process is in, for its run."""
        return cls(
            run=run,
            job_id=here.job_id,
            num_restarts=here.num_restarts,
            max_restarts=max_restarts,
        )

    @property
    def directory(self) -> RunDirectory:
        """The run's."""
        return RunDirectory.of(self.run)

    def begin(self) -> int:
        """Settles what the launch before has left, and returns the number of this one.

        Raises:
            TrainingError: The run has failed too often in a row.
        """
        paths = self.directory
        self._note_lost()
        launches = self._of_this_job()
        fruitless = num_fruitless(launches)
        if fruitless > self.max_restarts:
            raise TrainingError(
                f"{fruitless} launches in a row failed without a newer checkpoint, and "
                f"max_restarts is {self.max_restarts}; the last: {launches[-1].error}",
                todo="put right what failed, and submit the run again",
            )
        paths.stop_file.unlink(missing_ok=True)  # it was for an earlier launch
        shutil.rmtree(paths.failures, ignore_errors=True)
        write_state(paths.state_file, starting(paths))
        return len(read_attempts(paths.attempts_file)) + 1

    def end(self, attempts: Attempts, code: int, *, asked: bool) -> Word:
        """Judges how a launch ended, tells it, writes it down, and returns what comes next.

        Args:
            attempts: What makes the run ready again where it needs less memory.
            code: What the step exited with.
            asked: Whether Slurm has asked the job to stop: its time is over, or another's come.

        Raises:
            SailplanError: The next launch cannot be made ready.
        """
        paths = self.directory
        state = read_state(paths.state_file)
        since = state.started_at if state else time.time()
        ending = ending_of(
            settled_code(code, state, read_failures(paths.failures), asked=asked),
            paths.failures,
            paths,
            since=since,
            began=state is not None and state.state != "starting",
            kills=0,
        )
        lines = list(report(ending, paths, None))
        for line in (*lines, *where(ending, paths)):
            print(line, file=sys.stderr, flush=True)
        ended(paths, ending.code, lines[0].removeprefix("error: ") if lines else "")
        attempt = self._attempt(attempts, ending, since)
        launches = [*self._of_this_job(), attempt]
        fruitless = num_fruitless(launches)
        word = next_word(
            ending,
            asked=asked,
            by_hand=state is not None and STOP_FILE in state.why,
            num_fruitless=fruitless,
            num_in_vain=num_in_vain(launches),
            max_restarts=self.max_restarts,
        )
        if word == "requeue":
            self._tell_of_requeue(ending, fruitless)
        elif word == "failed" and fruitless > self.max_restarts and ending.kind != "user":
            print(f"given up: max_restarts is {self.max_restarts}", file=sys.stderr, flush=True)
        if word == "failed" and ending.kind == "stopped":
            why = (
                f"{MOST_IN_VAIN + 1} launches in a row were stopped before they had trained a "
                "step; does the job have time enough (slurm.time)?"
            )
            print(f"error: {why}", file=sys.stderr, flush=True)
            ended(paths, TrainingError.exit_code, why)
        following = self._less(attempts, ending) if word == "again" else None
        if following is not None:
            attempt = attempts.noted(attempt, following)
        append_attempts(paths.attempts_file, [attempt])
        if following is not None:
            ready = attempts.with_less()
            texts = launch_texts(ready.run, ready.launch, attempts.machine, plan=ready.plan)
            paths.claim(ready.kept, texts)  # and the state stays: nothing is started yet
        return "failed" if word == "again" and following is None else word

    def _tell_of_requeue(self, ending: Ending, fruitless: int) -> None:
        whole = quick_latest(self.directory.checkpoints())
        start = f"from {whole.name}" if whole else "from the beginning"
        count = f"restart {fruitless} of {self.max_restarts} without a newer checkpoint"
        why = "" if ending.kind == "stopped" else f" ({count})"
        print(f"the job is queued again, and goes on {start}{why}", file=sys.stderr, flush=True)

    def _less(self, attempts: Attempts, ending: Ending) -> Next | None:
        """Returns what needs less memory; None where there is nothing, and tells why."""
        try:
            ready = attempts.prepare(attempts.changed)
            return attempts.after_out_of_memory(ready, ending)
        except SailplanError as error:
            print(f"error: there is no next plan: {error}", file=sys.stderr, flush=True)
            return None

    def _note_lost(self) -> None:
        """Writes down a launch that ended without a word."""
        paths = self.directory
        state = read_state(paths.state_file)
        if state is None or state.state not in ("starting", "running"):
            return
        asked = paths.stop_file.exists()  # and nobody was left to take it away
        lost = Attempt(
            number=len(read_attempts(paths.attempts_file)) + 1,
            started_at=state.started_at,
            ended_at=time.time(),
            **launched(paths),
            exit_code=1,
            kind="interrupted" if asked else LOST,
            error="stopped before it had saved" if asked else f"no word from {state.host}",
            step=state.step,
            checkpoint=step_of(quick_latest(paths.checkpoints())),
            job=self.job_id if self.num_restarts else None,
        )
        print(f"launch {lost.number} was {lost.kind}: {lost.error}", file=sys.stderr, flush=True)
        append_attempts(paths.attempts_file, [lost])

    def _of_this_job(self) -> list[Attempt]:
        attempts = read_attempts(self.directory.attempts_file)
        return [attempt for attempt in attempts if attempt.job == self.job_id]

    def _attempt(self, attempts: Attempts, ending: Ending, since: float) -> Attempt:
        paths = self.directory
        return Attempt(
            number=len(read_attempts(paths.attempts_file)) + 1,
            started_at=since,
            ended_at=time.time(),
            **{**launched(paths), "device": device_of(self.run, attempts.machine)},
            exit_code=ending.code,
            kind=ending.kind,
            error=ending.first.error if ending.first else "",
            step=ending.step,
            checkpoint=step_of(quick_latest(paths.checkpoints())),
            job=self.job_id,
            asked=values(self.run),
            changed=dict(attempts.changed),
        )


def settled_code(
    code: int, state: RunState | None, failures: Sequence[Failure], *, asked: bool
) -> int:
    """Returns how a launch ended, from what its ranks say rather than from the step's exit code.

    The first task that fails has Slurm kill the others: the code is that of the signal, and it is
    the same where all have saved and some have been slower to leave.

    Args:
        code: What the step exited with.
        state: What the run last said of itself.
        failures: What the ranks left, the one that the others follow from first.
        asked: Whether the job was asked to stop.
    """
    if state is not None and state.state == "finished":
        return 0
    if state is not None and state.state == "stopped":
        return StoppedError.exit_code
    if failures and not failures[0].is_echo:
        return failures[0].exit_code
    if asked:
        return StoppedError.exit_code
    return code if code not in (0, *(128 + number for number in STOP_SIGNALS)) else 1


def next_word(
    ending: Ending,
    *,
    asked: bool,
    by_hand: bool,
    num_fruitless: int,
    num_in_vain: int,
    max_restarts: int,
) -> Word:
    """Returns what a job does after a launch.

    Args:
        ending: How it ended.
        asked: Whether Slurm has asked the job to stop.
        by_hand: Whether it was the run's stop file that stopped it.
        num_fruitless: Launches in a row, this one among them, that failed without a newer whole
            checkpoint.
        num_in_vain: The same of those that were stopped, too.
        max_restarts: How many of the former are followed by another.
    """
    if ending.kind == "finished":
        return "finished"
    if ending.kind == "stopped" and by_hand and not asked:
        return "stopped"
    if asked or ending.kind == "stopped":
        return "requeue" if num_in_vain <= MOST_IN_VAIN else "failed"
    if ending.kind == "user":  # the same mistake would be made again
        return "failed"
    if ending.kind == "oom":
        return "again" if num_fruitless <= MOST_RELAUNCHES else "failed"
    return "requeue" if num_fruitless <= max_restarts else "failed"


def launched(paths: RunPaths) -> dict[str, Any]:
    """Returns what the files of a launch say of it, as the fields of an `Attempt`."""
    try:
        record = json.loads(paths.environment_file.read_bytes())
        ranks = Run.from_file(paths.train_file)
        gpus = record["machine"]["gpus"]["value"]
        return {
            "device": gpus[0]["name"] if gpus else "cpu",
            "strategy": str(record["strategy"]),
            "processes": int(record["processes"]),
            "micro_batch": ranks.get(MICRO_BATCH),
            "accumulation": ranks.get(ACCUMULATION),
        }
    except (OSError, ValueError, LookupError, TypeError, RunFileError):
        return {"device": "", "strategy": "", "processes": 0, "micro_batch": 0, "accumulation": 0}

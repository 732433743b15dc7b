"""Watches from a thread of each rank whether any rank makes progress; ends the run where none does.

A rank may stand still for hours while another encodes rows, saves or evaluates alone. So the run
hangs only when no rank has moved for `hang_timeout`. The rank that sees it first asks all for their
stacks, says which rank holds the others up, and every rank leaves with the same exit code: their
main threads would wait for one another for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.errors import HangError
from sailplan.run.paths import RunPaths
from sailplan.train.guards.hang.beats import FIRST_STEP, Beat, Beats
from sailplan.train.guards.hang.processes import trouble_of, wake
from sailplan.train.guards.hang.recorder import flight_record, groups_of, write_record
from sailplan.train.guards.hang.report import (
    failure_of,
    page,
    record_file,
    report_file,
    stacks_file,
    tell,
)
from sailplan.train.guards.hang.stacks import Stacks, frames_of, main_frames
from sailplan.train.guards.hang.verdict import Account, judge
from sailplan.train.phase import PHASE
from sailplan.train.ranks import of_all_ranks

if TYPE_CHECKING:
    from sailplan.train.trainer import Trainer

_LOOKS = 10
"""How often a rank looks within `hang_timeout`, at least."""

_LONGEST_LOOK_S = 5.0

_ANSWER_S = 5.0
"""How long a rank that looks may take to write its stacks."""

_BY_BYTES = ("starting", "saving", "loading")
"""Phases in which what is read and written is progress: a checkpoint may take very long."""

_PROGRESS_BYTES = 2**20


@contextmanager
def hang_watch(directory: RunPaths, trainer: Trainer, hang_timeout_s: float) -> Iterator[None]:
    """Ends all ranks where none makes progress, from the beginning of training to the end of this.

    Args:
        directory: The run's.
        trainer: The run's.
        hang_timeout_s: How long it takes to call it a hang; 0 waits for ever.
    """
    if not hang_timeout_s:
        yield
        return
    starts = _StartsWithTraining(directory, trainer, hang_timeout_s)
    trainer.add_callback(starts)
    try:
        yield
    finally:
        starts.end()


class _StartsWithTraining(TrainerCallback):
    """Begins to watch once the directory is the run's, and model and data have proven good."""

    def __init__(self, directory: RunPaths, trainer: Trainer, hang_timeout_s: float) -> None:
        self._directory, self._trainer, self._timeout_s = directory, trainer, hang_timeout_s
        self._watch: Watch | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins; every rank is here."""
        session = float(of_all_ranks(self._trainer.accelerator, [time.time()])[0, 0])
        self._watch = Watch(
            self._directory,
            rank=args.process_index,
            session=session,
            hang_timeout_s=self._timeout_s,
        )
        self._watch.start()

    def end(self) -> None:
        """Ends."""
        if self._watch is not None:
            self._watch.end()


class Watch:
    """Looks after the progress of this rank, and of all where this one makes none.

    Args:
        directory: The run's.
        rank: This process's.
        session: This start of the ranks, the same on each.
        hang_timeout_s: How long it takes to call it a hang.
    """

    def __init__(
        self, directory: RunPaths, *, rank: int, session: float, hang_timeout_s: float
    ) -> None:
        self._directory, self._rank, self._timeout_s = directory, rank, hang_timeout_s
        self._beats = Beats(directory.beats, session)
        self._every_s = min(_LONGEST_LOOK_S, hang_timeout_s / _LOOKS)
        self._host = socket.gethostname()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hang watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._beats.begin(self._rank)
        self._stacks = Stacks(self._beats.stack_of(self._rank))
        self._first_step, self._count, self._bytes = PHASE.step, PHASE.count, 0
        self._idle_s, self._looked_at = 0.0, time.monotonic()
        self._beats.write(self._beat())
        self._thread.start()

    def end(self) -> None:
        """Looks no more."""
        self._ended.set()
        self._thread.join()
        self._stacks.close()
        with suppress(OSError):
            self._beats.end(self._beat())

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            # A full disk or a lost network drive ends the run elsewhere, where it is understood.
            with suppress(OSError):
                self._look()

    def _look(self) -> None:
        now = time.monotonic()
        # A suspended machine or job comes back with a leap of the clock; it has not hung.
        self._idle_s += min(now - self._looked_at, 2 * self._every_s)
        self._looked_at = now
        if self._has_moved():
            self._idle_s = 0.0
            self._beats.write(self._beat())
        limit_s = self._timeout_s * (FIRST_STEP if PHASE.step == self._first_step else 1.0)
        self._stacks.write_unless_asked_again(limit_s)
        if self._beats.is_hung:
            self._leave()
        if self._idle_s >= limit_s and not self._others_move(limit_s):
            if self._beats.claim_hang():
                self._conclude()
            self._leave()

    def _has_moved(self) -> bool:
        """Whether there was progress since the last look."""
        moved = PHASE.count != self._count
        self._count = PHASE.count
        if PHASE.name.startswith(_BY_BYTES):
            num_bytes = _bytes_moved()
            if num_bytes - self._bytes >= _PROGRESS_BYTES:
                self._bytes, moved = num_bytes, True
        return moved

    def _others_move(self, limit_s: float) -> bool:
        """Whether another rank has made progress lately; this one then waits for it."""
        latest = time.time() - limit_s
        return any(
            beat.moved_at > latest
            for rank, beat in self._beats.read().items()
            if rank != self._rank
        )

    def _beat(self) -> Beat:
        return Beat(
            session=self._beats.session,
            rank=self._rank,
            pid=os.getpid(),
            host=self._host,
            step=PHASE.step,
            moves=PHASE.count - PHASE.began,
            phase=PHASE.name,
            moved_at=time.time() - self._idle_s,
        )

    def _tell(self) -> None:
        """Writes the stacks of this rank, and tells where it is."""
        self._directory.logs.mkdir(exist_ok=True)
        frames = self._stacks.asked() or main_frames()
        workers = self._stacks.write(stacks_file(self._directory, self._rank))
        record = flight_record()
        write_record(record, record_file(self._directory, self._rank))
        account = Account(
            beat=self._beat(),
            idle_s=time.monotonic() - PHASE.since,
            frames=frames,
            workers=workers,
            groups=groups_of(record),
        )
        self._beats.tell("hung", self._rank, account.told())

    def _leave(self) -> NoReturn:
        """Tells, and ends this process once it is said what has happened."""
        self._tell()
        until = time.monotonic() + 10 * (self._every_s + _ANSWER_S)
        while not self._beats.is_concluded and time.monotonic() < until:
            time.sleep(0.1)
        _exit()

    def _conclude(self) -> NoReturn:
        """Says which rank holds the others up, once all have told, and ends this process."""
        try:
            self._tell()
            accounts = self._gather()
            verdict = judge(accounts)
            text = page(self._directory, accounts, verdict, hang_timeout_s=self._timeout_s)
            with suppress(OSError):
                report_file(self._directory).write_text(text, encoding="utf-8")
            tell(failure_of(self._directory, accounts, verdict))
        finally:
            with suppress(OSError):
                self._beats.conclude("said")
            _exit()

    def _gather(self) -> list[Account]:
        """Returns the accounts of all ranks, once those that can have told."""
        beats = self._beats.read()
        troubles = {rank: trouble_of(beat) for rank, beat in beats.items()}
        self._wait_for({rank for rank, trouble in troubles.items() if not trouble})
        if any(troubles.values()):
            # A stopped one cannot end itself, and the launcher would wait for it.
            awake = {rank for rank, beat in beats.items() if troubles[rank] and wake(beat)}
            self._wait_for(awake)
        told = {rank: Account.heard(one) for rank, one in self._beats.told("hung").items()}
        accounts = [told.get(rank) or self._silent(beat) for rank, beat in beats.items()]
        for place, (rank, beat) in enumerate(beats.items()):
            if troubles[rank]:  # what it has done since it is awake does not count
                idle_s = time.time() - beat.moved_at
                accounts[place] = replace(
                    accounts[place], beat=beat, idle_s=idle_s, trouble=troubles[rank]
                )
        return accounts

    def _wait_for(self, ranks: set[int]) -> None:
        until = time.monotonic() + 2 * self._every_s + _ANSWER_S
        while not ranks <= self._beats.told("hung").keys() and time.monotonic() < until:
            time.sleep(0.1)

    def _silent(self, beat: Beat) -> Account:
        """Returns what is known of a rank that does not tell: perhaps its stack, unasked."""
        idle_s = time.time() - beat.moved_at
        with suppress(OSError):
            text = self._beats.stack_of(beat.rank).read_text(encoding="utf-8")
            if text:
                stacks_file(self._directory, beat.rank).write_text(text, encoding="utf-8")
                return Account(
                    beat=beat,
                    idle_s=idle_s,
                    frames=frames_of(text),
                    trouble="hung in a call that keeps Python's interpreter",
                )
        return Account(beat=beat, idle_s=idle_s, trouble="hung, and gives no answer")


def _bytes_moved() -> int:
    """Returns what this process has read and written so far; 0 where the system does not tell."""
    try:
        with open("/proc/self/io", encoding="ascii") as file:  # noqa: PTH123  often, and quick
            counted = dict(line.split(": ") for line in file.read().splitlines())
    except OSError:
        return 0
    return sum(int(counted[name]) for name in ("rchar", "wchar", "read_bytes", "write_bytes"))


def _exit() -> NoReturn:
    for worker in multiprocessing.active_children():
        worker.kill()  # one that hangs would not see that this process is gone
    # The main thread may be anywhere, and never come back.
    os._exit(HangError.exit_code)

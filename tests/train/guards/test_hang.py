"""The verdict over ranks that do not move, and what it is judged by."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from sailplan.run.paths import RunPaths
from sailplan.train.arguments import collective_timeout
from sailplan.train.guards.hang.beats import LEFT, Beat, Beats
from sailplan.train.guards.hang.processes import trouble_of, wake
from sailplan.train.guards.hang.recorder import Collective, Group, groups_of
from sailplan.train.guards.hang.stacks import Frame, Stacks, frames_of, main_frames
from sailplan.train.guards.hang.verdict import Account, judge
from sailplan.train.guards.hang.watch import Watch

SITE = "/venv/lib/python3.11/site-packages"
SLEEPS = (
    Frame("/data/mine.py", 30, "read"),
    Frame("/code/src/sailplan/data/collator.py", 88, "__call__"),
)
BACKWARD = (Frame(f"{SITE}/torch/autograd/graph.py", 1072, "_engine_run_backward"),)
GATHERS = (
    Frame(f"{SITE}/torch/distributed/distributed_c10d.py", 5055, "all_gather"),
    Frame("/code/src/sailplan/train/ranks.py", 31, "of_all_ranks"),
)
STEPS = (
    Frame(f"{SITE}/torch/optim/adamw.py", 9, "step"),
    Frame("/code/src/sailplan/train/trainer.py", 131, "training_step"),
)
IDLE_WORKER = (Frame("/usr/lib/python3.11/multiprocessing/connection.py", 948, "wait"),)

REDUCE = Collective(kind="all_reduce", shape="[[20]]", frames=BACKWARD)
GATHER = Collective(kind="all_gather", shape="[[1, 13]]", frames=GATHERS)


def beat(rank: int = 0, **own: object) -> Beat:
    values = {"step": 3, "moves": 4, "phase": "stepping", "moved_at": 0.0, "pid": 0, "host": "a"}
    return Beat(session=1.0, rank=rank, **{**values, **own})  # type: ignore[arg-type]


def rank(
    number: int,
    frames: tuple[Frame, ...],
    groups: Mapping[str, Group] | None = None,
    *,
    at: tuple[int, int] = (3, 4),
    phase: str = "stepping",
    trouble: str = "",
    workers: tuple[tuple[Frame, ...], ...] = (),
) -> Account:
    return Account(
        beat=beat(number, step=at[0], moves=at[1], phase=phase),
        idle_s=62.0,
        frames=frames,
        workers=workers,
        groups=groups or {},
        trouble=trouble,
    )


def group(entered: int, done: int, **recent: Collective) -> dict[str, Group]:
    return {
        "0": Group(entered=entered, done=done, recent={int(n[1:]): c for n, c in recent.items()})
    }


LOADS = "waiting for data"
CASES = {
    "sleeps, by the record": (
        [
            rank(0, GATHERS, group(7, 6, n7=GATHER), phase=LOADS),
            rank(1, SLEEPS, group(6, 6), phase=LOADS),
        ],
        "rank 1 hung: waiting for data for 62 s in step 4, in data/mine.py:30 in read, called "
        "from sailplan/data/collator.py:88 in __call__; rank 0 waits in all_gather of [[1, 13]] in "
        "step 4, entered from sailplan/train/ranks.py:31 in of_all_ranks",
    ),
    "sleeps, by the stacks": (
        [rank(0, GATHERS, phase=LOADS), rank(1, SLEEPS, phase=LOADS)],
        "rank 1 hung: waiting for data for 62 s in step 4, in data/mine.py:30 in read, called "
        "from sailplan/data/collator.py:88 in __call__",
    ),
    "a worker sleeps": (
        [
            rank(0, GATHERS, group(7, 6, n7=GATHER)),
            rank(1, IDLE_WORKER, group(6, 6), phase=LOADS, workers=(IDLE_WORKER, SLEEPS)),
        ],
        "rank 1 hung: waiting for data for 62 s in step 4, a DataLoader's worker in data/mine.py",
    ),
    "many wait for one": (
        [
            rank(n, SLEEPS if n == 5 else BACKWARD, group(6 if n == 5 else 7, 6, n7=REDUCE))
            for n in range(8)
        ],
        "rank 5 hung: stepping for 62 s in step 4",
    ),
    "left out, and waits in the next": (
        [
            rank(0, BACKWARD, group(7, 6, n6=GATHER, n7=REDUCE)),
            rank(1, GATHERS, group(7, 6, n6=GATHER, n7=GATHER), at=(3, 5)),
        ],
        "rank 1 has left out a collective, or the others have entered one too many: rank 1 waits "
        "in all_gather of [[1, 13]] in step 4, entered from sailplan/train/ranks.py:31 in "
        "of_all_ranks; rank 0 waits in all_reduce of [[20]] in step 4",
    ),
    "left out, and the next went through on it": (
        [
            rank(0, BACKWARD, group(7, 6, n7=REDUCE)),
            rank(1, GATHERS, group(8, 7, n7=GATHER, n8=GATHER), at=(4, 0)),
        ],
        "rank 1 has left out a collective, or the others have entered one too many: rank 1 was in",
    ),
    "left out by one of three": (
        [rank(n, BACKWARD, group(7, 6, n7=GATHER if n == 1 else REDUCE)) for n in range(3)],
        "rank 1 has left out a collective",
    ),
    "left out, and computes on": (
        [
            rank(0, BACKWARD, group(7, 6, n7=REDUCE)),
            rank(1, SLEEPS, group(6, 6), at=(4, 1)),
        ],
        "rank 1 has left out a collective: rank 0 waits in all_reduce",
    ),
    "stopped": (
        [rank(0, GATHERS, group(7, 6, n7=GATHER)), rank(1, (), trouble="is stopped by a signal")],
        "rank 1 is stopped by a signal: stepping for 62 s in step 4",
    ),
    "the same collective": (
        [rank(n, BACKWARD, group(7, 6, n7=REDUCE)) for n in (0, 1)],
        "rank 0 hung: stepping for 62 s in step 4, in torch/autograd/graph.py:1072 in "
        "_engine_run_backward; all ranks wait in the same place",
    ),
    "stands behind, and no record tells": (
        [rank(0, GATHERS, at=(4, 0)), rank(1, GATHERS)],
        "rank 1 hung: stepping for 62 s in step 4, in torch/distributed/distributed_c10d.py:5055 "
        "in all_gather, called from sailplan/train/ranks.py:31 in of_all_ranks; rank 0, which is "
        "further: stepping for 62 s in step 5",
    ),
    "alone": ([rank(0, STEPS)], "rank 0 hung: stepping for 62 s in step 4, in torch/optim"),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict_names_who_holds_the_others_up(case: str) -> None:
    accounts, words = CASES[case]
    verdict = judge(accounts)
    assert verdict.words.startswith(words)
    assert verdict.rank == int(words.split()[1])


@pytest.mark.parametrize("case", CASES)
def test_verdict_is_the_same_after_the_ranks_have_told_it_through_files(case: str) -> None:
    accounts, _ = CASES[case]
    heard = [Account.heard(json.loads(json.dumps(one.told()))) for one in accounts]
    assert [one for one in heard if one.trouble] == []
    if not any(one.trouble for one in accounts):
        assert judge(heard) == judge(accounts)


def test_beats_of_an_earlier_start_are_not_read(tmp_path: Path) -> None:
    earlier, beats = Beats(tmp_path / "ranks", 1.0), Beats(tmp_path / "ranks", 2.0)
    earlier.begin(0)
    earlier.write(beat(3))
    assert earlier.claim_hang()
    earlier.conclude("said")
    assert earlier.is_concluded

    beats.begin(0)
    assert not beats.is_hung
    assert not earlier.is_hung  # the first rank has taken it away
    assert beats.read() == {}


def test_hang_is_claimed_by_one_rank_and_concluded_for_all(tmp_path: Path) -> None:
    beats, others = Beats(tmp_path / "ranks", 1.0), Beats(tmp_path / "ranks", 1.0)
    beats.begin(0)
    assert (beats.is_hung, beats.is_concluded) == (False, False)
    assert beats.claim_hang()
    assert not others.claim_hang()
    assert (others.is_hung, others.is_concluded) == (True, False)
    beats.conclude("said")
    assert others.is_concluded


def test_last_rank_that_leaves_takes_the_files_away(tmp_path: Path) -> None:
    beats = Beats(tmp_path / "ranks", 1.0)
    beats.begin(0)
    for number in (0, 1):
        beats.write(beat(number))
    beats.end(beat(1))
    assert {number: one.phase for number, one in beats.read().items()} == {0: "stepping", 1: LEFT}
    beats.end(beat(0))
    assert list(tmp_path.iterdir()) == []


def _sleep_below(seconds: float) -> None:
    time.sleep(seconds)


def test_stacks_hold_all_threads_and_the_workers_that_were_forked(tmp_path: Path) -> None:
    stacks = Stacks(tmp_path / "unasked")
    worker = multiprocessing.get_context("fork").Process(target=_sleep_below, args=(60,))
    worker.start()
    try:
        until = time.monotonic() + 20
        while True:  # until it has come so far
            workers = stacks.write(tmp_path / "stacks.txt")
            if [calls[0].name for calls in workers] == ["_sleep_below"]:
                break
            assert time.monotonic() < until, workers
    finally:
        worker.kill()
        worker.join()
        stacks.close()
    text = (tmp_path / "stacks.txt").read_text()
    assert "test_stacks_hold_all_threads" in text
    assert f"worker {worker.pid}" in text


def test_stack_is_written_unasked_when_the_interpreter_is_kept(tmp_path: Path) -> None:
    program = (
        "import ctypes, pathlib, sys\n"
        "from sailplan.train.guards.hang.stacks import Stacks\n"
        "Stacks(pathlib.Path(sys.argv[1])).write_unless_asked_again(0.3)\n"
        "def keeps(): ctypes.PyDLL(None).sleep(1)\n"
        "keeps()\n"
    )
    path = tmp_path / "unasked"
    done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=True)
    assert done.returncode == 0
    assert [call.name for call in frames_of(path.read_text())] == ["keeps", "<module>"]


def test_main_frames_begin_with_the_innermost_call() -> None:
    assert [call.name for call in main_frames()][:2] == [
        "main_frames",
        "test_main_frames_begin_with_the_innermost_call",
    ]


def test_stopped_process_tells_where_it_was_before_it_goes_on(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from sailplan.train.guards.hang.stacks import Stacks\n"
        "stacks = Stacks(pathlib.Path(sys.argv[1]))\n"
        "def stops(): os.kill(os.getpid(), signal.SIGSTOP)\n"
        "stops()\n"
        "print([call.name for call in stacks.asked()])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "unasked")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    told = beat(1, pid=process.pid, host=os.uname().nodename)
    os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped
    assert trouble_of(told) == "is stopped by a signal"
    assert wake(told)
    out, _ = process.communicate(timeout=60)
    assert out.strip() == "['stops', '<module>']"
    assert trouble_of(told) == "is gone"
    assert not wake(told)


def test_rank_that_has_left_is_told_apart_from_one_that_is_gone() -> None:
    assert trouble_of(beat(1, phase=LEFT)) == "has left the others behind"
    assert trouble_of(beat(1, pid=os.getpid(), host="another machine")) == ""
    assert trouble_of(beat(1, pid=os.getpid(), host=os.uname().nodename)) == ""


@pytest.mark.parametrize(
    ("ddp_timeout", "hang_timeout", "expected"),
    [(1800, 600.0, 1860), (60, 0.0, 60), (7200, 600.0, 7200), (10, 4.5, 74)],
)
def test_collectives_outlast_the_hang_watch(
    ddp_timeout: int, hang_timeout: float, expected: int
) -> None:
    seconds, notes = collective_timeout(ddp_timeout, hang_timeout)
    assert seconds == expected
    assert len(notes) == (seconds != ddp_timeout)


def test_watch_leaves_nothing_when_training_ends(tmp_path: Path) -> None:
    watch = Watch(RunPaths(tmp_path), rank=0, session=1.0, hang_timeout_s=600.0)
    watch.start()
    assert json.loads((tmp_path / "ranks" / "rank-0.json").read_text())["pid"] == os.getpid()
    watch.end()
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


WATCHED = (
    "import os, pathlib, sys, time\n"
    "from sailplan.run.paths import RunPaths\n"
    "from sailplan.train.guards.hang.watch import Watch\n"
    "from sailplan.train.phase import PHASE\n"
    "watch = Watch(RunPaths(pathlib.Path(sys.argv[1])), rank=0, session=1.0, hang_timeout_s=0.5)\n"
    "watch.start()\n"
    "PHASE.move('saving', 3)\n"
    "until = time.monotonic() + 1.5\n"
    "with open(os.devnull, 'wb') as file:\n"
    "    while time.monotonic() < until:\n"
    "        time.sleep(0.05)\n"
    "        file.write(bytes(2**20))\n"
    "print('saved', flush=True)\n"
    "def stands_still(): time.sleep(60)\n"
    "stands_still()\n"
)


def test_process_that_writes_is_left_in_peace_until_it_stands_still(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WATCHED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (10, "saved\n"), done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: rank 0 hung: saving for ")
    assert "in <string>:14 in stands_still; " in line
    assert line.endswith("; the same command goes on from the last whole checkpoint")
    assert "stands_still" in (tmp_path / "logs" / "hang.txt").read_text()
    assert "in stands_still" in (tmp_path / "logs" / "stacks-rank-0.txt").read_text()


def test_record_tells_what_is_not_done_whatever_its_sums_say() -> None:
    """What torch calls the last that is done is the last that it has heard of, which may be 4."""
    entries = [
        {
            "frames": [{"name": "step", "filename": "mine.py", "line": 9}],
            "pg_id": 0,
            "process_group": ("0", "default_pg"),
            "collective_seq_id": number,
            "profiling_name": "gloo:all_reduce",
            "input_sizes": [[20]],
            "retired": number < 7,
            "is_p2p": False,
        }
        for number in range(3, 8)
    ]
    status = {"last_enqueued_collective": 7, "last_completed_collective": 4}
    record = {"entries": entries, "pg_status": {"0": status}}

    found = groups_of(pickle.dumps(record))["0"]

    assert (found.entered, found.done, found.waits) == (7, 6, True)
    frames = (Frame("mine.py", 9, "step"),)
    assert found.recent[7] == Collective(kind="all_reduce", shape="[[20]]", frames=frames)
    assert groups_of(b"") == {}

"""How a run stands, read from what it has left: a real one, and what it could have become."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from sailplan.run.metrics import Series
from sailplan.run.paths import RunPaths
from sailplan.run.state import RunState, starting, write_state
from sailplan.supervise.pace import TAIL_BYTES, pace
from sailplan.supervise.runs import find_runs, look_at
from sailplan.supervise.stands import Standing
from tests.support.markdown import tables
from tests.support.runs import ELSEWHERE, change_state, copy_of, held, make_old


@pytest.fixture
def paths(trained_run: Path, tmp_path: Path) -> RunPaths:
    """A finished run, to be changed."""
    return copy_of(trained_run, tmp_path / "run")


@pytest.fixture
def free_pid() -> int:
    """The number of a process that is gone."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def metrics(paths: RunPaths) -> list[dict[str, Any]]:
    return [json.loads(line) for line in paths.metrics_file.read_text().splitlines()]


def stands(paths: RunPaths) -> tuple[str, str]:
    one = look_at(paths.path)
    return one.state, one.why


def test_finished_run_is_told_as_it_was(trained_run: Path) -> None:
    one = look_at(trained_run)
    records = metrics(RunPaths(trained_run))
    assert (one.state, one.why, one.step, one.max_steps) == ("finished", "", 12, 12)
    assert one.loss == [record["loss"] for record in records if "loss" in record][-1]
    assert one.step_s is not None
    assert 0 < one.step_s < records[-1]["time"] - records[0]["time"]
    assert (one.eta_s, one.checkpoint) == (None, 12)
    folders = RunPaths(trained_run).checkpoints()
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert one.checkpoints_bytes == sum(file.stat().st_size for file in files)
    assert (one.strategy, one.processes, one.num_starts) == ("single", 1, 1)


def test_summary_is_json(paths: RunPaths) -> None:
    paths.metrics_file.write_text('{"step": 3, "loss": NaN, "time": 7}\n')
    found = json.loads(json.dumps(look_at(paths.path).as_dict(), allow_nan=False))
    assert (found["path"], found["loss"], found["step"]) == (str(paths.path), None, 12)


def test_run_whose_process_lives_runs_and_says_what_is_left(paths: RunPaths) -> None:
    now = time.time()
    lines = [json.dumps({"step": n, "loss": 2.0, "time": now - 40 + 4 * n}) for n in range(1, 11)]
    paths.metrics_file.write_text("\n".join(lines) + "\n")
    times = {"started_at": now - 40, "updated_at": now}
    change_state(paths, state="running", pid=os.getpid(), max_steps=100, step=10, **times)
    one = look_at(paths.path)
    assert one.state == "running"
    assert one.step_s == pytest.approx(4.0)
    assert one.eta_s == pytest.approx(360.0, abs=5.0)


def test_run_whose_process_is_gone_was_killed(paths: RunPaths, free_pid: int) -> None:
    make_old(paths, time.time() - 720)
    change_state(paths, state="running", pid=free_pid, updated_at=time.time() - 720)
    os.utime(paths.metrics_file, (0, 0))
    why = f"process {free_pid} is gone, its last word came 12 min ago"
    assert stands(paths) == ("killed", why)


def test_run_whose_process_number_another_has_now_was_killed(paths: RunPaths) -> None:
    change_state(paths, state="running", pid=os.getpid(), started_at=1000.0)
    assert stands(paths)[0] == "killed"


def test_run_elsewhere_that_speaks_runs(paths: RunPaths, free_pid: int) -> None:
    change_state(paths, state="running", host=ELSEWHERE, pid=free_pid, updated_at=time.time())
    assert stands(paths) == ("running", "")


def test_run_elsewhere_that_is_silent_was_killed(paths: RunPaths) -> None:
    make_old(paths, time.time() - 720)
    change_state(paths, state="running", host=ELSEWHERE, updated_at=time.time() - 720)
    assert stands(paths) == ("killed", f"no word from {ELSEWHERE} for 12 min")


def test_run_elsewhere_whose_rank_leaves_beats_runs(paths: RunPaths) -> None:
    make_old(paths, time.time() - 720)
    change_state(paths, state="running", host=ELSEWHERE, updated_at=time.time() - 720)
    paths.beats.mkdir()
    (paths.beats / "rank-1.json").write_text("{}")
    assert stands(paths)[0] == "running"


def test_run_elsewhere_that_holds_its_lock_runs_however_silent(paths: RunPaths) -> None:
    make_old(paths, 1000.0)
    change_state(paths, state="running", host=ELSEWHERE, updated_at=1000.0)
    with held(paths.lock_file):
        assert stands(paths) == ("running", "")
    make_old(paths, 1000.0)
    assert stands(paths)[0] == "killed"


def test_run_whose_launcher_is_about_to_tell_of_its_end_still_runs(
    paths: RunPaths, free_pid: int
) -> None:
    started = {"pid": free_pid, "started_at": time.time()}
    change_state(paths, state="running", launcher=os.getpid(), **started)
    assert stands(paths) == ("running", "")


def test_launch_starts_until_its_launcher_is_gone(paths: RunPaths, free_pid: int) -> None:
    change_state(paths, state="stopped", exit_code=75)
    write_state(paths.state_file, starting(paths, "launch 1 ran out of\nmemory"))
    assert stands(paths) == ("starting", "launch 1 ran out of memory")
    assert look_at(paths.path).step == 12
    change_state(paths, pid=free_pid, launcher=free_pid)
    assert stands(paths)[0] == "killed"


def test_launch_elsewhere_may_be_silent_for_long_while_it_starts(paths: RunPaths) -> None:
    make_old(paths, time.time() - 7200)
    change_state(paths, state="starting", host=ELSEWHERE, updated_at=time.time() - 7200)
    assert stands(paths) == ("starting", "")


def test_failed_run_says_why(paths: RunPaths) -> None:
    change_state(paths, state="failed", exit_code=8, why="the loss is NaN at step 3")
    assert stands(paths) == ("failed", "the loss is NaN at step 3")
    change_state(paths, why="")
    assert stands(paths) == ("failed", "exit code 8")
    change_state(paths, exit_code=137)
    assert stands(paths) == ("failed", "exit code 137, as after SIGKILL")


def test_stopped_run_says_why(paths: RunPaths) -> None:
    change_state(paths, state="stopped", exit_code=75, why="SIGTERM came")
    assert stands(paths) == ("stopped", "SIGTERM came")


def test_run_without_a_state_is_unknown_new_or_runs(paths: RunPaths) -> None:
    paths.state_file.write_text("broken")
    assert stands(paths) == ("unknown", "its state.json is missing or broken")
    assert look_at(paths.path).step == 12
    paths.metrics_file.unlink()
    assert stands(paths) == ("new", "it has not begun to train")
    with held(paths.lock_file):
        assert stands(paths)[0] == "running"


def test_newest_checkpoint_that_is_cut_short_does_not_count(paths: RunPaths) -> None:
    with (paths.checkpoint(12) / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert look_at(paths.path).checkpoint == 8
    for folder in paths.checkpoints():
        (folder / "manifest.json").unlink()
    assert look_at(paths.path).checkpoint is None


def test_loss_is_found_behind_many_other_records(paths: RunPaths) -> None:
    wanted = look_at(paths.path).loss
    line = json.dumps({"step": 12, "eval_loss": 1.0, "padding": "x" * 200})
    with paths.metrics_file.open("a") as file:
        file.write(f"{line}\n" * 400)
    assert look_at(paths.path).loss == wanted is not None


def test_metrics_of_any_length_are_read_from_their_end(paths: RunPaths) -> None:
    lines = [json.dumps({"step": n, "loss": 1 / n, "time": float(n)}) for n in range(1, 200_000)]
    paths.metrics_file.write_text("\n".join(lines) + "\n" + '{"step": 200000, "lo')
    change_state(paths, updated_at=1.0)
    one = look_at(paths.path)
    assert (one.step, one.loss, one.step_s) == (199_999, 1 / 199_999, 1.0)


def state(**values: Any) -> RunState:
    fixed = {"state": "running", "max_steps": 100, "pid": 1, "host": ELSEWHERE}
    return RunState(**fixed, **values)


def series(*records: dict[str, Any]) -> Series:
    found = Series()
    for record in records:
        found.add(json.dumps(record))
    return found


def test_pace_is_of_this_launch_alone() -> None:
    records = [{"step": n, "loss": 1.0, "time": 10.0 * n} for n in range(1, 6)]
    again = [{"step": n, "loss": 1.0, "time": 5000.0 + n} for n in range(4, 9)]
    found = series(*records, {"step": 3, "resumed": True, "time": 5000.0}, *again)
    now = state(step=8, started_at=5000.0, updated_at=5008.0)
    assert pace(found, now, now=5008.0) == (1.0, 92.0)


def test_what_is_left_has_its_share_of_evaluations_and_the_time_that_has_gone_by() -> None:
    times = [1, 2, 3, 4, 15, 16, 17, 18, 29]  # an evaluation of ten seconds every fourth step
    found = series(*({"step": n, "loss": 1.0, "time": float(t)} for n, t in enumerate(times)))
    now = state(step=8, started_at=0.0, updated_at=29.0)
    step_s, left_s = pace(found, now, now=30.0)
    assert (step_s, left_s) == (1.0, 3.5 * 92 - 1)


def test_pace_of_a_run_that_logs_seldom_is_that_of_its_state() -> None:
    now = state(step=5, started_at=100.0, updated_at=110.0)
    assert pace(Series(), now, now=110.0) == (2.0, 190.0)
    first = series({"step": 10, "loss": 1.0, "time": 120.0})
    now = state(step=20, started_at=100.0, updated_at=150.0)
    assert pace(first, now, now=150.0) == (3.0, 240.0)


def test_pace_of_a_run_that_has_made_no_step_is_not_known() -> None:
    now = state(step=0, started_at=100.0, updated_at=100.0)
    assert pace(Series(), now, now=110.0) == (None, None)


def test_runs_are_found_in_folders_the_newest_first(trained_run: Path, tmp_path: Path) -> None:
    for number, name in enumerate(["a", "deep/b", "deep/er/c"]):
        paths = copy_of(trained_run, tmp_path / name)
        make_old(paths, 1000.0)
        change_state(paths, updated_at=2000.0 + number)
        os.utime(paths.metrics_file, (0, 0))
    copy_of(trained_run, tmp_path / "a" / "merged" / "inside")
    copy_of(trained_run, tmp_path / ".hidden" / "d")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "only a run file").mkdir()
    (tmp_path / "only a run file" / "run.yaml").write_text("model_name_or_path: a/b\n")
    found = [one.path.relative_to(tmp_path).as_posix() for one in find_runs(tmp_path)]
    assert found == ["deep/er/c", "deep/b", "a"]
    assert [one.path for one in find_runs(tmp_path / "a")] == [tmp_path / "a"]


def test_look_at_hundred_runs_reads_little_of_their_files(
    trained_run: Path, tmp_path: Path
) -> None:
    """However long they have trained: on a network file system each byte is waited for."""
    for number in range(100):
        paths = copy_of(trained_run, tmp_path / str(number))
        lines = paths.metrics_file.read_text()
        paths.metrics_file.write_text(lines * (1 + 2**20 // len(lines)))

    def num_read() -> int:
        words = Path("/proc/self/io").read_text().split()
        return int(words[words.index("rchar:") + 1])

    before = num_read()
    assert len(find_runs(tmp_path)) == 100
    assert num_read() - before < 100 * 2 * TAIL_BYTES


def test_page_of_runs_lists_every_state() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "runs.md"
    states = [f"`{state}`" for state in get_args(Standing)]
    assert states in [[row[0] for row in table] for table in tables(page)]

"""Comparisons as users make them: `sailplan compare` on a run that real training has left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sailplan.evaluate.comparison import Comparison
from sailplan.run.metrics import read_metrics
from tests.support.compared import adapter_run, compared, here, keys, texts

TWO_RANKS = ("--launch.processes", "2")


@pytest.fixture(scope="module")
def tuned(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter of a vision-language model and two checkpoints; shared."""
    return adapter_run(tmp_path_factory.mktemp("tuned"), tiny_model("qwen2_vl"))


@pytest.fixture(scope="module")
def found(tuned: Path) -> Comparison:
    """Its comparison in one go, greedy; kept in the run's directory."""
    return compared(tuned, "--greedy")[0]


@pytest.fixture
def run(tuned: Path, found: Comparison, tmp_path: Path) -> Path:
    """A copy of the run without any answers, over the same data and adapter."""
    copy = Path(shutil.copytree(tuned, tmp_path / "run"))  # keeps the files' times
    shutil.rmtree(copy / "compare")
    for name in ("run.yaml", "train.yaml"):
        file = copy / name
        file.write_text(file.read_text().replace(str(tuned), str(copy)))
    return copy


def test_base_and_tuned_answer_the_held_out_rows_over_one_loaded_model(
    tuned: Path, found: Comparison
) -> None:
    assert [side.name for side in found.sides] == ["base", "tuned"]
    assert len(found.rows) == found.num_held_out == found.num_loss_rows == 12
    said = texts(found)
    assert any(row["base"] != row["tuned"] for row in said.values())
    for row in found.rows:
        assert row.prompt == "<image>Which colour is this?"
        assert row.reference.split()[0] in ("red", "green", "blue")
        assert [(tuned / "compare" / "images" / name).is_file() for name in row.images] == [True]
        for answer in row.answers.values():
            assert 1 <= answer.num_tokens <= 12
        assert row.scores["tuned"].keys() == row.scores["base"].keys() >= {"loss", "rouge_l"}
    assert [row.place for row in found.rows] == sorted(
        (row.place for row in found.rows), key=lambda place: int(place.split()[1])
    )


def test_held_out_loss_is_that_of_the_last_evaluation(tuned: Path, found: Comparison) -> None:
    evaluations = [one for one in read_metrics(tuned / "metrics.jsonl") if "eval_loss" in one]
    (loss,) = (score for score in found.scores if score.name == "loss")
    assert loss.sides["tuned"].value == pytest.approx(evaluations[-1]["eval_loss"], abs=1e-4)
    assert loss.num_rows == 12
    assert loss.sides["base"].value > loss.sides["tuned"].value
    assert loss.changes["tuned"].verdict == "better"


def test_second_comparison_asks_nothing_and_loads_no_model(tuned: Path, found: Comparison) -> None:
    before = keys(tuned)
    again, out, err = compared(tuned, "--greedy")
    assert "loading" not in err
    assert keys(tuned) == before
    assert (again.rows, again.scores) == (found.rows, found.scores)
    assert "look at the answers: sailplan report" in out


def test_killed_comparison_goes_on_with_what_is_missing(run: Path, found: Comparison) -> None:
    command = [sys.executable, "-m", "sailplan", "compare", str(run), "--greedy"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
        ends = time.monotonic() + 120
        while sum('"answer"' in line for line in _lines(run)) < 4:
            assert one.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.005)
        one.send_signal(signal.SIGKILL)
    done = keys(run)
    again, _, _ = compared(run, "--greedy")
    assert len(done) < 4 * 12
    assert keys(run)[: len(done)] == done
    assert len(keys(run)) == len(set(keys(run))) == 4 * 12
    assert texts(again) == texts(found)
    assert again.scores == found.scores


def _lines(run: Path) -> Iterator[str]:
    for file in (run / "compare").glob("journal-*.jsonl"):
        yield from file.read_text().splitlines()


@pytest.mark.parametrize(
    "greedy", [pytest.param(True, marks=pytest.mark.slow), False], ids=["greedy", "sampled"]
)
def test_two_ranks_give_the_rows_of_one(run: Path, found: Comparison, greedy: bool) -> None:
    flags = ["--greedy"] if greedy else ["--generation.temperature", "1.5"]
    two, _, _ = compared(run, *flags, *TWO_RANKS)
    files = sorted(file.name for file in (run / "compare").glob("journal-*.jsonl"))
    assert files == ["journal-0.jsonl", "journal-1.jsonl"]
    assert len(keys(run)) == len(set(keys(run))) == 4 * 12
    if greedy:
        assert texts(two) == texts(found)
    else:
        shutil.rmtree(run / "compare")
        assert texts(two) == texts(compared(run, *flags)[0])
        other = compared(run, *flags, "--generation.seed", "1")[0]
        assert texts(two) != texts(other)


def test_fewer_samples_are_some_of_the_same_and_more_ask_only_what_is_new(run: Path) -> None:
    few, _, _ = compared(run, "--greedy", "--samples", "5", "--loss-samples", "0")
    assert len(keys(run)) == 2 * 5
    assert few.num_loss_rows == 0
    assert "loss" not in [score.name for score in few.scores]
    more, _, _ = compared(run, "--greedy", "--samples", "9", "--loss-samples", "3")
    assert len(keys(run)) == 2 * (9 + 3)
    assert {row.place for row in few.rows} < {row.place for row in more.rows}
    assert {place: texts(more)[place] for place in texts(few)} == texts(few)


def test_base_alone_before_training_and_its_answers_are_kept_for_later(
    run: Path, found: Comparison, tmp_path: Path
) -> None:
    early = tmp_path / "early"
    file = tmp_path / "early.yaml"
    file.write_text((run / "run.yaml").read_text().replace(str(run), str(early)))
    code, out, err = here("compare", str(file), "--greedy", "--samples", "4")
    assert code == 0, err
    assert not (early / "run.yaml").exists()  # the directory is still free for the run itself
    assert "tuned" not in out
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, early / name)
    code, _, err = here("compare", str(file), "--greedy", "--samples", "4")
    assert code == 0, err
    records = [json.loads(line) for line in _lines(early)]
    assert sum("answer" in record for record in records) == 2 * 4


def test_several_checkpoints_over_one_loaded_model_answer_as_each_alone(
    run: Path, found: Comparison
) -> None:
    both, _, err = compared(
        run, "--greedy", "--tuned", "checkpoint-3", "--tuned", "checkpoint-6", "--tuned", str(run)
    )
    assert [side.name for side in both.sides] == ["base", "checkpoint-3", "checkpoint-6", "run"]
    assert err.count("loading") == 1
    for place, said in texts(both).items():
        assert said["run"] == said["checkpoint-6"] == texts(found)[place]["tuned"]
    alone, _, _ = compared(run, "--greedy", "--tuned", "checkpoint-3", "--samples", "12")
    assert {place: said["checkpoint-3"] for place, said in texts(alone).items()} == {
        place: said["checkpoint-3"] for place, said in texts(both).items()
    }


def test_users_own_score_and_another_split_are_taken(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(answer, reference, row):\n    return {'length': len(reference)}\n"
    )
    monkeypatch.chdir(tmp_path)
    few = ["--greedy", "--samples", "3", "--loss-samples", "0"]
    found, _, _ = compared(run, *few, "--split", "train", "--score", "mine:score")
    assert (found.split, found.num_held_out) == ("train", 28)
    (length,) = (score for score in found.scores if "length" in score.name)
    assert length.sides["base"].value == sum(len(row.reference) for row in found.rows) / 3


def test_rank_that_fails_is_named_and_what_others_answered_is_kept(run: Path) -> None:
    (run / "compare").mkdir()
    (run / "compare" / "journal-1.jsonl").symlink_to(run / "missing" / "file")  # not to be written
    code, _, err = here("compare", str(run), "--greedy", *TWO_RANKS)
    assert code == 8
    assert "rank 1 failed with exit code 7: cannot write" in err
    assert err.strip().endswith("1 of 2 ranks failed; the same command goes on")
    assert (run / "compare" / "journal-0.jsonl").stat().st_size


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--tuned", "nowhere"], 9, "nowhere cannot be read"),
        (["--split", "nowhere"], 4, "no rows in a split 'nowhere'"),
        (["--generation.top_p", "2"], 2, "generation.top_p is '2'"),
        (["--score", "nowhere:score"], 2, "nowhere"),
        (["--generaton.top_p", "1"], 2, "unknown flag"),
        (["--samples", "0", "--loss-samples", "0"], 2, "leave nothing to compare"),
    ],
)
def test_mistake_is_one_line(tuned: Path, flags: list[str], code: int, message: str) -> None:
    found, _, err = here("compare", str(tuned), *flags)
    assert found == code, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_process_ids_of_ranks_are_gone_when_the_command_is_killed(run: Path) -> None:
    command = [sys.executable, "-m", "sailplan", "compare", str(run), "--greedy", *TWO_RANKS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
        ends = time.monotonic() + 120
        while not list((run / "compare").glob("journal-*.jsonl")):
            assert one.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.01)
        ranks = Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text().split()
        assert len(ranks) == 2
        one.send_signal(signal.SIGKILL)
    ends = time.monotonic() + 20
    while any(_alive(int(rank)) for rank in ranks):
        assert time.monotonic() < ends
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()

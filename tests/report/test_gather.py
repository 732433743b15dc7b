"""What is told of a run: real directories, resumed ones, and files full of rubbish."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sailplan.data.facts import Split
from sailplan.evaluate.comparison import (
    Answer,
    Change,
    Comparison,
    Estimate,
    Row,
    Score,
    Side,
    write_comparison,
)
from sailplan.plan.measured import Measured
from sailplan.plan.record import Plan
from sailplan.records import to_json
from sailplan.report.gather import data_of, gather, is_there
from sailplan.report.reading import fits, record_of
from sailplan.report.record import Curve, Report
from sailplan.run.config import Run
from sailplan.run.metrics import append_metrics
from sailplan.run.paths import RunPaths
from sailplan.supervise.attempt_log import Attempt, append_attempts
from tests.plan.made import planner
from tests.plan.test_measured import write as write_measured
from tests.support.runs import change_state

ESTIMATE = Estimate(value=0.5, low=0.4, high=0.6)
COMPARISON = Comparison(
    sides=(Side(name="base", model="a/b"), Side(name="tuned", model="a/b", adapter="run")),
    rows=(
        Row(
            place="row 3",
            prompt="<image> What is it?",
            reference="a boat",
            images=("3-0.webp",),
            answers={"base": Answer(text="a car", num_tokens=3, ended=True)},
            scores={"base": {"rouge_l": 0.5}},
        ),
    ),
    scores=(
        Score(
            name="rouge_l",
            better="higher",
            num_rows=1,
            sides={"base": ESTIMATE, "tuned": ESTIMATE},
            changes={"tuned": Change(difference=ESTIMATE, p_value=0.5, verdict="unclear")},
        ),
    ),
    split="test",
    num_held_out=4,
    num_loss_rows=0,
    generation={"temperature": 0.0},
    made_at=1.0,
)
SPLIT = Split(
    name="train",
    num_rows=20,
    num_tokens=1000,
    num_trained_tokens=400,
    num_images=20,
    num_image_tokens=320,
    quantiles=(("least", 20), ("median", 50), ("95 %", 90), ("most", 100)),
)


def answer(step: int, text: str, row: str = "row 21") -> dict[str, Any]:
    """A record of generations.jsonl."""
    asked = {"prompt": "<image> What is it?", "reference": "a boat", "images": ["21-0.webp"]}
    return {"step": step, "row": row, **asked, "answer": text}


@pytest.fixture
def paths(trained_run: Path, tmp_path: Path) -> RunPaths:
    """A trained run without its weights, to which nothing was added."""
    heavy = shutil.ignore_patterns("checkpoint-*", "*.safetensors", "tokenizer.json")
    return RunPaths(Path(shutil.copytree(trained_run, tmp_path / "my-run", ignore=heavy)))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planner(tmp_path_factory.mktemp("planned")).plan()


@pytest.fixture
def full(paths: RunPaths, plan: Plan) -> RunPaths:
    """A trained run with all that a directory can have."""
    write_measured(paths.path, plan)
    commit = {"hash": "0123abcd" * 5, "dirty": True}
    environment = json.loads(paths.environment_file.read_text())
    paths.environment_file.write_text(json.dumps({**environment, "commit": commit}))
    pin = {"kind": "model", "name": "a/b", "revision": "main", "commit": "f" * 40}
    paths.revisions_file.write_text(json.dumps([pin]))
    data = {"splits": [to_json(SPLIT)], "notes": ["2 rows were too long"]}
    paths.data_file.write_text(json.dumps(data))
    said = [answer(4, "a car"), answer(8, "a boat")]
    paths.generations_file.write_text("".join(json.dumps(one) + "\n" for one in said))
    paths.comparisons.mkdir()
    write_comparison(paths.comparison_file, COMPARISON)
    return paths


def facts(report: Report) -> dict[tuple[str, str], str]:
    return {(fact.group, fact.name): fact.value for fact in report.facts}


def curve(report: Report, name: str) -> Curve:
    return next(curve for curve in report.curves if curve.name == name)


def test_trained_run_tells_what_was_run(paths: RunPaths) -> None:
    report = gather(paths.path)

    found = facts(report)
    run = Run.from_file(paths.run_file)
    assert (report.name, report.path, report.state) == ("my-run", str(paths.path), "finished")
    assert report.command == paths.command_file.read_text().strip()
    assert found["model", "model"] == run.get("model_name_or_path")
    assert found["method", "method"] == "full fine-tuning"
    assert found["training", "batch"] == "2 rows: micro batch 2 × accumulation 1 × 1 rank"
    assert found["training", "learning rate"] == "0.001"
    assert found["training", "precision"] == "float32"
    assert found["hardware", "GPUs"] == "none, trained on the CPU"
    assert "torch" in {name for group, name in found if group == "versions"}
    assert "finished at step 12" in report.launches[0]
    assert [(split.name, split.num_rows) for split in report.splits] == [("train", 20), ("eval", 4)]
    assert [said.step for said in report.watched[0].said] == [4, 8, 12]
    assert (report.memory, report.comparison) == (None, None)


def test_curves_are_what_was_logged(paths: RunPaths) -> None:
    records = [json.loads(line) for line in paths.metrics_file.read_text().splitlines()]

    report = gather(paths.path)

    assert [curve.name for curve in report.curves] == [
        *("loss", "mean_token_accuracy", "perplexity", "learning_rate", "grad_norm"),
        *("tokens_per_s", "data_wait_share"),
    ]
    training, held_out = curve(report, "loss").lines
    assert training.points == tuple((r["step"], r["loss"]) for r in records if "loss" in r)
    assert held_out.points == tuple(
        (r["step"], r["eval_loss"]) for r in records if "eval_loss" in r
    )
    assert (training.dotted, held_out.dotted) == (False, True)
    assert curve(report, "data_wait_share").share
    assert report.marks == ()


def test_directory_with_all_files_fills_every_part(full: RunPaths) -> None:
    report = gather(full.path)

    found = facts(report)
    assert found["versions", "commit"].startswith("0123abcd")
    assert found["versions", "commit"].endswith("with changes that are not committed")
    assert found["method", "trained parameters"].endswith("%)")
    assert report.memory is not None
    assert sum(size for _, size in report.memory.parts) == report.memory.planned_bytes
    assert report.memory.active_bytes == pytest.approx(1.2 * report.memory.planned_bytes, rel=0.01)
    assert report.memory.words.startswith("measured: peak ")
    sizes = [size for _, size in report.memory.parts]
    assert sizes == sorted(sizes, reverse=True)
    assert " per GPU" in report.reasons[0]
    assert len(report.reasons) > 2
    assert report.splits == (SPLIT,)
    assert report.data_notes == ("2 rows were too long",)
    assert report.comparison == COMPARISON
    (watched,) = report.watched
    assert watched.images == ("generations/21-0.webp",)
    assert [(said.step, said.text) for said in watched.said] == [(4, "a car"), (8, "a boat")]


def test_adapter_and_commits_are_told(full: RunPaths) -> None:
    full.run_file.write_text(
        f"model_name_or_path: a/b\ndataset_name: c/d\noutput_dir: {full.path}\nuse_peft: true\n"
        "load_in_4bit: true\nlora_r: 8\nlora_target_modules: [q_proj, v_proj]\nmethod: qlora\n"
        "vision_tower_learning_rate: 1e-5\nattn_implementation: sdpa\n"
    )
    full.plan_file.unlink()
    found = facts(gather(full.path))
    assert found["model", "revision"] == f"{'f' * 40} (main)"
    assert found["model", "attention"] == "sdpa"
    assert found["method", "method"] == "QLoRA"
    assert (found["method", "rank"], found["method", "targets"]) == ("8", "q_proj, v_proj")
    assert found["method", "quantised"] == "nf4"
    assert found["training", "learning rate of the vision tower"] == "1e-05"


def test_run_that_went_back_and_went_on_is_marked(paths: RunPaths) -> None:
    """As the launches of a run write it that was killed after step 11 and stopped at step 12."""
    lines = paths.metrics_file.read_text().splitlines()
    first = [line for line in lines if json.loads(line)["step"] <= 11]
    paths.metrics_file.write_text("\n".join(first) + "\n")
    append_metrics(paths.metrics_file, {"step": 8, "resumed": True})
    again = time.time()
    for step in (9, 10, 11, 12):
        append_metrics(paths.metrics_file, {"step": step, "loss": float(step)})
    append_metrics(paths.metrics_file, {"step": 12, "resumed": True})
    append_metrics(paths.metrics_file, {"step": 13, "loss": 13.0})
    old = json.loads(paths.attempts_file.read_text())
    second = {
        **old,
        "number": 2,
        "started_at": again - 9,
        "ended_at": time.time(),
        "kind": "stopped",
    }
    append_attempts(paths.attempts_file, [Attempt(**second)])

    report = gather(paths.path)

    assert [(mark.step, mark.kind) for mark in report.marks] == [(8, "rollback"), (12, "resume")]
    words = "launch 2 went on from step 8; steps 9 to 11 were done again"
    assert report.marks[0].words == words
    training = dict(curve(report, "loss").lines[0].points)
    assert [*training] == list(range(1, 14))
    assert training[9] == 9.0  # what was given up is not shown
    assert "stopped at step 12" in report.launches[1]


def test_launch_that_runs_is_told(paths: RunPaths) -> None:
    now = time.time() + 10
    change_state(paths, state="running", exit_code=None, started_at=now, updated_at=now, step=7)
    report = gather(paths.path)
    assert report.launches[-1].startswith("launch 2, since ")
    assert report.launches[-1].endswith("at step 7")


def test_values_that_are_no_numbers_are_left_out(paths: RunPaths) -> None:
    bad = [float("nan"), float("inf"), "high", None, True, 10**400, [1], {"a": 1}]
    paths.metrics_file.unlink()
    for step, value in enumerate(bad):
        append_metrics(paths.metrics_file, {"step": step, "loss": value, "grad_norm": 1.0})
    append_metrics(paths.metrics_file, {"step": 10**400, "loss": 1.0, "grad_norm": 1.0})
    append_metrics(paths.metrics_file, {"step": -1, "loss": 1.0, "grad_norm": 1.0})
    report = gather(paths.path)
    assert [curve.name for curve in report.curves] == ["grad_norm"]
    assert len(report.curves[0].lines[0].points) == len(bad)


def test_each_learning_rate_of_the_records_is_a_line(paths: RunPaths) -> None:
    rates = {"learning_rate": 1e-4, "vision_tower_learning_rate": 1e-5}
    append_metrics(paths.metrics_file, {"step": 13, **rates})
    lines = curve(gather(paths.path), "learning_rate").lines
    assert [line.name for line in lines] == ["learning rate", "vision tower"]


def test_answer_of_an_evaluation_that_was_done_again_counts(paths: RunPaths) -> None:
    said = [answer(8, "old"), answer(4, "a car"), answer(8, "new"), answer(4, "x", row="row 22")]
    paths.generations_file.write_text("".join(json.dumps(one) + "\n" for one in said))
    first, second = gather(paths.path).watched
    assert [one.text for one in first.said] == ["a car", "new"]
    assert (second.place, len(second.said)) == ("row 22", 1)


def test_comparison_before_any_training_is_told(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "out")
    paths.comparisons.mkdir(parents=True)
    write_comparison(paths.comparison_file, COMPARISON)
    file = tmp_path / "run.yaml"
    file.write_text(f"model_name_or_path: a/b\ndataset_name: c/d\noutput_dir: {paths.path}\n")

    assert is_there(paths.path)
    report = gather(paths.path, asked=Run.from_file(file))

    assert (report.state, report.comparison) == ("new", COMPARISON)
    assert facts(report)["model", "model"] == "a/b"
    assert (report.curves, report.launches, report.command) == ((), (), "")


def test_folder_without_a_run_has_nothing_to_report(tmp_path: Path) -> None:
    assert not is_there(tmp_path)


def test_secret_is_never_told(full: RunPaths) -> None:
    token, password = "hf_" + "a" * 30, "https://me:sesame@host/data.jsonl"
    full.run_file.write_text(
        f"model_name_or_path: {token}\ndataset_name: {password}\noutput_dir: {full.path}\n"
        f"hub_token: {token}\n"
    )
    full.command_file.write_text(f"accelerate launch --hub_token {token}\n")
    change_state(full, state="failed", why=f"cannot read {password}")
    attempt = json.loads(full.attempts_file.read_text())
    full.attempts_file.write_text(json.dumps({**attempt, "kind": "user", "error": password}))
    full.data_file.write_text(json.dumps({"splits": [], "notes": [f"read from {password}"]}))

    told = json.dumps(to_json(gather(full.path)))

    assert "sesame" not in told
    assert token not in told


# Broken files

FILES = (
    *("run_file", "command_file", "environment_file", "revisions_file", "plan_file"),
    *("measured_file", "metrics_file", "generations_file", "data_file", "comparison_file"),
    *("state_file", "attempts_file"),
)
RUBBISH = {
    "nothing": b"",
    "binary": bytes(range(256)) * 20,
    "null": b"null",
    "number": b"17",
    "list": b'[1, "a", null, {"a": [1]}]\n' * 3,
    "object": b'{"step": "x", "splits": {"a": 1}, "packages": [], "machine": 3, "state": {}}\n',
    "nested": b"[" * 100_000,
    "huge": b'{"step": ' + b"9" * 5000 + b', "loss": 1}\n',
    "half": b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo',
    "utf16": '{"a": 1}'.encode("utf-16"),
}


PARTS = {
    "plan_file": ("memory", "reasons", "facts"),
    "measured_file": ("memory",),
    "metrics_file": ("curves", "marks"),
    "generations_file": ("watched",),
    "data_file": ("splits", "data_notes"),
    "comparison_file": ("comparison",),
    "command_file": ("command",),
    "state_file": ("state", "why"),
    "attempts_file": ("launches", "facts"),
}
"""What each file fills; the others fill facts."""


def spoil(path: Path) -> Iterator[str]:
    """Puts other things in the place of a file, and yields what each is."""
    for kind, content in RUBBISH.items():
        path.write_bytes(content)
        yield kind
    path.unlink()
    yield "missing"
    path.mkdir()
    yield "folder"


@pytest.mark.parametrize("name", FILES)
def test_broken_file_empties_its_own_part_alone(full: RunPaths, name: str) -> None:
    before = to_json(gather(full.path))
    for kind in spoil(getattr(full, name)):
        report = to_json(gather(full.path))
        own = (*PARTS.get(name, ("facts",)), "made_at")
        others = [part for part in before if part not in own and report[part] != before[part]]
        assert not others, kind
        for part in (
            own[:-1] if name in ("data_file", "comparison_file", "generations_file") else ()
        ):
            assert not report[part], kind


def changed(value: Any) -> Iterator[Any]:
    """Yields a JSON value with one of its parts in another type each time."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield {name: old for name, old in value.items() if name != key}
            yield from ({**value, key: other} for other in changed(item))
    elif isinstance(value, list):
        yield {}
        for place, item in enumerate(value[:1]):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in changed(item))
    else:
        yield [] if not isinstance(value, str) else 7


@pytest.mark.parametrize("name", ["comparison_file", "data_file", "measured_file"])
def test_value_of_another_type_is_not_passed_on(full: RunPaths, name: str) -> None:
    whole = json.loads(getattr(full, name).read_text())
    others = list(changed(whole))
    assert len(others) > 10
    for other in others:
        if name == "comparison_file":
            found = record_of(Comparison, other)
            assert found is None or fits(Comparison, found)
        elif name == "data_file":
            assert all(isinstance(split.num_rows, int) for split in data_of(other).splits)
        else:
            found = record_of(Measured, other)
            assert found is None or found.words()


def test_comparison_of_another_version_is_none() -> None:
    fields = to_json(COMPARISON)
    assert record_of(Comparison, fields) == COMPARISON
    assert record_of(Comparison, {**fields, "verdict": "good"}) is None
    assert record_of(Comparison, {**fields, "sides": "base"}) is None

"""The page of the first run, carried out: train QLoRA, compare, merge, compare what was merged."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sailplan import files
from sailplan.demo.catalogue import write_catalogue
from sailplan.demo.model import build_model
from sailplan.evaluate.comparison import Comparison, read_comparison
from tests.support.markdown import blocks
from tests.support.rows import draw

pytestmark = pytest.mark.timeout(900)  # ten commands, imports and all

PAGE = Path(__file__).resolve().parents[1] / "docs" / "first-run.md"
RUN = "qwen2_vl_7b-qlora-1x24gb"
OUTPUT = Path("runs") / "qwen2_vl_7b-qlora-amazon"
HERE = ["--launch.cpu", "true"]
SMALL = {
    "inspect": HERE,
    "plan": [],
    "train": [*HERE, "--max_steps", "3", "--eval_size", "12", "--learning_rate", "0.02"],
    "compare": [*HERE, "--generation.max_new_tokens", "12"],
    "report": [],
    "merge": [],
    "generate": ["--max_new_tokens", "4"],
}
"""What makes a command fit a machine without a GPU, and its time."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Comparison]]:
    """Carries the page out; returns where, and each comparison in its turn.

    Model and data are the demo's, whose rows have the columns of the how-to's.
    """
    folder = tmp_path_factory.mktemp("first")
    write_catalogue(folder / "catalogue", num_train=40, num_test=1, seed=0)
    (folder / "catalogue" / "test.jsonl").unlink()  # the how-to's data have one split
    texts = [row["description"] for row in _rows(folder / "catalogue" / "train.jsonl")]
    build_model(folder / "model", texts=texts, seed=0)
    draw(folder / "shoe.png", colour="red", size=(80, 60))
    written = yaml.safe_load((files.folder("launch") / f"{RUN}.yaml").read_text())
    written |= {"model_name_or_path": str(folder / "model"), "dataset_name": "catalogue"}
    (folder / RUN).write_text(yaml.safe_dump(written))
    found = []
    lines = [line for block in blocks(PAGE) for line in block.text.splitlines()]
    for line in lines:
        program, verb, *rest = shlex.split(line, comments=True)
        assert program == "sailplan"
        rest = ["12" if part == "64" else part for part in rest] + SMALL[verb]
        ended = subprocess.run(
            [sys.executable, "-m", "sailplan", verb, *rest],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ended.returncode in ((0, 10) if verb == "inspect" else (0,)), (
            line,
            ended.stdout[-2000:],
            ended.stderr[-4000:],
        )
        if verb == "compare":
            found.append(read_comparison(folder / OUTPUT / "compare" / "comparison.json"))
    return folder, found


def _rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_loop_of_the_how_to_compares_base_adapter_and_merged(
    done: tuple[Path, list[Comparison]],
) -> None:
    before, tuned, merged = done[1]
    assert [side.name for side in before.sides] == ["base"]
    assert [side.name for side in tuned.sides] == ["base", "tuned"]
    assert [side.name for side in merged.sides] == ["base", OUTPUT.name, "merged"]
    assert before.generation["temperature"] == 0.8
    for comparison in (before, tuned, merged):
        assert len(comparison.rows) == 12
    # The same adapter, asked once: its answers and losses are those of the comparison before.
    for early, late in zip(tuned.rows, merged.rows, strict=True):
        assert late.answers["base"] == early.answers["base"]
        assert late.answers[OUTPUT.name] == early.answers["tuned"]
    losses = {
        name: score.sides[name].value
        for score in merged.scores
        if score.name == "loss"
        for name in score.sides
    }
    assert losses[OUTPUT.name] < losses["base"] - 0.1
    assert losses["merged"] == pytest.approx(losses[OUTPUT.name], abs=0.1)


def test_report_of_the_loop_is_one_file_with_every_answer(
    done: tuple[Path, list[Comparison]],
) -> None:
    page = (done[0] / OUTPUT / "report.html").read_text(encoding="utf-8")
    assert "<title>" in page
    assert page.count("data:image/webp;base64,") >= 12
    assert "merged" in page

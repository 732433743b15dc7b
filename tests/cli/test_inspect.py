"""`sailplan inspect`: what it prints, its codes, and how mistakes end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_main import sailplan
from tests.inspect.planted import chat, clean_rows, planted_rows, write_rows

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    """A run on `rows.json` beside it, which a test writes."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model_name_or_path: {tiny_model('qwen2_vl')}\ndataset_name: {tmp_path}/rows.json\n"
        f"per_device_train_batch_size: 2\noutput_dir: {tmp_path}/out\n"
    )
    return path


@pytest.mark.parametrize("batching", ["pack", "pad"])
def test_sample_is_printed_by_what_its_tokens_are_for(run_file: Path, batching: str) -> None:
    rows = clean_rows(run_file.parent, 2)
    rows[1]["messages"][1]["content"] = "A red thing, and a good deal more of it."
    write_rows(run_file.parent, rows)

    code, out, err = sailplan("inspect", str(run_file), "--samples", "2", "--batching", batching)

    assert code == 0, err
    assert "image clean-0.png, 84×56" in out
    assert re.search(
        r"  image \| <\|vision_start\|><\|image_pad\|>×6 <\|vision_end\|>\n"
        r" context \| What is number 0\?<\|im_end\|>⏎<\|im_start\|>assistant⏎\n"
        r" trained \| A red thing, 0\.<\|im_end\|>\n"
        r" context \| ⏎\n" + r" padding \| <padding ×\d+>\n" * (batching == "pad"),
        out,
    )
    assert ("<padding" in out) is (batching == "pad")
    assert out.rstrip().endswith("nothing to find fault with")
    assert not (run_file.parent / "out").exists()


@pytest.mark.parametrize(("extra", "code"), [([], 0), (["copy"], 10), (["copy", "gone"], 4)])
def test_exit_code_is_that_of_the_worst_finding(
    run_file: Path, extra: list[str], code: int
) -> None:
    rows = clean_rows(run_file.parent, 3)
    rows += [rows[0]] * ("copy" in extra)
    rows += [chat("What?", "A thing.", images=["gone.png"])] * ("gone" in extra)
    write_rows(run_file.parent, rows)

    assert sailplan("inspect", str(run_file))[0] == code


def test_json_holds_findings_with_rows_and_every_token(run_file: Path) -> None:
    rows, numbers = planted_rows(run_file.parent / "data")
    data = write_rows(run_file.parent / "data", rows)

    code, out, _ = sailplan(
        "inspect", str(run_file), "--json", "--dataset_name", str(data), "--max_length", "256"
    )

    found = json.loads(out)
    assert (code, found["exit_code"]) == (4, 4)
    assert {f["name"]: f["rows"] for f in found["findings"]} == {
        name: [number] for name, number in numbers.items()
    }
    sample = found["samples"][0]
    for kind, count in sample["num_tokens"].items():
        assert count == sum(
            piece["count"] * len(piece["ids"])
            for piece in sample["tokens"]
            if piece["kind"] == kind
        )
    assert found["padding"]["micro_batch_size"] == 2


def test_colours_come_on_a_terminal_and_text_cannot_steer_it(run_file: Path) -> None:
    rows = [{"images": [], "messages": chat("Ring \x1b]0;owned\x07?", "No\x1b[2J.")["messages"]}]
    write_rows(run_file.parent, rows)
    out = on_a_terminal("inspect", str(run_file), "--samples", "1")

    assert "\x1b]0;owned" not in out
    assert "\x1b[2J" not in out
    assert "\ufffd[2J." in re.sub(r"\x1b\[[\d;]*m", "", out)
    trained, context = (re.search(rf"\x1b\[([\d;]+)m{word}", out) for word in ("No", " trained "))
    assert trained
    assert context
    assert trained[1] == context[1]  # the legend's own colour


def on_a_terminal(*arguments: str) -> str:
    """Runs the command line on a terminal of its own, and returns all that it shows there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sailplan", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux says when the last writer is gone
        while piece := os.read(ours, 1 << 16):
            shown += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.yaml"], 2, "there is no run file"),
        (["RUN", "--dataset_name", "/nowhere/rows.json"], 4, "/nowhere/rows.json"),
        (["RUN", "--model_name_or_path", "/nowhere"], 3, "/nowhere"),
        (["RUN", "--html", "/proc/page.html"], 7, "cannot write /proc/page.html"),
        (["RUN", "--eval_size", "9"], 2, "eval_size 9 of 2 rows"),
    ],
)
def test_mistake_is_one_line_with_its_code(
    run_file: Path, arguments: list[str], code: int, message: str
) -> None:
    write_rows(run_file.parent, clean_rows(run_file.parent, 2))
    words = [str(run_file) if word == "RUN" else word for word in arguments]

    found, _, err = sailplan("inspect", *words)

    assert found == code
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1

"""`sailplan generate`: what is printed, and how mistakes end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sailplan.cli.generate import _write
from sailplan.data.sample import Message, Part
from sailplan.evaluate.generate import Question, Sampling, generate
from sailplan.evaluate.speaker import load_speaker
from tests.cli.test_main import sailplan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (56, 84), "red").save(tmp_path / "red.png")
    Image.new("RGB", (84, 56), "blue").save(tmp_path / "blue.png")
    (tmp_path / "page.png").write_text("<!doctype html><html></html>")
    return tmp_path


def test_generate_prints_the_models_answer_alone(
    folder: Path, tiny_model: Callable[[str], Path]
) -> None:
    model = str(tiny_model("qwen2_vl"))
    content = [
        Part(type="text", text="First"),
        Part(type="image"),
        Part(type="text", text="then"),
        Part(type="image"),
        Part(type="text", text="."),
    ]
    messages = [
        Message(role="system", content=[Part(type="text", text="Be brief.")]),
        Message(role="user", content=content),
    ]
    images = [Image.open(folder / "red.png"), Image.open(folder / "blue.png")]
    question = Question(messages=messages, images=images)
    sampling = Sampling(max_new_tokens=12, seed=3)
    expected = next(generate(load_speaker(model), [question], sampling))
    command = [
        *(sys.executable, "-m", "sailplan", "generate", model, "--system", "Be brief."),
        *("--prompt", "First<image>then<image>.", "--image", "red.png", "--image", "blue.png"),
        *("--max_new_tokens", "12", "--seed", "3"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=True)
    answer = done.stdout.decode()
    assert answer.strip() == "".join(
        c if c.isprintable() or c == "\n" else "\ufffd" for c in expected.text
    )
    assert answer.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["./missing"], 3, "there is no model folder ./missing"),
        (["{folder}"], 3, "has no config.json"),
        (["{model}", "--image", "{folder}/none.png"], 4, "image 'none.png' is missing"),
        (["{model}", "--image", "{folder}/page.png"], 4, "web page"),
        (["{model}", "--image", "{folder}"], 4, "is missing"),
        (["{model}", "--prompt", "<image> and <image>", "--image", "{folder}/red.png"], 4, "2 ×"),
        (["{model}", "--prompt", "<image>"], 4, "1 × <image> in the prompt for 0 × --image"),
        (["{model}", "--adapter", "{folder}"], 3, "has no adapter_config.json"),
    ],
)
def test_generate_mistake_ends_in_one_line_with_its_code(
    folder: Path,
    tiny_model: Callable[[str], Path],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    values = {"folder": folder, "model": tiny_model("qwen2_vl")}
    given = [text.format(**values) for text in arguments]
    got, out, err = sailplan(
        "generate", *given, *([] if "--prompt" in given else ["--prompt", "Hi"])
    )
    assert (got, out) == (code, "")
    *_, last = err.splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err


def test_model_output_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _write("\x1b]0;title\x07 \x1b[2J\x9b31m\r\x08 \u202egnp.exe\ud800 ok\n\té 日本 👩\u200d🚀")
    assert capsys.readouterr().out.replace("\ufffd", "?") == (
        "?]0;title? ?[2J?31m?? ?gnp.exe? ok\n\té 日本 👩\u200d🚀"
    )

"""A user's folder, and the entry script in one process that all cases share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.bad_input.support import End, Entry, chat, write_rows
from tests.support.launch import flags


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a model's folder, two rows with images, and a run file that is right."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    write_rows(tmp_path, [chat(images=["a.png"]), chat(images=["a.png"])])
    Image.effect_noise((60, 60), 40).save(tmp_path / "a.png")
    (tmp_path / "run.yaml").write_text(
        "model_name_or_path: ./model\ndataset_name: rows.jsonl\noutput_dir: out\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="package")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    """Runs the entry script with the flags that it is given, in a process that all cases share."""
    command = [sys.executable, "-m", "tests.support.cases"]
    cache = str(tmp_path_factory.mktemp("cache"))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_DATASETS_CACHE": cache},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        written, read = process.stdin, process.stdout

        def run(arguments: list[str]) -> End:
            written.write(json.dumps(arguments) + "\n")
            written.flush()
            return End(**json.loads(read.readline()))

        yield run
        written.close()


@pytest.fixture
def flags_of(here: Path, tiny_model: Callable[[str], Path]) -> Callable[[dict], list[str]]:
    """Gives the flags of a small run in the user's folder, with these on top."""

    def make(values: dict) -> list[str]:
        run = {
            "model_name_or_path": tiny_model("qwen2_vl"),
            "dataset_name": "rows.jsonl",
            "output_dir": here / "out",
            "max_steps": 1,
            "report_to": "none",
            "use_cpu": True,
        } | values
        for name in ("dataset_name", "image_root"):
            if name in run:
                run[name] = here / run[name]
        return flags(run)

    return make

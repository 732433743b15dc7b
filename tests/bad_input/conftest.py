"""A user's folder, and the entry script in one process that all cases share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.bad_input.support import chat, write_rows
from tests.support.launch import Entry, entry_script, flags


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
    with entry_script(tmp_path_factory.mktemp("cache")) as run:
        yield run


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

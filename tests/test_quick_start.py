"""The front page's quick start for one card, run to its end: its run file and its commands."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.markdown import blocks
from tests.support.rows import chat_rows, draw

README = Path(__file__).resolve().parents[1] / "README.md"
HERE = ["--launch.cpu", "true", "--max_steps", "1"]


@pytest.mark.timeout(900)  # twelve commands, imports and all
def test_quick_start_for_one_card_runs_to_its_end(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    """With a tiny model, drawn rows, and no GPU; what would train again is shown alone."""
    part = [block for block in blocks(README) if block.heading == "Quick start"]
    (run_file,) = (block.text for block in part if block.kind == "yaml")
    (lines,) = (block.text.splitlines() for block in part if "sailplan merge" in block.text)
    written = yaml.safe_load(run_file)
    assert written["load_in_4bit"]
    assert written["use_peft"]
    written["model_name_or_path"] = str(tiny_model("qwen2_vl"))
    (tmp_path / "products.yaml").write_text(yaml.safe_dump(written))
    chat_rows(tmp_path, 24).rename(tmp_path / written["dataset_name"])
    draw(tmp_path / "shoe.png", colour="red", size=(80, 60))

    verbs = []
    for line in lines:
        program, verb, *rest = shlex.split(line, comments=True)
        assert program == "sailplan"
        if verb == "train":
            rest += HERE + ["--dry-run"] * (verb in verbs and rest[-1] != "products.yaml")
        if verb == "doctor":
            rest += HERE
        if verb == "compare":
            rest += ["--generation.max_new_tokens", "8"]
        done = subprocess.run(
            [sys.executable, "-m", "sailplan", verb, *rest],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        verbs.append(verb)

    after = ["compare", "report", "generate", "merge"]
    assert verbs == ["inspect", "plan", "doctor", *["train"] * 3, *after]
    assert (tmp_path / "data.html").is_file()
    assert (tmp_path / written["output_dir"] / "report.html").is_file()
    assert (tmp_path / written["output_dir"] / "adapter_model.safetensors").is_file()
    _, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert AutoProcessor.from_pretrained(tmp_path / "merged").chat_template

"""The pages for those who come from Alpaca-LoRA and TRL: each line translates as it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from sailplan.files import folder
from sailplan.run.config import Run
from sailplan.train.arguments import _IDLE
from tests.support.markdown import tables

DOCS = Path(__file__).resolve().parents[1] / "docs"
FLAGS, FIXED = tables(DOCS / "from-alpaca-lora.md")
_, IDLE, SCRIPT = tables(DOCS / "from-trl.md")

FINETUNE = {
    *("base_model", "data_path", "output_dir", "batch_size", "micro_batch_size", "num_epochs"),
    *("learning_rate", "cutoff_len", "val_set_size", "lora_r", "lora_alpha", "lora_dropout"),
    *("lora_target_modules", "train_on_inputs", "add_eos_token", "group_by_length"),
    *("wandb_project", "wandb_run_name", "wandb_watch", "wandb_log_model"),
    *("resume_from_checkpoint", "prompt_template_name"),
}
"""The parameters of `train` in github.com/tloen/alpaca-lora, finetune.py."""


def settings(cell: str) -> str:
    """Returns the run file's lines in a cell, empty where there are none."""
    return "".join(re.findall(r"`(\{.*?\})`(?: |,|$)", cell))


def written(name: str) -> dict[str, Any]:
    return dict(Run.from_file(folder("launch") / f"{name}.yaml").explicit)


def held(tmp_path: Path, text: str) -> Run:
    """Returns the run that a file with these settings is."""
    (tmp_path / "run.yaml").write_text(text)
    return Run.from_file(tmp_path / "run.yaml")


def test_flags_of_alpaca_lora_are_all_there() -> None:
    assert {shlex.split(flag.strip("`"))[0].removeprefix("--") for flag, *_ in FLAGS} == FINETUNE


@pytest.mark.parametrize(("flag", "line"), [row[:2] for row in FLAGS], ids=lambda cell: cell[:30])
def test_flag_of_alpaca_lora_is_the_line_beside_it(tmp_path: Path, flag: str, line: str) -> None:
    (tmp_path / "empty.yaml").write_text("{}")
    typed = Run.from_file(tmp_path / "empty.yaml", shlex.split(flag.strip("`")))

    assert (typed.explicit, typed.env) == (
        (run := held(tmp_path, settings(line))).explicit,
        run.env,
    )


@pytest.mark.parametrize("line", [row[1] for row in FIXED])
def test_what_alpaca_lora_fixes_is_in_its_run_files(tmp_path: Path, line: str) -> None:
    for name in ("llama_7b-lora-4gpu", "llama_13b-lora-4gpu"):
        assert held(tmp_path, settings(line)).explicit.items() <= written(name).items()


def test_fields_of_trl_that_act_differently_are_all_there() -> None:
    assert [[f"`{name}`", what] for name, what in _IDLE.items()] == IDLE


def test_lines_of_the_how_to_make_up_its_run_file(tmp_path: Path) -> None:
    lines: dict[str, Any] = {}
    for _, line in SCRIPT:
        lines |= yaml.safe_load(settings(line)) or {}

    named = {"system_prompt", "user_prompt", "output_dir", "report_to"}
    article = written("qwen2_vl_7b-qlora-1x24gb")
    assert held(tmp_path, yaml.safe_dump(lines)).explicit == {
        name: value for name, value in article.items() if name not in named
    }

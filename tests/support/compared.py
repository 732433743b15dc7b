"""A tuned run to compare with its base, and `sailplan compare` as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sailplan.cli.main import app
from sailplan.evaluate.comparison import Comparison, read_comparison
from tests.support import patience
from tests.support.rows import chat_rows


def adapter_run(folder: Path, model: Path, **values: Any) -> Path:
    """Trains an adapter of a tiny model on pictures, so that it answers otherwise; its directory.

    Args:
        folder: Where everything of the run goes.
        model: The base.
        values: Fields of the run file that are different.
    """
    written = {
        "model_name_or_path": str(model),
        "dataset_name": str(chat_rows(folder / "data", 40)),
        "output_dir": str(folder / "run"),
        "use_peft": True,
        "lora_r": 8,
        "max_steps": 6,
        "learning_rate": 2e-2,
        "per_device_train_batch_size": 4,
        "eval_size": 12,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "eval_generations": 0,
        "save_steps": 3,
        "logging_steps": 1,
        "bf16": False,
        "report_to": "none",
        "launch": {"cpu": True},
        "generation": {"max_new_tokens": 12, "batch_size": 2},
    } | values
    file = folder / "run file.yaml"
    file.write_text(yaml.safe_dump(written))
    done = sailplan("train", str(file), "--no-preflight")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "run"


def sailplan(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-m", "sailplan", *arguments]
    return patience.run(command, **{"timeout": 240, **options})


def here(*arguments: str) -> tuple[int, str, str]:
    """Runs the command line in this process, which has imported what it needs.

    Returns:
        Exit code, standard output and standard error.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def compared(run: Path, *arguments: str) -> tuple[Comparison, str, str]:
    """Compares a run; returns what was found, standard output and standard error."""
    code, out, err = here("compare", str(run), *arguments)
    assert code == 0, out[-2000:] + err[-4000:]
    return read_comparison(run / "compare" / "comparison.json"), out, err


def keys(run: Path) -> list[str]:
    """Returns the keys of all that was ever answered for a run, in the order of its journals."""
    files = sorted((run / "compare").glob("journal-*.jsonl"))
    return [json.loads(line)["key"] for file in files for line in file.read_text().splitlines()]


def texts(found: Comparison) -> dict[str, dict[str, str]]:
    """Returns the answers of a comparison by row, then by side."""
    return {
        row.place: {side: answer.text for side, answer in row.answers.items()} for row in found.rows
    }

"""What is kept of a simulation goes with the code that made it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sailplan

PROGRAM = """
from sailplan.plan.store import keep, recall
from sailplan.plan.workload import Images
found = recall(Images, "key")
print("kept" if found else "nothing")
keep(Images(per_row=1, height=2, width=3), "key")
"""


@pytest.mark.parametrize("changed", ["store.py", "simulation/fake.py", "cost/memory.py"])
def test_what_is_kept_is_made_again_when_any_source_of_plans_changes(
    tmp_path: Path, changed: str
) -> None:
    shutil.copytree(Path(sailplan.__file__).parent, tmp_path / "src/sailplan")
    env = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "src"),
        "SAILPLAN_CACHE": str(tmp_path / "cache"),
    }

    def run() -> str:
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(
            command, env=env, check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip()

    assert [run(), run()] == ["nothing", "kept"]
    with (tmp_path / "src/sailplan/plan" / changed).open("a") as file:
        file.write("# changed\n")
    assert run() == "nothing"

"""Planted faults reach the process and the rank they are for, and no other."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.plant import planted

PROGRAM = (
    "import json, sys, sailplan.data.collator as module; "
    "print(json.dumps(module.Collator.__call__.__name__))"
)


@pytest.mark.parametrize(("rank", "name"), [("1", "faulty"), ("0", "__call__")])
def test_fault_is_planted_in_its_rank_alone(rank: str, name: str) -> None:
    env = {**planted(what="sleep_in_collator", rank=1, step=3), "RANK": rank}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == name

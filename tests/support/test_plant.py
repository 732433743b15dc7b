"""Planted faults reach the process and the rank they are for, and no other."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.plant import planted

PROGRAM = (
    "import json, sys, sailplan.data.collator as module; "
    "print(json.dumps(module.Collator.__call__.__name__))"
)


def test_fault_is_planted_in_its_rank_alone() -> None:
    env = planted(what="sleep_in_collator", rank=1, step=3)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**env, "RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [json.loads(child.communicate(timeout=120)[0]) for child in children]
    assert told == ["__call__", "faulty"]

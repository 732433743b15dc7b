"""Processes that tests start see what `pip install sailplan` brings, and trackers if asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.as_installed.sitecustomize import HIDDEN
from tests.support.plant import planted

PROGRAM = (
    "import importlib.util as util, json, sys; "
    "print(json.dumps([util.find_spec(name) is not None for name in sys.argv[1:]]))"
)


@pytest.mark.parametrize(
    ("env", "seen"),
    [
        ({}, False),
        (planted(what="sleep_in_collator", rank=1, step=3), False),
        ({"TESTS_SHOW_TRACKERS": "1"}, True),
    ],
    ids=["by itself", "with a planted fault", "asked for"],
)
def test_started_process_sees_the_tests_own_packages_only_when_asked(
    env: dict[str, str], seen: bool
) -> None:
    command = [sys.executable, "-c", PROGRAM, "torch", *HIDDEN]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    torch, *hidden = json.loads(done.stdout)
    assert torch
    assert hidden == [seen] * len(HIDDEN)

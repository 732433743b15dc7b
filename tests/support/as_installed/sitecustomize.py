"""Hides from the processes that tests start what only the tests' own environment has.

Whatever training library finds wandb, mlflow or scipy imports it, asked or not: a third of the
modules of each rank. `pip install sailplan` brings none of them, so the ranks of tests do without
them as a user's do. `TESTS_SHOW_TRACKERS=1` shows them to a process that is to use one.

It also has each process write its stacks when a test that waits in vain asks for them.

Python imports this module by its name when it starts; the folder is on the tests' `PYTHONPATH`.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HIDDEN = ("mlflow", "scipy", "wandb")

SHOW_STACKS = signal.SIGRTMAX - 1
"""What a process answers with the stacks of its threads; nothing else sends it."""


class _Finder(PathFinder):
    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # A worker of pytest starts as any other process does, and is to see everything.
        if fullname in HIDDEN and "_pytest" not in sys.modules:
            return None
        return super().find_spec(fullname, path, target)


# A worker of pytest has run this at its start, and imports it once more as a module.
if os.environ.get("TESTS_SHOW_TRACKERS") != "1" and PathFinder in sys.meta_path:
    sys.meta_path[sys.meta_path.index(PathFinder)] = _Finder
if sys.__stderr__ is not None:
    faulthandler.register(SHOW_STACKS, sys.__stderr__, all_threads=True)

"""Garbage collection is off during imports, and looks at nothing of theirs afterwards."""

from __future__ import annotations

import gc

from sailplan.imports import quick_imports


def test_quick_imports_collect_again_afterwards_but_nothing_older() -> None:
    frozen = gc.get_freeze_count()
    try:
        with quick_imports():
            during = gc.isenabled()
        assert (during, gc.isenabled()) == (False, True)
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()

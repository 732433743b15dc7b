"""What can be planted: each function patches one thing of a module that was just imported.

It is called with the module and with the fault's other fields. At its top this file imports nothing
of the package, and nothing heavy: it is read at the start of every process of a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any


def sleep_in_collator(module: ModuleType, *, step: int, seconds: float = 3600.0) -> None:
    """Sleeps while it makes a batch, once `step` optimizer steps are done."""
    from sailplan.train.phase import PHASE

    collate = module.Collator.__call__

    def slow(collator: Any, rows: Any) -> Any:
        if PHASE.step >= step:
            time.sleep(seconds)
        return collate(collator, rows)

    module.Collator.__call__ = slow


PLANTS: dict[str, tuple[str, Callable[..., None]]] = {
    "sleep_in_collator": ("sailplan.data.collator", sleep_in_collator),
}
"""By name: the module, and what patches it."""

"""Importing the training libraries without collecting garbage meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Switches garbage collection off for a block of imports.

    Transformers, TRL and DeepSpeed make millions of objects that stay until the end. Looking
    through them again and again for garbage takes a quarter of the imports' time, and a third of a
    second each time that Trainer or accelerate call `gc.collect`: afterwards none of them is
    looked at again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()

"""Importing the training libraries: quickly, and without what nobody can act on."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


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


def calm_libraries() -> None:
    """Keeps libraries from telling what no user can act on; call it before they are imported.

    Their bars stay on a terminal and go where there is none: a bar in a log file is noise.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not sys.stderr.isatty():
        # What is imported already has read these.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        for library in ("transformers", "datasets"):
            if library in sys.modules:
                import_module(f"{library}.utils.logging").disable_progress_bar()

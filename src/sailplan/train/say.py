"""What a run tells its user, said once however many ranks there are."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from importlib import import_module


def say(*lines: str) -> None:
    """Prints the lines on the main process of the run, and nowhere else."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        for line in lines:
            print(line, flush=True)


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

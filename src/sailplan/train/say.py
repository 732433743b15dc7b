"""What a run tells its user, said once however many ranks there are."""

from __future__ import annotations

import logging
import os
import sys
import warnings


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
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from datasets.utils.logging import disable_progress_bar as disable_datasets_bar
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        disable_datasets_bar()

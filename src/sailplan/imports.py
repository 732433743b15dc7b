"""Importing the training libraries: quickly, and without what nobody can act on."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from typing import Any


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Returns the version of each package that is installed; None of one that is not."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


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


@contextmanager
def compiled_when_called() -> Iterator[None]:
    """Puts off what is given to `torch.compile` in a block of imports until it is called.

    bitsandbytes gives it two functions of its own, which few runs call, and torch then imports its
    compiler: a tenth of the time that a rank's imports take.
    """
    import torch

    compile_now = torch.compile

    def compile_later(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        compiled = cache(lambda: compile_now(function, **settings))
        return wraps(function)(lambda *arguments, **named: compiled()(*arguments, **named))

    def compile_or_later(model: Any = None, **settings: Any) -> Any:
        if model is None:
            return lambda function: compile_later(function, **settings)
        return compile_later(model, **settings)

    torch.compile = compile_or_later
    try:
        yield
    finally:
        torch.compile = compile_now


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

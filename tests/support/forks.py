"""Runs the entry script in forked processes, each its own: `python -m tests.support.forks`.

This process imports the training stack once, and forks for each run: what takes a process of its
own, because it is killed or has faults planted, then costs little more than its work. Reads flags
and faults as a line of JSON from standard input, and answers with how the run ended and what it
printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from importlib import import_module
from typing import IO, Any, NoReturn

from sailplan.imports import calm_libraries, compiled_when_called, quick_imports
from sailplan.train.sft_vlm import main
from tests.support.plant.sitecustomize import plant

LIMIT_S = 240
"""A run that takes longer is ended by SIGALRM, so that nothing is left of a test."""
_MODULES = (
    *("sailplan.train.arguments", "sailplan.train.batches", "sailplan.train.callbacks"),
    *("sailplan.train.trainer", "sailplan.train.generations", "sailplan.train.optimizer"),
    *("sailplan.train.saving.settle", "sailplan.train.guards.hang.watch"),
    *("sailplan.data.prepare", "sailplan.data.sources", "sailplan.data.default_template"),
    *("sailplan.evaluate.speaker", "sailplan.model.load", "sailplan.model.trainable"),
    *("bitsandbytes", "peft", "torchvision.transforms.v2.functional"),
)


def answer(flags: list[str], faults: list[dict[str, Any]]) -> dict[str, object]:
    """Runs the entry script; returns its exit code, minus a signal's number, and its output."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            _run(flags, faults, out, err)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "out": out.read(), "err": err.read()}


def _run(flags: list[str], faults: list[dict[str, Any]], out: IO[str], err: IO[str]) -> NoReturn:
    code: object = 1
    try:
        with open(os.devnull) as nothing:  # noqa: PTH123
            for descriptor, file in enumerate((nothing, out, err)):
                os.dup2(file.fileno(), descriptor)
        signal.alarm(LIMIT_S)
        plant(faults)
        main(flags)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    with quick_imports(), compiled_when_called():
        calm_libraries()
        for name in _MODULES:
            import_module(name)
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)

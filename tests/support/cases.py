"""Runs the entry script again and again in one process: `python -m tests.support.cases`.

Importing the training stack takes many times what a small case takes. Reads each case's flags as a
line of JSON from standard input, and answers with its exit code and what it printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from sailplan.train.sft_vlm import main


def answer(flags: list[str]) -> dict[str, object]:
    """Calls the entry script; returns exit code, standard output and standard error."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code: object = 0
        with redirected(1, out), redirected(2, err):
            try:
                main(flags)
            except SystemExit as end:
                code = end.code
        out.seek(0)
        err.seek(0)
        return {"code": code, "out": out.read(), "err": err.read()}


@contextlib.contextmanager
def redirected(descriptor: int, file: IO[str]) -> Iterator[None]:
    """Sends a stream to a file, what child processes and libraries in C write to it as well."""
    kept = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        (sys.stdout if descriptor == 1 else sys.stderr).flush()
        os.dup2(kept, descriptor)
        os.close(kept)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)

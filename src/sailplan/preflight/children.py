"""Work that may crash, hang or load gigabytes, in a process of its own with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sailplan.progress import waiting

STOP_TIMEOUT_S = 40.0
"""How long a child may take to end when its time is up, before it is killed; a launcher gives its
ranks 30 s."""

_LAST_LINES = 15
_MOST_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """How a child process ended."""

    answer: Mapping[str, Any] | None
    """The JSON object of its last line; None where it did not come so far."""
    code: int | None
    """Its exit code, minus the signal's number where one ended it; None where time was up."""
    words: str
    """What it printed beside, both streams together."""

    @property
    def last_words(self) -> str:
        """The end of what it printed, for those who want to know more."""
        return "\n".join(self.words.rstrip().splitlines()[-_LAST_LINES:])

    @property
    def reason(self) -> str:
        """Why there is no answer, in one clause: the last thing that it said."""
        if self.code is None:
            return "it did not answer in time"
        lines = [line.strip() for line in self.words.splitlines() if line.strip()]
        if self.code < 0:
            return f"it was ended by {signal.Signals(-self.code).name}"
        errors = [line for line in lines if line.startswith("error:") or "Error" in line]
        last = (errors or lines or [f"it ended with exit code {self.code}"])[-1]
        return last if len(last) <= _MOST_CHARACTERS else f"{last[:_MOST_CHARACTERS]}…"


def ask(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    label: str,
    timeout_s: float,
) -> Child:
    """Runs a module of ours and returns what it answers, with a sign of life meanwhile.

    Args:
        module: The module's name, run as `python -m`.
        arguments: What it is given.
        environment: Its variables.
        label: What the user is told to wait for.
        timeout_s: When it is stopped, with all that it started.
    """
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None
        try:
            with waiting(label):
                code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
        output.seek(0)
        return _read(output.read(), code)


def answer(**found: Any) -> None:
    """Prints what a child has found, as its last line."""
    print(json.dumps(found), flush=True)


def _read(printed: str, code: int | None) -> Child:
    words, _, last = printed.rstrip().rpartition("\n")
    try:
        found = json.loads(last)
    except ValueError:
        found = None
    if isinstance(found, dict) and code == 0:
        return Child(answer=found, code=code, words=words)
    return Child(answer=None, code=code, words=printed)


def _end(process: subprocess.Popen[Any]) -> None:
    """Stops a child that still runs, and whatever is left of its session."""
    if process.poll() is None:
        process.terminate()  # a launcher stops its ranks, which have sessions of their own
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""How a rank ends: one line for the user's mistakes, from one rank, with the error's exit code.

Imports nothing heavy, so that the entry script can enter `report_errors` before torch is loaded
and a Ctrl-C during imports is as quiet as one during training.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from sailplan.errors import SailplanError, StoppedError

OTHER_RANK_WAIT_S = 2.0
"""Other ranks than the first wait so long before they speak: most often the first one has failed
too, has said why, and the launcher ends them meanwhile."""

UNKNOWN_ERROR_WAIT_S = 1.0
"""The first rank waits so long with an error that is no user's mistake: where another rank has
failed, it is only the broken connection, and the launcher ends this rank meanwhile."""


@contextmanager
def report_errors() -> Iterator[None]:
    """Runs a rank's work and ends the process for it where that fails.

    A `SailplanError` becomes `error: …` on standard error and its exit code; anything else keeps
    its traceback and exits with 1. A run that was stopped is no error: the first rank says so, and
    all exit with 75. Of several ranks that fail together only one speaks. Ctrl-C
    (once or several times) exits with 130 and prints nothing.

    Raises:
        SystemExit: The work failed, in a process of its own. A launcher's rank ends at once,
            because the interpreter's shutdown may wait for ranks that are gone.
    """
    interrupt = _Interrupt()
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT)
    except StoppedError as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, flush=True)
        leave(error.exit_code)
        _exit(error.exit_code)
    except SailplanError as error:
        _wait_turn(first_rank_s=0.0)
        print(f"error: {_line(error)}", file=sys.stderr, flush=True)
        _exit(error.exit_code)
    except Exception:
        _wait_turn(first_rank_s=UNKNOWN_ERROR_WAIT_S)
        traceback.print_exc()
        _exit(1)
    finally:
        if not interrupt.came:
            signal.signal(signal.SIGINT, previous)


def leave(code: int = 0) -> None:
    """Ends this process where it is a launcher's rank, the only one too, and its work is done.

    Exit handlers run, since trackers close in them; C++ destructors do not: libraries still hold
    process groups whose threads those would abort on (docs/decisions/0001).
    """
    if _is_rank():
        atexit._run_exitfuncs()
        _exit(code)


class _Interrupt:
    """A SIGINT handler that interrupts once: the terminal and the launcher may both send it."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, _signum: int, _frame: FrameType | None) -> None:
        if not self.came:
            self.came = True
            # It may come while another error is on its way out, where nothing catches it.
            sys.excepthook = lambda *_: None
            raise KeyboardInterrupt


def _line(error: SailplanError) -> str:
    """Returns the error's one line, without what a DataLoader's worker puts around it.

    torch raises a worker's error again as one of the same class whose message is the worker's
    whole traceback; the error's own line is the last of it.
    """
    kind = type(error)
    return str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2]


def _is_rank() -> bool:
    """Whether a launcher has started this process, which then may hold process groups."""
    return "WORLD_SIZE" in os.environ


def _wait_turn(*, first_rank_s: float) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        time.sleep(OTHER_RANK_WAIT_S if int(os.environ.get("RANK", "0")) else first_rank_s)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_rank():
        os._exit(code)
    raise SystemExit(code)

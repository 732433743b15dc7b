"""How a rank ends: one line for the user's mistakes, from one rank, with the error's exit code.

Under `sailplan train` it leaves word of its failure in a file instead, and the launcher tells.

Imports nothing heavy, so that the entry script can enter `report_errors` before torch is loaded
and a Ctrl-C during imports is as quiet as one during training.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from sailplan.errors import SailplanError, StoppedError
from sailplan.run.failure import Failure, asked_folder, write_failure
from sailplan.run.state import ended_here
from sailplan.train.failures import failure_of, line_of
from sailplan.train.rank_log import LOG

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
    its traceback and exits with 1, or with `HardwareError`'s code where there is no memory. Of
    several ranks that fail together only one speaks. Where a launcher asks for it, none does: each
    leaves its failure in a file, and its traceback in its log. A run that was stopped is no error:
    the first rank says so, and all exit with 75. Ctrl-C (once or several times) exits with 130 and
    prints nothing.

    Raises:
        SystemExit: The work failed, in a process of its own. A launcher's rank ends at once,
            because the interpreter's shutdown may wait for ranks that are gone.
    """
    if asked_folder() is not None:
        LOG.install()
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
    except Exception as error:
        failed(error)
    finally:
        if not interrupt.came:
            signal.signal(signal.SIGINT, previous)


def failed(error: BaseException) -> NoReturn:
    """Tells of an error, or leaves it to the launcher to do so, and ends this process.

    Any thread may call it.
    """
    failure = failure_of(error)
    if not _left_to_launcher(failure):
        if failure.kind != "connection":  # that is an echo of another rank's end
            ended_here(failure.exit_code, failure.error)
        is_user_error = isinstance(error, SailplanError)
        _wait_turn(first_rank_s=0.0 if is_user_error else UNKNOWN_ERROR_WAIT_S)
        text = f"error: {line_of(error)}\n" if is_user_error else failure.traceback
        print(text, end="", file=sys.stderr, flush=True)
    _exit(failure.exit_code)


def _left_to_launcher(failure: Failure) -> bool:
    folder = asked_folder()
    if folder is None:
        return False
    try:
        write_failure(folder, failure)
    except OSError:
        return False
    LOG.write(failure.traceback)
    return True


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


def _is_rank() -> bool:
    """Whether a launcher has started this process, which then may hold process groups."""
    return "WORLD_SIZE" in os.environ


def _wait_turn(*, first_rank_s: float) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        time.sleep(OTHER_RANK_WAIT_S if int(os.environ.get("RANK", "0")) else first_rank_s)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_rank() or threading.current_thread() is not threading.main_thread():
        os._exit(code)
    raise SystemExit(code)

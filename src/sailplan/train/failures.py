"""What a rank's error is: a mistake, no memory, another rank's end that echoes, or a bug.

Imports nothing heavy: a rank may fail before torch is loaded, so kinds are told by names and words.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator

from sailplan.errors import HangError, HardwareError, SailplanError, StoppedError
from sailplan.run.failure import Failure, Kind
from sailplan.train.phase import PHASE

OUT_OF_MEMORY = HardwareError.exit_code
"""What a rank exits with that has no memory."""

_NO_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|Cuda failure 2 |'out of memory'"
    r"|CU(?:BLAS|DNN|SPARSE)_STATUS_ALLOC_FAILED|Error out of memory at line"  # bitsandbytes
    r"|DefaultCPUAllocator: (?:can't allocate memory|not enough memory)|std::bad_alloc"
    r"|not enough memory: you tried to allocate|Cannot allocate memory"
)
_ECHO = re.compile(
    r"Connection (?:closed by peer|reset|refused)|Broken pipe|Application timeout caused pair clos"
    r"|Timed out waiting \d+ms for (?:recv|send) operation|\[.*gloo/transport"
    r"|NCCL (?:remote|communicator)|ncclRemoteError|remote process exited|failed to recv, got 0"
)
_ECHO_CLASSES = {"DistBackendError", "DistNetworkError", "DistStoreError"}
_MOST_LETTERS = 2000


def failure_of(error: BaseException) -> Failure:
    """Returns what is left for the launcher to read of an error that ends this rank."""
    kind = kind_of(error)
    code = error.exit_code if isinstance(error, SailplanError) else 1
    return Failure(
        rank=int(os.environ.get("RANK", "0")),
        kind=kind,
        error=line_of(error)[:_MOST_LETTERS],
        exit_code=OUT_OF_MEMORY if kind == "oom" else code,
        traceback="".join(traceback.format_exception(error)),
        step=PHASE.step,
        phase=PHASE.name,
    )


def kind_of(error: BaseException) -> Kind:
    """Tells what an error is by its class and words, and those of the errors that led to it."""
    if isinstance(error, StoppedError):
        return "stopped"
    if isinstance(error, HangError):
        return "hang"
    if isinstance(error, SailplanError):
        return "user"
    causes = list(_chain(error))
    if any(_has_no_memory(one) for one in causes):
        return "oom"
    return "connection" if any(_is_echo(one) for one in causes) else "unknown"


def line_of(error: BaseException) -> str:
    """Returns an error as one line, a user's mistake without what a DataLoader's worker adds.

    torch raises a worker's error again as one of the same class whose message is the worker's
    whole traceback; the error's own line is the last of it.
    """
    kind = type(error)
    if isinstance(error, SailplanError):
        return str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2]
    words = str(error).strip()
    if words.startswith("Caught ") and "Traceback" in words:
        words = words.splitlines()[-1].partition(": ")[2]
    first = " ".join(words.partition("\n")[0].split())
    return f"{kind.__name__}: {first}" if first else kind.__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = set[int]()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        hidden = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or hidden


def _has_no_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return (
        isinstance(error, MemoryError)
        or any(one.__name__ == "OutOfMemoryError" for one in type(error).__mro__)
        or bool(_NO_MEMORY.search(str(error)))
    )


def _is_echo(error: BaseException) -> bool:
    if any(one.__name__ in _ECHO_CLASSES for one in type(error).__mro__):
        return True
    # Of Python's own connections, such as a tracker's, no rank is at the other end.
    return isinstance(error, RuntimeError) and bool(_ECHO.search(str(error)))

"""What became of another rank's process, where it runs on this machine."""

from __future__ import annotations

import os
import signal
import socket

import psutil

from sailplan.train.guards.hang.beats import LEFT, Beat
from sailplan.train.guards.hang.stacks import ASK


def trouble_of(beat: Beat) -> str:
    """Returns what is wrong with a rank's process, in words that follow `rank 1`, or nothing."""
    if beat.phase == LEFT:
        return "has left the others behind"
    if beat.host != socket.gethostname():
        return ""
    try:
        status = psutil.Process(beat.pid).status()
    except psutil.NoSuchProcess:
        return "is gone"
    if status == psutil.STATUS_ZOMBIE:
        return "is gone"
    return "is stopped by a signal" if status == psutil.STATUS_STOPPED else ""


def wake(beat: Beat) -> bool:
    """Lets a stopped process of this machine go on; false where there is none.

    The first that it does is to write down where it was.
    """
    if trouble_of(beat) != "is stopped by a signal":
        return False
    try:
        os.kill(beat.pid, ASK)
        os.kill(beat.pid, signal.SIGCONT)
    except OSError:
        return False
    return True

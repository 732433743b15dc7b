"""Errors that NVIDIA's driver reports of GPUs by number (Xid), and why a GPU runs slower now.

The numbers are those of NVIDIA's page "XID Errors". Most come of programs that do wrong; those of
`FAULTS` are of the hardware.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

FAULTS: Mapping[int, str] = MappingProxyType(
    {
        48: "memory error of two bits",
        62: "its controller halted",
        63: "memory rows are to be remapped",
        64: "memory rows could not be remapped",
        74: "NVLink error",
        79: "it fell off the bus",
        92: "many memory errors of one bit",
        94: "contained memory error",
        95: "uncontained memory error",
        119: "its firmware does not answer",
        120: "its firmware failed",
        121: "error of the link to the CPU",
        140: "memory error that could not be corrected",
    }
)
"""Numbers that are the hardware's, and what they mean."""

_LINE = re.compile(r"^\d+,\d+,(\d+),[^;]*;.*NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)")
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Xid:
    """An error that the driver has reported."""

    number: int
    """Of NVIDIA's list."""
    pci: str
    """The GPU's address, such as `0000:3b:00`; empty where it is not known."""
    age_s: float
    """How long ago."""


def kernel_xids(log: Path = Path("/dev/kmsg")) -> tuple[Xid, ...] | None:
    """Returns the errors in the kernel's log; None where this user may not read it.

    Args:
        log: The kernel's log, a record a line.
    """
    now_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    try:
        lines = list(_lines(log))
    except OSError:
        return None
    matches = (_LINE.match(line) for line in lines)
    return tuple(
        Xid(number=int(match[3]), pci=match[2], age_s=now_s - int(match[1]) / 1e6)
        for match in matches
        if match
    )


def _lines(log: Path) -> Iterator[str]:
    handle = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    rest = b""
    try:
        while True:
            try:
                chunk = os.read(handle, _CHUNK_BYTES)
            except BrokenPipeError:  # the record was overwritten meanwhile; the next one is there
                continue
            except BlockingIOError:  # no record more
                break
            if not chunk:
                break
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
    finally:
        os.close(handle)


class GpuWatch:
    """Has the driver note down what becomes of a GPU from now on.

    Args:
        uuid: The GPU's, such as `GPU-…`.
    """

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._handle: Any = None
        self._events: Any = None
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            events = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(
                self._handle, pynvml.nvmlEventTypeXidCriticalError, events
            )
            self._events = events
        except pynvml.NVMLError:  # no driver, or a GPU without events; then nothing is told
            return

    def xids(self) -> tuple[int, ...] | None:
        """Returns the numbers of errors since then; None where the driver does not tell."""
        import pynvml

        if self._events is None:
            return None
        found: list[int] = []
        while True:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
            except pynvml.NVMLError:  # none more
                return tuple(found)
            found.append(int(event.eventData))

    def slowed(self) -> tuple[str, ...] | None:
        """Returns why the GPU's clock is held down at this moment; None if the driver is silent."""
        import pynvml

        try:
            reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        except pynvml.NVMLError:
            return None
        known = {
            "heat": pynvml.nvmlClocksEventReasonHwThermalSlowdown
            | pynvml.nvmlClocksEventReasonSwThermalSlowdown,
            "the power supply": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
        }
        return tuple(name for name, bits in known.items() if reasons & bits)

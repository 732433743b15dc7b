"""Errors that the driver leaves in the kernel's log, and GPUs of a driver that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sailplan.hardware.xids import GpuWatch, kernel_xids

LOG = """6,1201,{now},-;eth0: link up
 SUBSYSTEM=net
3,1202,{then},-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off
4,1203,{now},-;NVRM: Xid (PCI:0000:86:00): 31, pid=4711, name=python, Ch 00000008
"""


def test_errors_are_found_in_the_kernels_log(tmp_path: Path) -> None:
    now = int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6)
    log = tmp_path / "kmsg"
    log.write_text(LOG.format(now=now, then=now - 60 * 10**6))
    first, second = kernel_xids(log) or ()
    assert (first.number, first.pci) == (79, "0000:3b:00")
    assert 59 < first.age_s < 600
    assert (second.number, second.pci) == (31, "0000:86:00")


def test_log_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    assert kernel_xids(tmp_path / "none") is None


@pytest.mark.skipif(not Path("/dev/kmsg").exists(), reason="there is no /dev/kmsg here")
def test_kernels_own_log_is_read_to_its_end_or_not_at_all() -> None:
    """In a process of its own: it must not wait for what the kernel says next."""
    program = "from sailplan.hardware.xids import kernel_xids; print(kernel_xids() is None)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(not os.access("/dev/kmsg", os.R_OK)), done.stderr


def test_gpu_of_no_driver_tells_nothing() -> None:
    watch = GpuWatch("GPU-none")
    assert watch.xids() is None
    assert watch.slowed() is None

"""Real memory limits of the kernel, for children of a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sailplan.hardware.memory_kills import memory_group

_LIMITS = ("memory.max", "memory.limit_in_bytes")


@contextmanager
def limited(num_bytes: int) -> Iterator[list[str]]:
    """Gives the beginning of a command that runs in a control group of its own, with this limit.

    The test is skipped where this process may make none.
    """
    above = memory_group()
    if above is None:
        pytest.skip("this machine has no control groups that limit memory")
    group = above / f"sailplan-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made in {above} ({error.strerror})")
    try:
        limit = next((group / name for name in _LIMITS if (group / name).is_file()), None)
        if limit is None:
            pytest.skip(f"{above} does not let its own groups limit memory")
        limit.write_text(str(num_bytes))
        swap = group / "memory.swap.max"
        if swap.is_file():
            swap.write_text("0")
        script = f'echo $$ > "{group}/cgroup.procs" && exec "$@"'
        yield ["sh", "-c", script, "sh"]
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    left = (group / "cgroup.procs").read_text().split()
    assert not left, f"{left} still run in {group}"
    group.rmdir()

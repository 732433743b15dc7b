"""The kernel's count of processes that it has ended for want of memory, read and caused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sailplan.hardware.memory_kills import memory_group, memory_limit, oom_kills
from tests.support.memory_limit import limited

MOUNTS = {
    "v1": "41 33 0:35 / {point} rw,relatime - cgroup cgroup rw,memory",
    "v1 in a container": "41 33 0:35 /docker/abc {point} rw - cgroup cgroup rw,memory",
    "v2": "30 24 0:26 / {point} rw,nosuid - cgroup2 cgroup2 rw",
}
GROUPS = {
    "v1": "9:name=systemd:/\n4:memory:/docker/abc\n0::/\n",
    "v1 in a container": "4:memory:/docker/abc\n",
    "v2": "0::/docker/abc\n",
}
COUNTERS = {
    "v1": ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
    "v2": ("memory.events", "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n"),
}


@pytest.mark.parametrize("kind", MOUNTS)
def test_group_and_its_count_are_found(tmp_path: Path, kind: str) -> None:
    group = tmp_path / "cgroup" / ("" if "container" in kind else "docker/abc")
    group.mkdir(parents=True)
    name, text = COUNTERS[kind[:2]]
    (group / name).write_text(text)
    (tmp_path / "cgroup").joinpath("memory.max").write_text("max\n")
    (tmp_path / "mountinfo").write_text(MOUNTS[kind].format(point=tmp_path / "cgroup") + "\n")
    (tmp_path / "cgroup-of").write_text("")
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(GROUPS[kind])
    (proc / "mountinfo").write_text((tmp_path / "mountinfo").read_text())
    assert memory_group(proc) == group
    assert oom_kills(group) == 3


def test_count_is_the_machines_where_there_is_no_group(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 5\n")
    assert oom_kills(tmp_path, tmp_path / "vmstat") == 5
    assert oom_kills(tmp_path, tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("memory.max", "max\n", None),
        ("memory.max", "1048576\n", 1 << 20),
        ("memory.limit_in_bytes", "9223372036854771712\n", None),
        ("memory.limit_in_bytes", "1048576\n", 1 << 20),
    ],
)
def test_limit_is_that_of_the_group(
    tmp_path: Path, name: str, text: str, limit: int | None
) -> None:
    (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == limit


def test_kernel_counts_a_process_that_takes_more_than_its_group_may() -> None:
    program = (
        "import subprocess, sys\n"
        "from sailplan.hardware.memory_kills import memory_limit, oom_kills\n"
        "before = oom_kills()\n"
        "eat = [sys.executable, '-c', 'bytearray(b\"1\" * (1 << 30))']\n"
        "print(subprocess.run(eat).returncode, oom_kills() - before, memory_limit())\n"
    )
    with limited(200 << 20) as argv:
        command = [*argv, sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["-9", "1", str(200 << 20)]

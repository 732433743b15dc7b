"""What a cluster takes of this machine, and how it is asked after."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.slurm.cluster.configuration import GPUS_PER_NODE


class ClusterError(Exception):
    """The cluster didn't do what a test asked for."""


def lay_out(directory: Path, nodes: Sequence[str]) -> None:
    """Makes the folders of a cluster's directory, munge's key, and the GPUs' device files."""
    # mkdtemp's are closed to others.
    directory.chmod(0o755)
    for name in ("munge", "state", "log", "dev", "home", "nodes", "local"):
        (directory / name).mkdir(mode=0o755)
    for node in nodes:
        (directory / "nodes" / node / "spool").mkdir(parents=True)
        (directory / "nodes" / node / "local").mkdir()
        (directory / "nodes" / node / "local").chmod(0o1777)
    key = directory / "munge" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    for number in range(GPUS_PER_NODE):
        device = directory / "dev" / f"nvidia{number}"
        os.mknod(device, 0o020666, os.makedev(1, 3))
        device.chmod(0o666)


def can_freeze(directory: Path) -> bool:
    """Whether control groups of the first version can be mounted; leaves a place for them."""
    place = directory / "cgroup" / "freezer"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "cgroup", "-o", "freezer", "cgroup", str(place)]
    tried = subprocess.run(["unshare", "--mount", *mount], capture_output=True)
    if tried.returncode != 0:
        place.rmdir()
    return tried.returncode == 0


def claim_network() -> tuple[socket.socket, str]:
    """Claims a network that no other cluster of this machine has, for as long as the socket lives.

    Returns:
        The socket, and the network's first three bytes, of the block that is kept for benchmarks.
    """
    used = subprocess.run(
        ["ip", "-o", "address"], capture_output=True, text=True, check=True
    ).stdout
    for _ in range(100):
        network = f"198.{random.choice([18, 19])}.{random.randrange(256)}"
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0sailplan-slurm-{network}")
        except OSError:
            claim.close()
            continue
        if f"{network}." not in used:
            return claim, network
        claim.close()
    raise ClusterError("no network is free for a cluster")


def processes_in(namespace: str) -> Iterator[tuple[int, str]]:
    """Yields id and command line of each process in a PID namespace."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str((path / "ns" / "pid").readlink()) == namespace:
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ")
                yield int(path.name), line.decode(errors="replace")
        except OSError:
            # It has ended since it was listed.
            continue


def is_first(pid: int) -> bool:
    """Whether a process is number 1 of its namespace."""
    status = Path(f"/proc/{pid}/status").read_text()
    return status.partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"


def polling(timeout_s: float, every_s: float = 0.05) -> Iterator[None]:
    """Yields at once, then again and again until the time is over."""
    end = time.monotonic() + timeout_s
    yield
    while time.monotonic() < end:
        time.sleep(every_s)
        yield

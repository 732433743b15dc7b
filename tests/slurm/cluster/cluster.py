"""A cluster as tests hold it in their hands."""

from __future__ import annotations

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from tests.slurm.cluster.configuration import GPUS_PER_NODE, names_of, write_configuration

GUARDIAN = Path(__file__).with_name("guardian.py")
KEY = re.compile(r"(?:^| )([A-Z][A-Za-z0-9/:_]*)=")
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
)
"""States that a job doesn't leave, unless it is queued again."""


class ClusterError(Exception):
    """The cluster didn't do what a test asked for."""


class Cluster:
    """A running Slurm cluster: partitions gpu, low and grace; 64 CPUs and 8 GPUs a node.

    All nodes see this machine's file system, but for /dev/shm and `local`, which each has of its
    own; each has a hostname, network, and processes of its own. Nothing of it outlives this
    process.

    Attributes:
        directory: Where configuration, logs and state are.
        nodes: The nodes' names.
        process_tracking: `cgroup`, or `linuxproc` where the freezer can't be mounted: there, what a
            killed launcher leaves lives on, as it does on no well-kept cluster.
        local: A directory that is another one on each node.
        network: The first three bytes of the nodes' addresses.
    """

    def __init__(self, num_nodes: int = 2, *, extra: str = "", start_timeout_s: float = 20) -> None:
        """Starts the cluster and waits until all nodes are idle.

        Args:
            num_nodes: How many nodes, named node1, node2, …
            extra: Lines for slurm.conf; they replace those that set the same.
            start_timeout_s: How long to wait for the nodes.

        Raises:
            ClusterError: A daemon didn't come up; with the ends of the logs.
        """
        # Unix sockets' names are short; pytest's directories can be too deep for them.
        self.directory = Path(tempfile.mkdtemp(prefix="sailplan-slurm-", dir="/tmp"))
        self.nodes = names_of(num_nodes)
        self.local = self.directory / "local"
        self._claim, self.network = claim_network()
        self._lay_out()
        self.process_tracking = "cgroup" if self._can_freeze() else "linuxproc"
        write_configuration(
            self.directory,
            network=self.network,
            num_nodes=num_nodes,
            process_tracking=self.process_tracking,
            extra=extra,
        )
        with (self.directory / "log" / "cluster.out").open("ab") as log:
            self._guardian = subprocess.Popen(
                [
                    *("unshare", "--mount", sys.executable, "-I", "-S", GUARDIAN, "watch"),
                    *(self.directory, str(num_nodes), self.network),
                    *(self.directory.name.replace("sailplan-slurm-", "sail-"), str(os.getpid())),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.wait_for_nodes(timeout_s=start_timeout_s)
        except BaseException:
            self.stop()
            raise

    @classmethod
    def start(cls, num_nodes: int = 2, *, extra: str = "") -> Cluster:
        """Starts a cluster, to be used in a `with` or to be stopped with `stop`."""
        return cls(num_nodes, extra=extra)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the cluster, whatever it is at; returns when nothing of it is left."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait(timeout=30)
        self._claim.close()

    @property
    def env(self) -> dict[str, str]:
        """What a command's environment needs to speak with this cluster."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def run(
        self,
        *command: str | Path,
        user: str | None = None,
        check: bool = True,
        timeout_s: float = 60,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Runs a command at the login node, this machine, and returns what it printed.

        Args:
            command: The program and its arguments; no shell reads them.
            user: As whom, with a home of its own; None as root.
            check: Whether failing is an error.
            timeout_s: How long it may take.
            cwd: Where; this process's directory, or the user's home.
            environment: More variables.

        Raises:
            ClusterError: It failed, and `check`; with all that it printed.
        """
        identity: dict[str, object] = {}
        own = {**os.environ, **self.env}
        if user is not None:
            known = pwd.getpwnam(user)
            cwd = cwd or self.home(user)
            identity = {"user": known.pw_uid, "group": known.pw_gid, "extra_groups": []}
            own |= {"HOME": str(self.home(user)), "USER": user, "LOGNAME": user}
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=cwd,
            env={**own, **(environment or {})},
            **identity,  # type: ignore[call-overload]
        )
        if check and done.returncode != 0:
            told = f"{done.stdout}{done.stderr}".strip()
            raise ClusterError(f"{command} ended with {done.returncode}:\n{told}")
        return done.stdout

    def home(self, user: str) -> Path:
        """A directory on the shared disk that belongs to a user."""
        home = self.directory / "home" / user
        if not home.exists():
            home.mkdir()
            shutil.chown(home, user, pwd.getpwnam(user).pw_gid)
        return home

    def submit(self, script: str, *options: str, user: str | None = None) -> int:
        """Submits a script's text and returns the job's id.

        Without `--output`, the log is in the directory's `log`, or the user's home.
        """
        logs = self.home(user) if user else self.directory / "log"
        path = logs / f"job-{time.monotonic_ns()}.sbatch"
        path.write_text(script if script.startswith("#!") else f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        told = self.run(
            "sbatch", "--parsable", f"--output={logs}/%j.log", *options, path, user=user
        )
        return int(told.strip().split(";")[0])

    def job(self, job_id: int) -> dict[str, str]:
        """A job's record, as `scontrol show job` has it; a value may hold spaces and newlines."""
        return parse_record(self.run("scontrol", "show", "job", "-o", str(job_id)))

    def state(self, job_id: int) -> str:
        """A job's state in one word, such as PENDING, RUNNING, COMPLETED."""
        return self.job(job_id)["JobState"]

    def log(self, job_id: int) -> str:
        """What a job has printed until now."""
        path = Path(self.job(job_id)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, job_id: int, *states: str, timeout_s: float = 60) -> dict[str, str]:
        """Waits until a job is in one of the states, by default any that it ends with.

        Returns:
            The job's record.

        Raises:
            ClusterError: It isn't in time; with its record and the end of its log.
        """
        wanted = states or ENDED
        record: dict[str, str] = {}
        for _ in polling(timeout_s):
            record = self.job(job_id)
            if record["JobState"] in wanted:
                return record
        written = "\n".join(f"  {key}={value}" for key, value in record.items())
        raise ClusterError(
            f"job {job_id} is {record['JobState']}, not {' or '.join(wanted)}, after "
            f"{timeout_s:g} s\n{written}\n{self.log(job_id)[-3000:]}"
        )

    def wait_for_nodes(self, *nodes: str, timeout_s: float = 30) -> None:
        """Waits until nodes, by default all, answer and do nothing.

        Raises:
            ClusterError: They don't in time; with the ends of the daemons' logs.
        """
        wanted = set(nodes or self.nodes)
        states: dict[str, str] = {}
        for _ in polling(timeout_s):
            if self._guardian.poll() is not None:
                break
            if not self._is_listening():
                continue
            told = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False)
            states = dict(line.split() for line in told.splitlines())
            if all(states.get(name) == "idle" for name in wanted):
                return
        logs = self.directory.glob("log/*.*")
        ends = [f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in logs]
        raise ClusterError("\n".join([f"the nodes are {states or 'not there'}", *ends]))

    def processes(self, node: str, *words: str) -> list[int]:
        """Ids, as this machine has them, of a node's processes whose command line has all words."""
        namespace = (self.directory / "nodes" / node / "namespace").read_text()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                is_inside = str((path / "ns" / "pid").readlink()) == namespace
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if is_inside and all(word in line for word in words):
                found.append(int(path.name))
        return sorted(found)

    def crash(self, node: str) -> None:
        """Ends a node at once, with all that runs there, as when its power fails.

        The controller finds out by itself, after SlurmdTimeout.
        """
        (first,) = [pid for pid in self.processes(node) if is_first(pid)]
        os.kill(first, signal.SIGKILL)
        for _ in polling(10):
            if not self.processes(node):
                return
        raise ClusterError(f"{node} didn't end: {self.processes(node)}")

    def revive(self, node: str) -> None:
        """Starts a node that has crashed; what was in its memory and /dev/shm is gone."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(f"{node}\n".encode())
        self._guardian.stdin.flush()

    def job_ids(self) -> list[int]:
        """The jobs that are pending, running or ending."""
        return [int(word) for word in self.run("squeue", "-h", "-o", "%A").split()]

    def cancel_all(self, timeout_s: float = 30) -> list[int]:
        """Cancels all jobs and waits for their end; the ids of those that there were."""
        found = self.job_ids()
        if found:
            self.run("scancel", *map(str, found), check=False)
        for _ in polling(timeout_s):
            if not self.job_ids():
                return found
        raise ClusterError(f"jobs that don't end: {self.run('squeue')}")

    def _is_listening(self) -> bool:
        """Whether munge and the controller can be spoken to: clients wait long before they ask."""
        if not (self.directory / "munge" / "munge.socket").exists():
            return False
        try:
            socket.create_connection((f"{self.network}.1", 6817), timeout=0.2).close()
        except OSError:
            return False
        return True

    def _lay_out(self) -> None:
        """Makes the directory's folders, munge's key, and the GPUs' device files."""
        self.directory.chmod(0o755)
        for name in ("munge", "state", "log", "dev", "home", "nodes", "local"):
            (self.directory / name).mkdir(mode=0o755)
        for node in self.nodes:
            (self.directory / "nodes" / node / "spool").mkdir(parents=True)
            (self.directory / "nodes" / node / "local").mkdir()
            (self.directory / "nodes" / node / "local").chmod(0o1777)
        key = self.directory / "munge" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for number in range(GPUS_PER_NODE):
            device = self.directory / "dev" / f"nvidia{number}"
            os.mknod(device, 0o020666, os.makedev(1, 3))
            device.chmod(0o666)

    def _can_freeze(self) -> bool:
        """Whether control groups of the first version can be mounted; leaves a place for them."""
        place = self.directory / "cgroup" / "freezer"
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


def parse_record(text: str) -> dict[str, str]:
    """The fields of what `scontrol -o` prints; of a key that comes twice, the first."""
    text = text.strip()
    keys = list(KEY.finditer(text))
    ends = [key.start() for key in keys[1:]] + [len(text)]
    record: dict[str, str] = {}
    for key, end in zip(keys, ends, strict=True):
        record.setdefault(key.group(1), text[key.end() : end])
    return record


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

"""A cluster as tests hold it in their hands."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from tests.slurm.cluster import accounting as accounts
from tests.slurm.cluster.configuration import names_of, write_configuration
from tests.slurm.cluster.guardian import CONTROLLER_PORT, is_listening
from tests.slurm.cluster.machine import (
    ClusterError,
    can_freeze,
    claim_network,
    is_first,
    lay_out,
    polling,
    processes_in,
)
from tests.slurm.cluster.python import programs_for_all
from tests.slurm.cluster.records import ENDED, parse_record

GUARDIAN = Path(__file__).with_name("guardian.py")


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

    def __init__(
        self,
        num_nodes: int = 2,
        *,
        extra: str = "",
        accounting: bool = False,
        start_timeout_s: float = 30,
    ) -> None:
        """Starts the cluster and waits until all nodes are idle.

        Args:
            num_nodes: How many nodes, named node1, node2, …
            extra: Lines for slurm.conf; they replace those that set the same.
            accounting: Whether a database keeps what jobs took, for `sacct`; some seconds more.
            start_timeout_s: How long each part may take to start.

        Raises:
            ClusterError: A daemon didn't come up; with the ends of the logs.
        """
        # Unix sockets' names are short; pytest's directories can be too deep for them.
        self.directory = Path(tempfile.mkdtemp(prefix="sailplan-slurm-", dir="/tmp"))
        self.nodes = names_of(num_nodes)
        self.local = self.directory / "local"
        self._claim, self.network = claim_network()
        lay_out(self.directory, self.nodes)
        self.process_tracking = "cgroup" if can_freeze(self.directory) else "linuxproc"
        write_configuration(
            self.directory,
            network=self.network,
            num_nodes=num_nodes,
            process_tracking=self.process_tracking,
            accounting=accounting,
            extra=extra,
        )
        uplink = self.directory.name.replace("sailplan-slurm-", "sail-")
        with (self.directory / "log" / "cluster.out").open("ab") as log:
            self._guardian = subprocess.Popen(
                [
                    *("unshare", "--mount", sys.executable, "-I", "-S", GUARDIAN, "watch"),
                    *(self.directory, self.network, uplink, str(os.getpid())),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._start_daemons(accounting=accounting, timeout_s=start_timeout_s)
            self.wait_for_nodes(timeout_s=start_timeout_s)
        except BaseException:
            self.stop()
            raise

    @classmethod
    def start(cls, num_nodes: int = 2, *, extra: str = "", accounting: bool = False) -> Cluster:
        """Starts a cluster, to be used in a `with` or to be stopped with `stop`."""
        return cls(num_nodes, extra=extra, accounting=accounting)

    def _start_daemons(self, *, accounting: bool, timeout_s: float) -> None:
        """Starts munge, the database where there is one, the controller and the nodes."""
        munge = self.directory / "munge"
        self._tell(
            *("daemon", "munged", "munged", "-F", "--force", f"--key-file={munge}/munge.key"),
            *(f"--socket={munge}/munge.socket", f"--pid-file={munge}/munged.pid"),
            *(f"--log-file={self.directory}/log/munged.log", f"--seed-file={munge}/munge.seed"),
        )
        if accounting:
            socket, command = accounts.database(self.directory)
            self._tell("daemon", "mariadbd", *command)
            self._wait_until(socket.exists, timeout_s)
            self._tell("daemon", "slurmdbd", "slurmdbd", "-D")
            host = f"{self.network}.1"
            self._wait_until(lambda: is_listening(host, accounts.PORT), timeout_s)
            self.run("sacctmgr", "-i", "add", "cluster", "harbour")
        # Once it is up: a client that finds no munge waits long before it asks again.
        self._wait_until((munge / "munge.socket").exists, timeout_s)
        self._tell("daemon", "slurmctld", "slurmctld", "-D", "-c", "-i")
        for node in self.nodes:
            self._tell("node", node)
        self._wait_until(lambda: is_listening(f"{self.network}.1", CONTROLLER_PORT), timeout_s)

    def _tell(self, *words: str) -> None:
        """Has a node or a daemon started."""
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(f"{json.dumps(words)}\n".encode())
        self._guardian.stdin.flush()

    def _wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Waits for a condition of the start."""
        for _ in polling(timeout_s, every_s=0.01):
            if condition():
                return
            if self._guardian.poll() is not None:
                break
        raise ClusterError("\n".join(["the cluster doesn't start", *self._ends_of_logs()]))

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
            user: As whom, with a home and a Python that it can read; None as root.
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
            programs = programs_for_all(self.directory)
            own |= {"HOME": str(self.home(user)), "USER": user, "LOGNAME": user}
            own["PATH"] = f"{programs}:{os.environ['PATH']}"
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
            told = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False)
            states = dict(line.split() for line in told.splitlines())
            if all(states.get(name) == "idle" for name in wanted):
                return
        told = f"the nodes are {states or 'not there'}"
        raise ClusterError("\n".join([told, *self._ends_of_logs()]))

    def _ends_of_logs(self) -> Iterator[str]:
        """Yields what each daemon said last: in its log, or before it had one."""
        for path in sorted(self.directory.glob("log/*.out")):
            log = path.with_suffix(".log")
            text = (log if log.exists() else path).read_text(errors="replace")
            yield f"{path.stem}:\n{text[-1500:]}"

    def processes(self, node: str, *words: str) -> list[int]:
        """Ids, as this machine has them, of a node's processes whose command line has all words."""
        namespace = (self.directory / "nodes" / node / "namespace").read_text()
        return sorted(
            pid for pid, line in processes_in(namespace) if all(word in line for word in words)
        )

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
        self._tell("node", node)

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

"""Carries out a launch on this machine: its port, its files, its processes, their end."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

import psutil

from sailplan import __version__
from sailplan.errors import LaunchError
from sailplan.hardware.detect import Machine
from sailplan.launcher.accelerate import PARENT_VARIABLE
from sailplan.launcher.command import Launch
from sailplan.plan.record import Plan
from sailplan.run.claim import Claim
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory

HOST = "127.0.0.1"

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "datasets",
)
"""Packages whose versions decide how a run goes."""


def meeting_port(run: Run) -> int:
    """Returns the port where the ranks meet: the one that is asked for, else a free one.

    Raises:
        LaunchError: The one that is asked for is taken.
    """
    asked = run.launch.main_process_port or run.accelerate.get("main_process_port") or 0
    with socket.socket() as probe:
        # A port whose last owner has just gone is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, asked))
        except OSError as error:
            raise LaunchError(
                f"main_process_port {asked} cannot be used ({error.strerror})",
                todo="drop it to take a free port, or choose another",
            ) from None
        return int(probe.getsockname()[1])


def train(
    run: Run,
    launch: Launch,
    machine: Machine,
    environment: Mapping[str, str],
    *,
    plan: Plan | None = None,
) -> int:
    """Carries a run's launch out in its directory and returns its exit code.

    A run that fails before it trains leaves the directory as it was.

    Args:
        run: The run.
        launch: How it is launched.
        machine: Where.
        environment: Variables of the ranks beside the launch's own; may hold secrets.
        plan: What the run was planned to need, where it was planned.

    Raises:
        OutputError: The directory cannot be written, or holds another run.
    """
    directory = RunDirectory.of(run)
    began_before = directory.began_at()
    claim = write_files(run, launch, machine, plan=plan)
    code = 1
    try:
        code = carry_out(launch, environment)
    finally:
        if code and directory.began_at() == began_before:
            claim.take_back()
    return code


def write_files(run: Run, launch: Launch, machine: Machine, *, plan: Plan | None = None) -> Claim:
    """Claims the run's directory with what the launch reads and what it was.

    Args:
        run: The run.
        launch: How it is launched.
        machine: Where.
        plan: What it was planned to need.

    Raises:
        OutputError: The directory cannot be written, or holds another run.
    """
    directory = RunDirectory.of(run)
    record = json.dumps(environment_record(run, launch, machine), indent=2)
    texts = {
        **launch.files,
        directory.command_file: launch.shell() + "\n",
        directory.environment_file: record + "\n",
    }
    if plan is not None:
        texts[directory.plan_file] = plan.text()
    return directory.claim(run, texts)


def environment_record(run: Run, launch: Launch, machine: Machine) -> dict[str, object]:
    """Returns what a run's outcome may depend on beside its settings; never a secret."""
    return {
        "sailplan": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": asdict(machine),
        "strategy": launch.strategy,
        "processes": launch.processes,
        "variables": dict(launch.env),
        "variables_of_the_run_file": sorted(run.environment()),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def carry_out(launch: Launch, environment: Mapping[str, str]) -> int:
    """Starts the processes, waits for them, and returns the exit code of the run.

    Ctrl-C (or SIGTERM, SIGHUP) once asks the ranks to stop and waits for them; twice kills them.
    No process is left when it returns.

    Args:
        launch: What to start.
        environment: Variables of the ranks beside the launch's own; may hold secrets.
    """
    argv = [sys.executable, "-m", "sailplan.launcher.accelerate", *launch.argv[1:]]
    env = {**environment, **launch.env, PARENT_VARIABLE: str(os.getpid())}
    # DeepSpeed builds with the ninja beside this interpreter, activated environment or not.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    stop = _Stop()
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    # `nohup` has SIGHUP ignored: it stays so.
    signals = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in signals}
    try:
        # In a session of its own, so that a Ctrl-C at the terminal reaches the ranks once, from us.
        process = subprocess.Popen(argv, env=env, start_new_session=True)
        stop.follow(process)
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stop.received:
        return 128 + stop.received[0]
    return code if code >= 0 else 128 - code


class _Stop:
    """A signal handler that passes the first signal on, and kills at the second."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        """Names the process that is to be stopped, now or later."""
        self.process = process
        if self.received:
            process.send_signal(self.received[0])

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        self.received.append(signum)
        if self.process is None:
            return
        if len(self.received) == 1:
            print("\nstopping; Ctrl-C again kills the run", file=sys.stderr)
            self.process.send_signal(signum)
        else:
            _kill_with_children(self.process.pid)


def _kill_with_children(pid: int) -> None:
    try:
        process = psutil.Process(pid)
        everyone = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in everyone:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue

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
from pathlib import Path
from types import FrameType

import psutil

from sailplan import __version__
from sailplan.errors import LaunchError, StoppedError
from sailplan.hardware.detect import Machine
from sailplan.imports import installed_versions
from sailplan.launcher.command import Launch
from sailplan.launcher.commit import commit_of
from sailplan.plan.record import Plan
from sailplan.processes import (
    ORPHAN_GRACE_S,
    STOP_SIGNALS,
    adopting_orphans,
    descendants,
    heeded_signals,
    kill,
    launchers_of,
    send,
    with_launcher,
)
from sailplan.run.claim import Claim
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.state import starting, text

HOST = "127.0.0.1"

_MARGIN_S = 15.0
"""Ranks that are left behind end by themselves; so much later they are killed."""

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
        directory.stop_file.unlink(missing_ok=True)  # it was for an earlier launch
        code = carry_out(launch, environment)
    finally:
        directory.stop_file.unlink(missing_ok=True)
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
    texts = launch_texts(run, launch, machine, plan=plan)
    return directory.claim(run, {**texts, directory.state_file: text(starting(directory))})


def launch_texts(
    run: Run, launch: Launch, machine: Machine, *, plan: Plan | None = None
) -> dict[Path, str]:
    """Returns what is written of a launch: what it reads, what it is, what it was planned to need.

    Args:
        run: The run.
        launch: How it is launched.
        machine: Each of the machines it trains on.
        plan: What it was planned to need.
    """
    directory = RunDirectory.of(run)
    record = json.dumps(environment_record(run, launch, machine), indent=2)
    return {
        **launch.files,
        directory.command_file: launch.shell() + "\n",
        directory.environment_file: record + "\n",
        **({directory.plan_file: plan.text()} if plan else {}),
    }


def environment_record(run: Run, launch: Launch, machine: Machine) -> dict[str, object]:
    """Returns what a run's outcome may depend on beside its settings; never a secret."""
    commit = commit_of(Path.cwd())
    return {
        "sailplan": __version__,
        **({"commit": commit} if commit else {}),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": installed_versions(PACKAGES),
        "machine": asdict(machine),
        "strategy": launch.strategy,
        "processes": launch.processes,
        "variables": dict(launch.env),
        "variables_of_the_run_file": sorted(run.environment()),
    }


def carry_out(launch: Launch, environment: Mapping[str, str]) -> int:
    """Starts the processes, waits for them, and returns the exit code of the run.

    A stop signal (Ctrl-C, SIGTERM, SIGUSR1, SIGHUP) asks the ranks to save and to end, and they
    are waited for; a second one kills them. No process is left when it returns.

    Args:
        launch: What to start.
        environment: Variables of the ranks beside the launch's own; may hold secrets.
    """
    argv = [sys.executable, "-m", "sailplan.launcher.accelerate", *launch.argv[1:]]
    env = {**environment, **launch.env, **with_launcher(launchers_of(environment))}
    # DeepSpeed builds with the ninja beside this interpreter, activated environment or not.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    stop = _Stop()
    previous = {number: signal.signal(number, stop) for number in heeded_signals()}
    try:
        with adopting_orphans():
            others = set(descendants())
            # In a session of its own, so that a Ctrl-C at the terminal reaches the ranks once.
            process = subprocess.Popen(argv, env=env, start_new_session=True)
            stop.follow(process, others)
            code = process.wait()
            codes = [code, *stop.wait_for_the_rest()]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stop.kills:
        return 128 + stop.received[0]
    if StoppedError.exit_code in codes or (stop.received and -code in STOP_SIGNALS):
        return StoppedError.exit_code
    return code if code >= 0 else 128 - code


class _Stop:
    """A signal handler that passes the first signal on, and kills at the second."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.kills = False
        self._process: subprocess.Popen[bytes] | None = None
        self._others: set[psutil.Process] = set()

    def follow(self, process: subprocess.Popen[bytes], others: set[psutil.Process]) -> None:
        """Names the process that is to be stopped, now or later, and those that are not."""
        self._process, self._others = process, others
        if self.received:
            process.send_signal(self.received[0])

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        self.received.append(signum)
        if self._process is None:
            return
        if len(self.received) == 1:
            print("\nstopping; Ctrl-C again kills the run", file=sys.stderr)
            self._process.send_signal(signum)
        elif signum != signal.SIGUSR1:  # schedulers may send that more than once
            self.kills = True
            send(self._below(), signal.SIGKILL)

    def wait_for_the_rest(self) -> list[int | None]:
        """Waits for ranks whose launcher was killed, then kills; returns their exit codes."""
        left = self._below()
        if not left:
            return []
        if self._process is not None and self._process.returncode == -signal.SIGKILL:
            print("the process above the ranks was killed; waiting for them", file=sys.stderr)
        gone, alive = psutil.wait_procs(left, timeout=ORPHAN_GRACE_S + _MARGIN_S)
        kill(alive)
        return [getattr(process, "returncode", None) for process in gone]

    def _below(self) -> list[psutil.Process]:
        return [process for process in descendants() if process not in self._others]

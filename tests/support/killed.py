"""Runs of `sailplan train` that are killed at a chosen moment, and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from sailplan.checkpoint.manifest import MANIFEST
from sailplan.run.metrics import read_metrics
from sailplan.run.paths import RunPaths

_MARK = "SAILPLAN_TEST_LAUNCH"
_LOOK_EVERY_S = 0.002
STRATEGIES = {"single": 1, "ddp": 2, "zero2": 2, "zero3": 2}
"""What is killed, and on how many ranks."""


def run_file(
    path: Path, values: dict[str, Any], *, strategy: str, ranks: int, cpu: bool = True
) -> Path:
    """Writes a run file for the CPU, or for as many GPUs."""
    devices = {"cpu": True, "processes": ranks} if cpu else {"gpus_per_node": ranks}
    launch = {**devices, "strategy": strategy}
    path.write_text(yaml.safe_dump({**values, "launch": launch}))
    return path


class Launched:
    """One `sailplan train` and all processes below it.

    Args:
        file: The run file.
        arguments: Further arguments.
        env: Further variables.
    """

    def __init__(self, file: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.out = file.with_name(f"{file.stem}-{self.mark[:6]}.log")
        with self.out.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sailplan", "train", str(file), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {}), _MARK: self.mark},
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.out.read_text(errors="replace")

    def everyone(self) -> list[psutil.Process]:
        """Returns what is alive of it: the launcher, ranks, their workers."""
        found = []
        for process in psutil.process_iter():
            try:
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(_MARK) == self.mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """Returns the processes of the entry script by their rank, without their workers."""
        found: dict[int, psutil.Process] = {}
        for process in self.everyone():
            try:
                words = process.cmdline()
                parent = process.parent()
                is_entry = "sailplan.train.sft_vlm" in words and "launch" not in words
                if is_entry and not (parent and parent.cmdline() == words):
                    found[int(process.environ().get("RANK", "0"))] = process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def until(self, true: Callable[[], object], *, timeout: float = 180) -> bool:
        """Waits until something is so; False where the run ends before.

        Raises:
            TimeoutError: It takes too long.
        """
        end = time.monotonic() + timeout
        while not true():
            if self.process.poll() is not None:
                return bool(true())
            if time.monotonic() > end:
                raise TimeoutError(self.text[-4000:])
            time.sleep(_LOOK_EVERY_S)
        return True

    def end(self, *, timeout: float = 240) -> int:
        """Waits for its end and returns its exit code."""
        return self.process.wait(timeout=timeout)

    def gone(self, *, timeout: float = 60) -> list[str]:
        """Waits until nobody is left; returns the command lines of those who are."""
        end = time.monotonic() + timeout
        while (left := self.everyone()) and time.monotonic() < end:
            time.sleep(0.05)
        return [" ".join(process.cmdline()) for process in left]

    def kill(self, whom: str) -> None:
        """Kills `rank N`, `all ranks` or the `launcher` by SIGKILL."""
        ranks = self.ranks()
        if whom == "launcher":
            victims = [psutil.Process(self.process.pid)]
        elif whom == "all ranks":
            victims = list(ranks.values())
        else:
            victims = [ranks[int(whom.split()[1])]]
        for victim in victims:
            try:
                victim.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue


@contextmanager
def launched(file: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Launched]:
    """Starts a run, and leaves nothing of it behind."""
    run = Launched(file, *arguments, env=env)
    try:
        yield run
    finally:
        for process in run.everyone():
            process.kill()
        run.process.wait()


def saving(output_dir: Path) -> list[int]:
    """Returns the steps whose checkpoints are there and not whole yet."""
    return [
        int(folder.name.split("-")[1])
        for folder in RunPaths(output_dir).checkpoints()
        if not (folder / MANIFEST).exists()
    ]


def whole(output_dir: Path) -> list[int]:
    """Returns the steps of the checkpoints that have their manifest, in order."""
    return [
        int(folder.name.split("-")[1])
        for folder in RunPaths(output_dir).checkpoints()
        if (folder / MANIFEST).exists()
    ]


def steps_done(output_dir: Path) -> int:
    """Returns the last step that was logged."""
    path = output_dir / "metrics.jsonl"
    if not path.is_file():
        return 0
    lines = path.read_text().splitlines()
    return max((json.loads(line).get("step", 0) for line in lines if line.endswith("}")), default=0)


def curve(output_dir: Path) -> list[tuple[int, float, float, int]]:
    """Returns step, loss, gradient norm and tokens of every logged step, bit for bit."""
    return [
        (record["step"], record["loss"], record.get("grad_norm", 0.0), record["num_tokens"])
        for record in read_metrics(output_dir / "metrics.jsonl")
        if "loss" in record
    ]

"""Starting the entry script as a user does by hand, and reading what it leaves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.support import patience

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "sailplan.train.sft_vlm"


class End(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


Entry = Callable[[list[str]], End]
"""The entry script, called with flags in a process that cases share."""


@contextmanager
def entry_script(cache: Path, env: dict[str, str] | None = None) -> Iterator[Entry]:
    """Starts a process that runs the entry script as often as it is called.

    Args:
        cache: Where `datasets` keeps what it has read.
        env: The process's environment, where it is not this one's.
    """
    with _answering("tests.support.cases", cache, env) as ask:
        yield lambda arguments: ask(arguments)


class Forked(Protocol):
    """The entry script, called with flags and faults; each call is a process of its own."""

    def __call__(self, arguments: list[str], *faults: dict[str, Any]) -> End:
        """Returns how it ended: the exit code, or minus the signal that it was ended by."""


@contextmanager
def forked_entry_script(cache: Path) -> Iterator[Forked]:
    """Starts a process that imports all that the entry script does, and forks for each call.

    Args:
        cache: Where `datasets` keeps what it has read.
    """
    with _answering("tests.support.forks", cache) as ask:
        yield lambda arguments, *faults: ask([arguments, list(faults)])


@contextmanager
def _answering(
    module: str, cache: Path, env: dict[str, str] | None = None
) -> Iterator[Callable[[Any], End]]:
    command = [sys.executable, "-m", module]
    env = {**(os.environ if env is None else env), "HF_DATASETS_CACHE": str(cache)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        written, read = process.stdin, process.stdout

        def ask(question: Any) -> End:
            written.write(json.dumps(question, default=str) + "\n")
            written.flush()
            return End(**json.loads(read.readline()))

        yield ask
        written.close()


def free_port() -> int:
    """Returns a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def flags(values: dict[str, Any]) -> list[str]:
    """Turns field values into flags as a user types them."""
    out: list[str] = []
    for name, value in values.items():
        out.append(f"--{name}")
        out += [str(item) for item in (value if isinstance(value, list) else [value])]
    return out


def accelerate_launch(
    arguments: Sequence[str],
    *,
    preset: str,
    processes: int,
    timeout: float = 240,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs the entry script by hand under `accelerate launch` on CPU and waits for its end."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / f"{preset}.yaml")]
    command += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    command += ["-m", ENTRY, *arguments, "--use_cpu"]
    return patience.run(command, timeout=timeout, env={**os.environ, **(env or {})})


def two_ranks(script: Path, arguments: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """Runs a script that makes its own process group on two CPU ranks, and waits for its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(script), *map(str, arguments)]
    return patience.run(command, timeout=200, env={**os.environ, "ACCELERATE_USE_CPU": "true"})


def losses(output_dir: Path) -> list[float]:
    """Reads the training loss of each logged step."""
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]

"""From a run and a machine to a launch: the exact command, environment and files. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sailplan.hardware.detect import Machine
from sailplan.launcher.strategy import Division, divide
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory

ENTRY_MODULE = "sailplan.train.sft_vlm"

_SAID_OTHERWISE = {
    # by the preset
    "accelerate_config",
    "zero_stage",
    "use_deepspeed",
    "use_fsdp",
    "multi_gpu",
    # by the command line or the environment
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "cpu",
    "use_cpu",
    "num_cpu_threads_per_process",
}
"""accelerate flags of a run file that are not passed on as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A launch that only has to be carried out."""

    argv: tuple[str, ...]
    """The command, from `accelerate launch` to the ranks' `--config train.yaml`."""
    env: Mapping[str, str]
    """Variables that sailplan sets beside those of the process; never a secret."""
    files: Mapping[Path, str]
    """What the command reads: path to text."""
    strategy: str
    """What is sharded."""
    processes: int
    """Ranks, on all machines."""
    nodes: int = 1
    """Machines. With several, each adds its own `--machine_rank`, and where the ranks meet."""
    notes: tuple[str, ...]
    """What was decided and why, one line each."""

    def shell(self) -> str:
        """Returns the command as a line that a POSIX shell takes."""
        variables = [f"{name}={value}" for name, value in self.env.items()]
        return shlex.join(["env", *variables, *self.argv] if variables else self.argv)


def command(
    run: Run,
    machine: Machine,
    *,
    port: int | None,
    environment: Mapping[str, str],
    module: str = ENTRY_MODULE,
) -> Launch:
    """Decides how the run is launched.

    Args:
        run: What to train.
        machine: Each of the machines it trains on.
        port: A free port on 127.0.0.1 where the ranks meet; None where that is found out later.
        environment: Variables that the command will run with beside its own.
        module: What each rank runs.

    Raises:
        SailplanError: The run does not fit the machine, or contradicts itself.
    """
    division = divide(run, machine)
    directory = RunDirectory.of(run)
    # The micro batch and the accumulation are the user's; a wrong global batch fails here already.
    rank_run = run.for_world_size(division.processes)
    if division.on_cpu:
        rank_run = replace(rank_run, explicit={**rank_run.explicit, "use_cpu": True})
    argv = ["accelerate", "launch", "--config_file", str(directory.accelerate_file)]
    argv += ["--num_processes", str(division.processes)]
    if division.nodes > 1:
        argv += ["--num_machines", str(division.nodes)]
    if division.preset.strategy != "single" and port is not None:
        argv += ["--main_process_port", str(port)]
    argv += _flags(run.accelerate)
    argv += ["-m", module, "--config", str(directory.train_file)]
    return Launch(
        argv=tuple(argv),
        env=dict(_variables(run, division, machine, environment)),
        files={
            directory.train_file: rank_run.train_yaml(),
            directory.accelerate_file: division.preset.text,
        },
        strategy=division.preset.strategy,
        processes=division.processes,
        nodes=division.nodes,
        notes=division.notes,
    )


def _flags(accelerate: Mapping[str, Any]) -> list[str]:
    """Returns the other flags of `accelerate launch` that the run file holds."""
    argv: list[str] = []
    for name, value in accelerate.items():
        if name in _SAID_OTHERWISE or value is None or value is False:
            continue
        values = value if isinstance(value, list) else [value]
        for item in values:
            argv += [f"--{name}"] if item is True else [f"--{name}", str(item)]
    return argv


def _variables(
    run: Run, division: Division, machine: Machine, environment: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yields the variables that the ranks need and the user has not set."""
    if "OMP_NUM_THREADS" not in environment:
        # Not by accelerate's flag, which its DeepSpeed launcher forgets.
        share = max(1, machine.cpu_cores.value // division.processes_per_node)
        yield "OMP_NUM_THREADS", str(run.accelerate.get("num_cpu_threads_per_process") or share)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if division.on_cpu:
        if machine.gpus.value:
            yield "CUDA_VISIBLE_DEVICES", ""  # else DeepSpeed and accelerate find them
        if division.preset.strategy.startswith("zero") and "DS_ACCELERATOR" not in environment:
            yield "DS_ACCELERATOR", "cpu"
        if (
            division.processes > 1
            and division.nodes == 1
            and "GLOO_SOCKET_IFNAME" not in environment
        ):
            yield "GLOO_SOCKET_IFNAME", "lo"  # else gloo needs a host name that resolves
    elif division.preset.strategy == "single" and len(machine.gpus.value) > 1:
        # Trainer would wrap the model in DataParallel, which TRL refuses.
        yield "CUDA_VISIBLE_DEVICES", (visible or "0").split(",")[0].strip()

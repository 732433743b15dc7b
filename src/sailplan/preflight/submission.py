"""From a run and a cluster to the jobs that train, merge and compare it. Nothing is submitted."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sailplan.errors import HardwareError
from sailplan.hardware.catalogue import find
from sailplan.hardware.detect import Detected, Gpu, Machine
from sailplan.launcher.strategy import cpu_is_asked, ranks_of_accelerate
from sailplan.preflight.ready import preparing
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.slurm_block import SlurmBlock
from sailplan.slurm.jobs import KINDS, Kind
from sailplan.slurm.script import JobRequest
from sailplan.supervise.attempt_log import settled_before
from sailplan.supervise.attempts import Ready


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """The jobs of a run, each of which only has to be submitted."""

    ready: Ready
    """The run, as it is launched."""
    node: Machine
    """What each node is taken to have."""
    requests: tuple[JobRequest, ...]
    """The first one depends on none, each other on the one before."""
    notes: tuple[str, ...]
    """What was decided, one line each."""


def on_cluster(run: Run, settings: SlurmBlock) -> Run:
    """Returns a run with the GPUs of the cluster where it names none."""
    of_cluster = {
        "gpu": run.launch.gpu or settings.gpu,
        "gpus_per_node": run.launch.gpus_per_node or settings.gpus_per_node,
    }
    if cpu_is_asked(run):
        return run
    update = {name: value for name, value in of_cluster.items() if value is not None}
    return replace(run, launch=run.launch.model_copy(update=update))


def on_nodes(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns what a job finds of an environment: which GPUs it sees, Slurm says on each node."""
    return {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}


def node_of(run: Run, settings: SlurmBlock, here: Machine) -> Machine:
    """Returns what each node of a job is taken to have, by what is written.

    Args:
        run: The run, as `on_cluster` returns it.
        settings: The cluster's.
        here: This machine, which stands for a node in all that nothing is written of.

    Raises:
        HardwareError: Neither a GPU nor the CPU is asked for, or it is not in the catalogue.
        RunFileError: The ranks do not divide over the nodes.
    """
    asked = settings.cpus_per_task
    if cpu_is_asked(run):
        cores = asked or run.launch.processes or run.launch.gpus_per_node or 1
        return replace(
            here,
            gpus=Detected(value=(), reason="the run asks for none"),
            cpu_cores=Detected(value=cores, reason="asked of Slurm"),
        )
    count = run.launch.gpus_per_node or ranks_of_accelerate(run)
    if run.launch.gpu is None or count is None:
        lacking = "launch.gpu" if run.launch.gpu is None else "launch.gpus_per_node"
        raise HardwareError(
            f"neither the run file nor the cluster's profile says {lacking}",
            todo="write it, such as --launch.gpu H100-80GB --launch.gpus_per_node 8; or "
            "--launch.cpu for a cluster without GPUs",
        )
    model = find(run.launch.gpu)
    gpus = (Gpu(name=model.name, memory_bytes=model.memory_bytes),) * count
    cores = asked or (settings.cpus_per_gpu or 1) * count
    return replace(
        here,
        gpus=Detected(value=gpus, reason="asked of Slurm"),
        cpu_cores=Detected(value=cores, reason="asked of Slurm"),
    )


def submission(
    run: Run,
    settings: SlurmBlock,
    here: Machine,
    environment: Mapping[str, str],
    *,
    kinds: Sequence[Kind],
    offline: bool = False,
    refuse: bool = True,
) -> Submission:
    """Decides how a run is launched on a cluster, and what its jobs are.

    Args:
        run: The run, as `on_cluster` returns it.
        settings: The cluster's, with what the run says over them.
        here: This machine, from which it is submitted.
        environment: The variables that the jobs will find.
        kinds: Which jobs.
        offline: Whether everything is in the caches, and the hub is not to be asked.
        refuse: Stop a run that does not fit.

    Raises:
        SailplanError: The run cannot go right there; which class says why.
    """
    node = node_of(run, settings, here)
    if not node.gpus.value and settings.cpus_per_gpu is None:
        settings = settings.model_copy(update={"cpus_per_task": node.cpu_cores.value})
    prepare = preparing(
        run, node, on_nodes(environment), port=lambda: None, refuse=refuse, here=False
    )
    changed, why = settled_before(run, node)
    ready = prepare(changed)
    offline_variables = {"HF_HUB_OFFLINE": "1"} if offline else {}
    paths = RunDirectory.of(run)
    num_gpus = len(node.gpus.value)
    requests = [
        JobRequest(
            kind=kind,
            name=str(run.get("run_name") or paths.path.name),
            paths=paths,
            settings=settings,
            nodes=ready.launch.nodes if kind == "train" else 1,
            gpus_per_node=num_gpus,
            command=_command(kind, paths, ready, merged="merge" in kinds),
            variables={**(ready.launch.env if kind == "train" else {}), **offline_variables},
            wanted=tuple(sorted(run.environment())),
            working_directory=Path.cwd(),
            python=Path(sys.executable),
            about=_about(kind, ready),
        )
        for kind in KINDS
        if kind in kinds
    ]
    return Submission(
        ready=ready, node=node, requests=tuple(requests), notes=(*run.notes, *why, *ready.notes)
    )


def _command(kind: Kind, paths: RunDirectory, ready: Ready, *, merged: bool) -> tuple[str, ...]:
    """Returns what a job runs; of training what comes after `accelerate`."""
    if kind == "train":
        return ready.launch.argv[1:]
    run, output = str(paths.path), str(paths.merged)
    sailplan = ("python", "-m", "sailplan", kind, run)
    if kind == "merge":
        return (*sailplan, "--output", output)
    return (*sailplan, "--tuned", run, "--tuned", output) if merged else sailplan


def _about(kind: Kind, ready: Ready) -> str:
    launch = ready.launch
    if kind == "merge":
        return "makes one Hugging Face model of what the run has saved"
    if kind == "compare":
        return "has base and tuned model answer the same held-out rows"
    ranks = launch.processes // launch.nodes
    model = ready.run.get("model_name_or_path")
    return f"trains {model}, {launch.strategy} on {launch.nodes} × {ranks} ranks"

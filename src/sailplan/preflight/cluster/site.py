"""What the doctor proves of a cluster, and the jobs that it is proven by."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sailplan.hardware.catalogue import find
from sailplan.hardware.detect import Machine, detect
from sailplan.launcher.command import Launch, command
from sailplan.launcher.strategy import nodes_of
from sailplan.preflight.cluster.places import nearest
from sailplan.preflight.smoke import KEPT
from sailplan.preflight.submission import node_of, on_cluster, on_nodes, submission
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.paths import RunPaths
from sailplan.run.slurm_block import SlurmBlock
from sailplan.slurm.jobs import KINDS
from sailplan.slurm.request import JobRequest, seconds

RANKS_MODULE = "sailplan.preflight.cluster.ranks"

RANKS_ON_CPU = 2
"""Ranks of a node where the cluster has no GPUs, and no run says how many."""

TIME = "00:10:00"
"""At most, of a job that takes about a minute: the shorter it is, the sooner it starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A cluster, as it is to be proven."""

    settings: SlurmBlock
    """Its profile, with what the run says over it."""
    run: Run | None = None
    """The run that it is proven for; None for any."""
    num_nodes: int | None = None
    """Of the smoke job; two, where there are two, if it is None."""
    folder: Path | None = None
    """Where the smoke job writes; a new folder beside the run's, or here, if it is None."""
    wait_s: float = 600.0
    """How long the smoke job may pend."""
    environment: Mapping[str, str] = field(repr=False)
    """What jobs find in theirs; may hold secrets."""

    @property
    def asked(self) -> Run:
        """The run with the cluster's GPUs; one that asks for the CPU where there are none."""
        run = on_cluster(self.run or Run(explicit={}), self.settings)
        has_gpus = run.launch.gpu or run.launch.gpus_per_node
        if self.run is not None or has_gpus:
            return run
        launch = run.launch.model_copy(update={"cpu": True, "processes": RANKS_ON_CPU})
        return replace(run, launch=launch)

    @property
    def beside(self) -> Path:
        """The folder in which the smoke job's is made: the run directory's parent, or this one."""
        return nearest(RunDirectory.of(self.run).path.parent) if self.run else Path.cwd()

    @property
    def hub_cache(self) -> Path:
        """The hub's cache of jobs."""
        own = self.settings.shared_cache or self.settings.environment.get("HF_HOME")
        cache = own or self.environment.get("HF_HOME") or "~/.cache/huggingface"
        return Path(cache).expanduser()


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoke:
    """The smoke job, as it is to be submitted."""

    request: JobRequest
    """Its script."""
    launch: Launch
    """What its ranks read, and how they are sharded."""
    ranks_per_node: int
    """Ranks of each node."""
    gpu: str
    """The GPU that is promised, as the catalogue has it; empty on the CPU."""


def node(site: Site) -> Machine:
    """Returns what each node of the cluster is taken to have.

    Raises:
        HardwareError: Nothing says how many GPUs, or which; or it is not in the catalogue.
    """
    return node_of(site.asked, site.settings, detect(site.environment))


def smoke(site: Site, folder: Path, num_nodes: int, *, strategy: str | None) -> Smoke:
    """Returns the smoke job.

    Args:
        site: The cluster.
        folder: Where it writes.
        num_nodes: On how many nodes.
        strategy: How the run is sharded, where it was decided.

    Raises:
        SailplanError: It cannot be launched so.
    """
    asked, machine = site.asked, node(site)
    toy = _toy(asked, machine, folder, num_nodes, strategy if site.run else "ddp")
    there = on_nodes(site.environment)
    launch = command(toy, machine, port=None, environment=there, module=RANKS_MODULE)
    ranks_per_node = launch.processes // launch.nodes
    own = {"time": _time(site.settings.time), "stop_before_s": 0}
    silent = {"mail_user": None, "mail_type": None}
    on_gpus = bool(machine.gpus.value)
    request = JobRequest(
        kind="train",
        name="sailplan-smoke",
        paths=RunPaths(folder),
        settings=site.settings.model_copy(update={**own, **silent}),
        nodes=num_nodes,
        gpus_per_node=len(machine.gpus.value),
        command=launch.argv[1:],
        variables=launch.env,
        working_directory=Path.cwd(),
        python=Path(sys.executable),
        about=f"proves {num_nodes} nodes: trains a toy, {launch.strategy} on "
        f"{num_nodes} × {ranks_per_node} ranks",
    )
    gpu = find(asked.launch.gpu).name if on_gpus and asked.launch.gpu else ""
    return Smoke(request=request, launch=launch, ranks_per_node=ranks_per_node, gpu=gpu)


def _toy(asked: Run, machine: Machine, folder: Path, num_nodes: int, strategy: str | None) -> Run:
    """Returns a run that is launched as the one that is asked for, on as many nodes as given."""
    gpus = len(machine.gpus.value)
    accelerate = dict(asked.accelerate)
    of_accelerate = (accelerate.pop("num_processes", None) or 0) // nodes_of(asked)
    accelerate.pop("num_machines", None)
    here = gpus or asked.launch.processes or asked.launch.gpus_per_node or of_accelerate or 1
    strategy = strategy or asked.launch.strategy
    if strategy == "single" and here * num_nodes > 1:
        strategy = "ddp"
    elif strategy == "ddp" and here * num_nodes == 1:
        strategy = "single"
    counts = {"gpus_per_node": gpus or None, "processes": None if gpus else here}
    update = {"nodes": num_nodes, "strategy": strategy, "main_process_port": None, **counts}
    kept = {name: asked.explicit[name] for name in KEPT if name in asked.explicit}
    return replace(
        asked,
        explicit={**kept, "output_dir": str(folder)},
        launch=asked.launch.model_copy(update=update),
        accelerate=accelerate,
        env={},
    )


def _time(asked: str | None) -> str:
    """Returns the smoke job's time limit: ours, or the one that is asked for if that is shorter."""
    wanted_s = seconds(asked) if asked else None
    return asked if asked and wanted_s and wanted_s < (seconds(TIME) or 0) else TIME


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The jobs that `sailplan submit` would ask for."""

    requests: tuple[JobRequest, ...]
    """In the order of a chain."""
    strategy: str | None
    """How the run is sharded; None without a run."""


def asked_jobs(site: Site, folder: Path, num_nodes: int) -> Asked:
    """Returns the jobs that `sailplan submit` would submit, and those that may follow.

    Args:
        site: The cluster.
        folder: What stands for a run's directory where no run is named.
        num_nodes: Of training where no run is named.

    Raises:
        SailplanError: The run cannot be submitted; which class says why.
    """
    if site.run is not None:
        found = submission(
            site.asked,
            site.settings,
            detect(site.environment),
            site.environment,
            kinds=KINDS,
            refuse=False,
        )
        return Asked(requests=found.requests, strategy=found.ready.launch.strategy)
    training = smoke(site, folder, num_nodes, strategy="ddp").request
    training = replace(training, settings=site.settings, name="", about="trains a run")
    command = ("python", "-m", "sailplan")
    others = (
        replace(
            training,
            kind=kind,
            nodes=1,
            command=(*command, kind, str(folder)),
            variables={},
            about=f"runs `sailplan {kind}`",
        )
        for kind in KINDS[1:]
    )
    return Asked(requests=(training, *others), strategy=None)

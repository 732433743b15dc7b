"""What a job asks of Slurm and finds on its nodes: a cluster's profile, and a run's `slurm:`.

Both have the same keys. A profile says how a cluster is; what a run file or a flag says of the
same key wins over it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

OneLine = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", strip_whitespace=True)]
"""A text that becomes part of a job script: nothing that would start a line of its own."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The name of an environment variable."""

GpuRequest = Literal["gres", "gpus_per_node", "gpus_per_task", "none"]
"""How a cluster wants to be asked for GPUs; `none` where nodes are given whole."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageBlock(_Settings):
    """What another job of a chain asks for, where it differs from training."""

    partition: OneLine | None = None
    account: OneLine | None = None
    qos: OneLine | None = None
    constraint: OneLine | None = None
    time: OneLine | None = None
    cpus_per_task: int | None = Field(default=None, ge=1)
    mem: OneLine | None = None
    gpus: int | None = Field(default=None, ge=0)
    """Of them; of merging none unless it is written, of comparing one."""


class ContainerBlock(_Settings):
    """The container in which everything of a job runs."""

    runtime: Literal["pyxis", "apptainer"]
    image: OneLine
    """An image's name or file."""
    mounts: tuple[OneLine, ...] = ()
    """`from` or `from:to`, each; the run's directory and the working directory are always there."""


class SlurmBlock(_Settings):
    """How jobs are asked for, and what they find; None leaves it to Slurm."""

    cluster: OneLine | None = None
    """The profile that holds where nothing else is written; of a run alone."""
    partition: OneLine | None = None
    account: OneLine | None = None
    qos: OneLine | None = None
    constraint: OneLine | None = None
    reservation: OneLine | None = None
    exclude: OneLine | None = None
    time: OneLine | None = None
    """As sbatch takes it, such as 08:00:00 or 2-00:00:00."""
    gpu: OneLine | None = None
    """The GPUs of the cluster as the catalogue names them, unless `launch.gpu` is written."""
    gpus_per_node: int | None = Field(default=None, ge=1)
    """GPUs that a job takes of a node, unless `launch.gpus_per_node` is written."""
    gpu_request: GpuRequest = "gres"
    gpu_type: OneLine | None = None
    """The GPUs as this Slurm names them, where it has several kinds, such as h100."""
    gres: OneLine | None = None
    """In place of what `gpu_request` would ask for, such as gpu:h100:8."""
    exclusive: bool = False
    """Whether nodes are asked for whole."""
    cpus_per_gpu: int | None = Field(default=None, ge=1)
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Of the one launcher of a node, in place of `cpus_per_gpu`."""
    mem_per_gpu: OneLine | None = None
    mem: OneLine | None = None
    """Of a node, in place of `mem_per_gpu`; 0 is all of it."""
    mail_user: OneLine | None = None
    mail_type: OneLine | None = None
    directives: tuple[OneLine, ...] = ()
    """More options of sbatch, each as it stands on a command line, such as --licenses=a:1."""
    modules: tuple[OneLine, ...] = ()
    """What `module load` takes."""
    venv: OneLine | None = None
    """The virtual environment; the one that submits where none is written."""
    container: ContainerBlock | None = None
    environment: dict[Name, OneLine] = Field(default_factory=dict)
    """Variables of all jobs, such as NCCL_SOCKET_IFNAME; never a secret: it stands in scripts."""
    shared_cache: OneLine | None = None
    """HF_HOME, on a disk that all nodes see."""
    local_cache: OneLine | None = None
    """A folder on each node's own disk, for what is compiled; $VARIABLES of the node count."""
    stop_before_s: int = Field(default=300, ge=0)
    """Seconds before a job's time is over at which the run saves and stops."""
    max_restarts: int = Field(default=3, ge=0)
    """How often in a row a run is started again that fails without having come further."""
    template: OneLine | None = None
    """A training job's template in place of ours."""
    merge: StageBlock = StageBlock()
    compare: StageBlock = StageBlock()

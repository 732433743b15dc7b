"""A job's script: what it is made of, and its text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sailplan.run.paths import RunPaths
from sailplan.run.slurm_block import SlurmBlock
from sailplan.slurm.jobs import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """All that a job's script says; a template has each of these as a variable."""

    kind: Kind
    name: str = ""
    """The run's, by which people know it."""
    paths: RunPaths
    """The run's, absolute."""
    settings: SlurmBlock
    """The cluster's profile with what the run says over it."""
    nodes: int = 1
    gpus_per_node: int = 0
    """GPUs of each node; 0 asks for none."""
    command: tuple[str, ...] = ()
    """What the job runs: of training what each node starts, from `launch` on; of others all."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables that sailplan sets for the command; never a secret."""
    wanted: tuple[str, ...] = ()
    """Names of variables that must be in the environment of sbatch, since they may be secrets."""
    working_directory: Path
    """Where it is submitted; paths of the run file that are relative are so from here."""
    python: Path
    """The interpreter that submits; a `venv` of the settings comes before it."""
    about: str = ""
    """What it is, in a line for who reads the script."""


def render(request: JobRequest, *, template: str | None = None) -> str:
    """Returns a job's script.

    Args:
        request: What it is to say.
        template: A text in place of the one in `slurm/`.

    Raises:
        RunFileError: The template is none, or wants a variable that there is not.
    """
    raise NotImplementedError

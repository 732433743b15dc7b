"""Slurm itself: is it here, does it answer, and what does it say of a partition and of scripts?"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sailplan.errors import SlurmError
from sailplan.preflight.finding import Finding, failed, ok
from sailplan.run.slurm_block import SlurmBlock
from sailplan.sizes import duration
from sailplan.slurm.commands import slurm, try_out

COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")

_FIT = {"idle", "mixed", "allocated", "completing"}
"""States of nodes that work, or will once they are free."""

_START = re.compile(r"to start at (\S+)")
_LATER_S = 90.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """What Slurm says of a partition."""

    name: str
    """Its name."""
    up: bool
    """Whether it starts jobs."""
    num_nodes: int
    """Nodes that work, busy or not."""
    states: Mapping[str, int]
    """How many nodes are in each state."""
    max_nodes: int | None
    """Most nodes of a job; None for no limit."""
    max_time: str
    """The longest time of a job, as Slurm writes it."""


def answers() -> Finding:
    """Are Slurm's commands here, and does the controller answer?"""
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if absent:
        return failed(
            f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not on PATH",
            fix="call the doctor where jobs are submitted, on a login node; or load Slurm's module",
        )
    try:
        version = slurm("sbatch", "--version").strip()
        ping = slurm("scontrol", "ping")
    except SlurmError as error:
        return failed(error.got, fix=error.todo or "is slurmctld running? `scontrol ping` tells")
    if not re.search(r"\bis UP\b|\bUP$", ping, re.MULTILINE):
        said = " ".join(ping.split())
        return failed(
            f"{version}, and its controller does not answer: {said}",
            fix="is slurmctld running, and SLURM_CONF right?",
        )
    return ok(f"{version}, and its controller answers")


def partition_of(settings: SlurmBlock) -> Partition:
    """Returns the partition that jobs go to: the one that is written, else the default one.

    Raises:
        SlurmError: There is no such partition, or Slurm does not answer.
    """
    told = slurm("sinfo", "--noheader", "--all", "--format=%R|%P")
    known = dict.fromkeys(line.split("|")[0].strip() for line in told.splitlines() if "|" in line)
    default = [line.split("|")[0].strip() for line in told.splitlines() if line.endswith("*")]
    name = settings.partition or next(iter(default), None)
    if name is None:
        raise SlurmError(
            "the profile names no partition, and Slurm has no default one",
            allowed=", ".join(known),
            todo="write partition: into the profile",
        )
    first = name.split(",")[0]
    if first not in known:
        raise SlurmError(f"no partition {first!r}", allowed=", ".join(known))
    record = _record(slurm("scontrol", "show", "partition", "--oneliner", first))
    listed = slurm("sinfo", "--noheader", "--Node", f"--partition={first}", "--format=%N %T")
    # A star marks a node that does not answer, other signs one that is switched off and the like.
    words = dict(line.split()[:2] for line in listed.splitlines() if line.strip())
    states = Counter(words.values())
    most = record.get("MaxNodes", "UNLIMITED")
    return Partition(
        name=name,
        up=record.get("State", "UP") == "UP",
        num_nodes=sum(count for state, count in states.items() if state.rstrip("~#") in _FIT),
        states=dict(states),
        max_nodes=int(most) if most.isdecimal() else None,
        max_time=record.get("MaxTime", "UNLIMITED"),
    )


def _record(told: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in told.split() if "=" in word)


def judge(partition: Partition) -> Finding:
    """Does the partition start jobs, and has it nodes that work?"""
    states = ", ".join(f"{count} {state}" for state, count in sorted(partition.states.items()))
    text = f"{partition.name}: {states or 'no nodes'}"
    if not partition.up:
        return failed(f"{text}, and it starts no jobs", fix="`sinfo -s` shows those that do")
    if not partition.num_nodes:
        return failed(f"{text}, and no node works", fix="`sinfo -R` tells why they do not")
    limits = [] if partition.max_time == "UNLIMITED" else [f"jobs of {partition.max_time} at most"]
    if partition.max_nodes is not None:
        limits.append(f"of {partition.max_nodes} nodes at most")
    return ok("; ".join([text, *limits]))


def accepted(script: Path, environment: Mapping[str, str]) -> Finding:
    """Would Slurm take a script, and when would it start?

    Args:
        script: Its file; nothing is submitted.
        environment: What sbatch finds in its environment.
    """
    try:
        told = try_out(script, environment=environment)
    except SlurmError as error:
        return failed(
            error.got.removeprefix("sbatch: ").removeprefix("allocation failure: "),
            fix="correct partition, account, qos, constraint, time, the GPU request, cpus or mem "
            "in the profile, or under slurm: of the run",
        )
    return ok(f"accepted{_start(told)}")


def _start(told: str) -> str:
    found = _START.search(told)
    if found is None:
        return ""
    try:
        at = datetime.fromisoformat(found[1])
    except ValueError:
        return ""
    wait_s = (at - datetime.now()).total_seconds()
    return f", would start in {duration(wait_s)}" if wait_s > _LATER_S else ", would start now"

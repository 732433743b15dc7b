"""Why a job waits, in words and with what to do; what Slurm means by its reasons.

The names are those of Slurm's page on resource limits and of `man squeue`, JOB REASON CODES.
"""

from __future__ import annotations

import re
from typing import Final

_FREE = "waits for nodes with enough free GPUs, CPUs and memory"
_UNHEALTHY = "nodes that it needs are down, drained or reserved (`sinfo -R` tells why)"
_ADMIN = "the cluster's administrators can say why"
_RELEASE = "`scontrol release` lets it go on"

_REASONS: Final = {
    "": "waits until Slurm has looked at it",
    "AccountNotAllowed": "never starts: the partition does not take this account (slurm.account)",
    "AccountingPolicy": "is held by an accounting policy; `sacctmgr show assoc` tells the limits",
    "AssociationJobLimit": "waits until other jobs of the account end: no more may run at once",
    "AssociationResourceLimit": "waits until other jobs of the account end: it is at its limit",
    "AssociationTimeLimit": "never starts: the account does not allow so long a time (slurm.time)",
    "BadConstraints": "never starts: no node is what it asks for (slurm.constraint, slurm.gres)",
    "BeginTime": "waits for its time to begin",
    "BurstBufferOperation": "is held: its burst buffer has failed",
    "BurstBufferResources": "waits for room in a burst buffer",
    "BurstBufferStageIn": "waits until its files are in the burst buffer",
    "Cleaning": "waits until Slurm has cleaned up what was before",
    "DeadLine": "never starts: its deadline cannot be kept",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "never starts: the job before it did not succeed; cancel it",
    "FedJobLock": "waits for the other clusters of the federation",
    "FrontEndDown": "waits for a front end that is down",
    "InactiveLimit": "was idle for longer than the cluster allows",
    "InvalidAccount": "never starts: there is no such account (slurm.account)",
    "InvalidQOS": "never starts: there is no such QOS for this account (slurm.qos)",
    "JobArrayTaskLimit": "waits until other tasks of its array end",
    "JobHeldAdmin": f"is held by an administrator; {_ADMIN}",
    "JobHeldUser": f"is held; {_RELEASE}",
    "JobHoldMaxRequeue": f"is held: it was queued again too often; read its log, then {_RELEASE}",
    "JobLaunchFailure": f"is held: a node could not start it; {_ADMIN}",
    "Licenses": "waits for a licence",
    "MaxMemPerLimit": "never starts: it asks for more memory than a job may have (slurm.mem)",
    "NodeDown": "waits for a node that is down (`sinfo -R` tells why)",
    "None": "waits until Slurm has looked at it",
    "OutOfMemory": "ran out of the memory that it asked for (slurm.mem)",
    "PartitionConfig": "never starts: the partition does not take such jobs (slurm.partition)",
    "PartitionDown": "waits: its partition is down; another one may be up (`sinfo -s`)",
    "PartitionInactive": "waits: its partition starts no jobs; another one may (`sinfo -s`)",
    "PartitionNodeLimit": (
        "cannot start now: it asks for more nodes than its partition gives, or some of them are "
        "down (`sinfo -s` tells the limits)"
    ),
    "PartitionTimeLimit": "never starts: its time is longer than its partition allows (slurm.time)",
    "PowerNotAvail": "waits for electric power",
    "PowerReserved": "waits for electric power that is reserved",
    "Priority": "waits for jobs of a higher priority",
    "Prolog": "starts: Slurm makes its nodes ready",
    "QOSJobLimit": "waits until other jobs of its QOS end: no more may run at once",
    "QOSNotAllowed": "never starts: its partition or account does not take this QOS (slurm.qos)",
    "QOSResourceLimit": "waits until other jobs of its QOS end: it is at its limit",
    "QOSTimeLimit": "never starts: its QOS does not allow so long a time (slurm.time)",
    "QOSUsageThreshold": "waits: its QOS has been used too much lately",
    "ReqNodeNotAvail": "waits: nodes that it needs are taken, reserved or down (`sinfo -R`)",
    "Reservation": "waits for its reservation to begin",
    "ReservationDeleted": "is held: its reservation is gone (slurm.reservation)",
    "Resources": _FREE,
    "SchedDefer": "waits for Slurm's next look at it",
    "SystemFailure": f"is held: Slurm itself has failed; {_ADMIN}",
    "TimeLimit": "its time was over",
    "WaitForScheduling": "waits until Slurm has looked at it",
    "WaitingForScheduling": "waits until Slurm has looked at it",
    "job requeued in held state": f"was queued again and is held; {_RELEASE}",
    "job requeued in special exit state": f"was queued again and is held; {_RELEASE}",
    "launch failed requeued held": (
        f"is held: a node could not start it; {_ADMIN} (`scontrol show job`), then {_RELEASE}"
    ),
}
"""By Slurm's word. None of them starts with whom it is about: that is a job."""

_NODES_ARE_OUT = "Nodes required for job are DOWN"
_UNAVAILABLE = re.compile(r"ReqNodeNotAvail, *UnavailableNodes:(\S*)")
_RESERVED = "May be reserved for other job"

_LIMIT = re.compile(
    r"(?P<owner>QOS|Assoc|)(?P<kind>Grp|Max|Min)"
    r"(?P<what>Cpu|CPU|Memory|Mem|Node|GRES|SubmitJobs?|Jobs|WallDuration|Wall|Energy|License|BB"
    r"|Billing|Unknown)(?P<run>Run)?(?P<minutes>Minutes)?(?:Per(?P<per>Job|Node|User|Account))?"
    r"(?:Limit|NotSatisfied)?"
)
"""How Slurm's some hundred words for limits are built."""

_WHAT: Final = {
    **{"Cpu": "CPUs", "CPU": "CPUs", "Memory": "memory", "Mem": "memory", "Node": "nodes"},
    **{"GRES": "GPUs", "SubmitJob": "jobs in the queue", "SubmitJobs": "jobs in the queue"},
    **{"Jobs": "running jobs", "WallDuration": "time", "Wall": "time", "Energy": "energy"},
    **{"License": "licences", "BB": "burst buffers", "Billing": "billing units"},
    "Unknown": "what it asks for",
}
_OF_MANY = frozenset({"running jobs", "jobs in the queue"})
"""Of these there are none in one job."""


def in_words(reason: str, *, again: bool = False) -> str:
    """Returns why a job waits, as what is said of it: `waits for jobs of a higher priority`.

    Args:
        reason: As Slurm writes it, in `squeue` or in `scontrol`; one that is not known is quoted.
        again: Whether the job was queued again.
    """
    reason = reason.strip().removeprefix("(").removesuffix(")").replace(",_", ", ")
    if again and reason == "BeginTime":
        return "waits a moment before it starts again"
    known = _REASONS.get(reason)
    if known is not None:
        return known
    if reason.startswith(_NODES_ARE_OUT):
        return f"waits: {_UNHEALTHY}"
    out = _UNAVAILABLE.match(reason)
    if out is not None:
        which = f" {out[1]}" if out[1] else ""
        return f"waits: nodes that it needs are down or drained:{which} (`sinfo -R` tells why)"
    if _RESERVED in reason:
        return "waits: nodes that it needs may be reserved for others"
    limit = _LIMIT.fullmatch(reason)
    return _of_limit(limit) if limit is not None else f"waits: Slurm says {reason!r}"


def _of_limit(limit: re.Match[str]) -> str:
    owner, table = ("its account", "assoc") if limit["owner"] == "Assoc" else ("its QOS", "qos")
    what, per, tells = _WHAT[limit["what"]], limit["per"], f"(`sacctmgr show {table}` tells it)"
    is_budget = limit["minutes"] is not None or what == "time"
    if limit["kind"] == "Min":
        return f"never starts: it asks for less than {owner} wants of {what} {tells}"
    if limit["kind"] == "Grp" and is_budget:
        budget = f"minutes of {what}" if limit["minutes"] else what
        whose = "; those of running jobs are put by" if limit["run"] else ""
        return f"waits: {owner} has no {budget} left{whose} {tells}"
    if limit["kind"] == "Grp" or per in ("User", "Account") or what in _OF_MANY:
        whose = {"User": "the user's", "Account": "the account's"}.get(per or "", "all")
        limits = f"the limit of {owner} on {what}"
        return f"waits until {whose} other jobs end: they are at {limits} {tells}"
    much = f"minutes of {what}" if limit["minutes"] else what
    each = "a node" if per == "Node" else "a job"
    return f"never starts: it asks for more {much} than {owner} gives {each} {tells}"

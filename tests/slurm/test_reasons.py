"""Why a job waits, in words: the reasons that people meet, and ones that nobody knows."""

from __future__ import annotations

import pytest

from sailplan.slurm.reasons import in_words

LIMITS = "(`sacctmgr show qos` tells it)"
ACCOUNT_LIMITS = "(`sacctmgr show assoc` tells it)"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "waits for jobs of a higher priority"),
        ("(Resources)", "waits for nodes with enough free GPUs, CPUs and memory"),
        ("JobHeldUser", "is held; `scontrol release` lets it go on"),
        ("BeginTime", "waits for its time to begin"),
        (
            "ReqNodeNotAvail, UnavailableNodes:node[3,7]",
            "waits: nodes that it needs are down or drained: node[3,7] (`sinfo -R` tells why)",
        ),
        (
            "ReqNodeNotAvail,_UnavailableNodes:node2",  # as scontrol writes it
            "waits: nodes that it needs are down or drained: node2 (`sinfo -R` tells why)",
        ),
        (
            "ReqNodeNotAvail, May be reserved for other job",
            "waits: nodes that it needs may be reserved for others",
        ),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
            "partitions",
            "waits: nodes that it needs are down, drained or reserved (`sinfo -R` tells why)",
        ),
        (
            "PartitionTimeLimit",
            "never starts: its time is longer than its partition allows (slurm.time)",
        ),
        (
            "QOSMaxGRESPerUser",
            "waits until the user's other jobs end: they are at the limit of its QOS on GPUs "
            + LIMITS,
        ),
        (
            "QOSMaxCpuPerJobLimit",
            f"never starts: it asks for more CPUs than its QOS gives a job {LIMITS}",
        ),
        ("QOSMinGRES", f"never starts: it asks for less than its QOS wants of GPUs {LIMITS}"),
        (
            "AssocGrpNodeLimit",
            "waits until all other jobs end: they are at the limit of its account on nodes "
            + ACCOUNT_LIMITS,
        ),
        (
            "AssocGrpCPUMinutesLimit",
            f"waits: its account has no minutes of CPUs left {ACCOUNT_LIMITS}",
        ),
        (
            "AssocMaxWallDurationPerJobLimit",
            f"never starts: it asks for more time than its account gives a job {ACCOUNT_LIMITS}",
        ),
        (
            "AssocMaxJobsLimit",
            "waits until all other jobs end: they are at the limit of its account on running jobs "
            + ACCOUNT_LIMITS,
        ),
        ("SomethingNew, of 2031", "waits: Slurm says 'SomethingNew, of 2031'"),
    ],
)
def test_reason_is_said_in_words(reason: str, words: str) -> None:
    assert in_words(reason) == words


def test_job_that_was_queued_again_waits_a_moment() -> None:
    assert in_words("BeginTime", again=True) == "waits a moment before it starts again"


@pytest.mark.parametrize(
    "reason",
    [
        *("QOSGrpCpuLimit", "QOSGrpCPUMinutesLimit", "QOSGrpCPURunMinutesLimit"),
        *("QOSGrpJobsLimit", "QOSGrpMemLimit", "QOSGrpNodeLimit", "QOSGrpSubmitJobsLimit"),
        *("QOSGrpWallLimit", "QOSMaxCpuMinutesPerJobLimit", "QOSMaxNodePerJobLimit"),
        *("QOSMaxWallDurationPerJobLimit", "QOSMaxCpuPerUserLimit", "QOSMaxJobsPerUserLimit"),
        *("QOSMaxNodePerUserLimit", "QOSMaxSubmitJobPerUserLimit", "QOSMinCpuNotSatisfied"),
        *("QOSMaxMemoryPerJob", "QOSMaxMemoryPerNode", "QOSGrpGRES", "QOSMaxGRESPerNode"),
        *("QOSMaxEnergyMinutesPerJob", "QOSGrpLicense", "QOSGrpBBRunMinutes", "QOSMinUnknown"),
        *("AssocGrpBillingRunMinutes", "AssocGrpSubmitJobsLimit", "AssocMaxCpuPerJobLimit"),
        *("AssocMaxSubmitJobLimit", "AssocMaxUnknownPerNode", "MaxGRESPerAccount"),
        *("MaxJobsPerAccount", "MaxSubmitJobsPerAccount", "MaxMemoryPerAccount"),
    ],
)
def test_limit_of_any_kind_is_known(reason: str) -> None:
    words = in_words(reason)
    assert words.startswith(("waits", "never starts"))
    assert "Slurm says" not in words

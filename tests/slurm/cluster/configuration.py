"""The configuration files of a cluster, as texts."""

from __future__ import annotations

import socket
from pathlib import Path

GPUS_PER_NODE = 8

SLURM = """\
ClusterName=harbour
SlurmctldHost=head({network}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/nodes/%n/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/nodes/%n/slurmd.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/{process_tracking}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
GresTypes=gpu
JobRequeue=1
KillWait=10
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=15
InactiveLimit=0
Waittime=0
{accounting}
JobCompType=jobcomp/filetxt
JobCompLoc={directory}/log/jobs.txt
{nodes}
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE
PartitionName=grace Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=INFINITE
"""

NODE = (
    "NodeName={node} NodeAddr={address} CPUs=64 SocketsPerBoard=2 CoresPerSocket=32 "
    "RealMemory=512000 Gres=gpu:h100:{gpus}"
)

WITHOUT_ACCOUNTING = "AccountingStorageType=accounting_storage/none"


def names_of(num_nodes: int) -> tuple[str, ...]:
    """The nodes' names: node1, node2, …"""
    return tuple(f"node{number}" for number in range(1, num_nodes + 1))


def address_of(network: str, node: str) -> str:
    """A node's address in the cluster's network, whose first three bytes are `network`."""
    return f"{network}.{10 + int(node.removeprefix('node'))}"


def overridden(slurm: str, extra: str) -> str:
    """A slurm.conf with lines added; those that set the same are left out, as it warns of both."""

    def subject(line: str) -> str:
        first = line.split(" ")[0].lower()
        is_named = first.startswith(("nodename=", "partitionname="))
        return first if is_named else first.partition("=")[0]

    set_again = {subject(line) for line in extra.splitlines()}
    kept = [line for line in slurm.splitlines() if subject(line) not in set_again]
    return "\n".join([*kept, *extra.splitlines(), ""])


def write_configuration(
    directory: Path,
    *,
    network: str,
    num_nodes: int,
    process_tracking: str,
    accounting: str = WITHOUT_ACCOUNTING,
    extra: str = "",
) -> None:
    """Writes slurm.conf, gres.conf, cgroup.conf and hosts into the cluster's directory."""
    nodes = names_of(num_nodes)
    slurm = SLURM.format(
        directory=directory,
        network=network,
        process_tracking=process_tracking,
        accounting=accounting,
        nodes="\n".join(
            NODE.format(node=node, address=address_of(network, node), gpus=GPUS_PER_NODE)
            for node in nodes
        ),
    )
    (directory / "slurm.conf").write_text(overridden(slurm, extra))
    (directory / "gres.conf").write_text(
        f"NodeName=node[1-{num_nodes}] Name=gpu Type=h100 "
        f"File={directory}/dev/nvidia[0-{GPUS_PER_NODE - 1}]\n"
    )
    (directory / "cgroup.conf").write_text(
        f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={directory}/cgroup\nCgroupAutomount=no\n"
    )
    hosts = ["127.0.0.1 localhost", f"{network}.1 head", f"{network}.254 {socket.gethostname()}"]
    hosts += [f"{address_of(network, node)} {node}" for node in nodes]
    (directory / "hosts").write_text("\n".join(hosts) + "\n")

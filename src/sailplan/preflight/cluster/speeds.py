"""What the records of a smoke job's ranks say: how far they came, and who is slow. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from statistics import median

from sailplan.errors import HardwareError
from sailplan.hardware.catalogue import GpuModel, find, of_driver
from sailplan.plan.cost.traffic import LINK_EFFICIENCY
from sailplan.preflight.cluster.alike import listed
from sailplan.preflight.cluster.records import Gathered, RankRecord
from sailplan.preflight.finding import Finding, failed, ok, unchecked
from sailplan.preflight.smoke import HINTS, told, wrong_engine

LEAST_SHARE = LINK_EFFICIENCY / 2
"""Of what a link sends: half of what plans count on. PCIe is shared with more, and has half."""

BESIDE_OTHERS = 0.6
"""Of the other nodes' bandwidth, what a node must reach that is as they are."""

SLOWER = 1.3
"""Times the ranks' median from which one is slow."""

STAGES = (
    "starting",
    "importing the libraries",
    "meeting the other ranks",
    "the first all-reduce",
    "training the toy",
    "comparing the clocks",
    "summing inside the nodes",
    "summing across the nodes",
    "working alone",
    "done",
)
"""What a rank does, in order."""

MOST_APART_S = 1.0
"""Between the clocks of two nodes: what is written by time would be read in the wrong order."""

_STOPPED = "the ranks did not come so far"


def ranks(found: Gathered) -> Finding:
    """Did all ranks start, meet, sum rightly and train?"""
    hosts, wanted = found.wanted.hosts, found.wanted
    every = len(hosts) * wanted.ranks_per_node
    if not found.ranks:
        return failed("no rank has started", fix="see above; the job's log says more")
    behind = [rank for rank in found.ranks if rank.stage != "done"]
    if behind:
        # The others wait for those that did not come so far.
        stage = min((rank.stage for rank in behind), key=STAGES.index)
        who = listed(_who(rank) for rank in behind if rank.stage == stage)
        fix = HINTS.get(stage) or "the job's log says more; NCCL_DEBUG=INFO adds NCCL's"
        return failed(f"stopped while {stage}: {who}".replace("while the", "in the"), fix=fix)
    if len(found.ranks) < every:
        known = {rank.host for rank in found.ranks}
        silent = [host for host in hosts if host not in known]
        text = f"{len(found.ranks)} of {every} ranks have reported"
        return failed(
            f"{text}, none of {listed(silent)}" if silent else text,
            fix="the job's log says more",
        )
    alone = [rank for rank in found.ranks if rank.world_size != every]
    if alone:
        who = f"{_who(alone[0])} has met {alone[0].world_size} of {every} ranks"
        return failed(who, fix="does torch see a GPU for each rank? see GPUs above, and the log")
    first = found.ranks[0]
    wrong = wrong_engine(wanted.strategy, first.engine)
    if wrong:
        return failed(wrong, fix="install accelerate and deepspeed in the tested versions")
    return ok(told(wanted.strategy, asdict(first)))


def _who(rank: RankRecord) -> str:
    device = f", {rank.device}" if rank.device.startswith("cuda") else ""
    return f"rank {rank.rank} ({rank.host}{device})"


def clocks(found: Gathered) -> Finding:
    """Do the nodes' clocks agree?"""
    first = next((rank for rank in found.ranks if rank.clocks_s), None)
    if first is None:
        return unchecked(_STOPPED)
    apart: dict[str, float] = {}
    for rank in found.ranks:
        looks = [theirs - ours for theirs, ours in zip(rank.clocks_s, first.clocks_s, strict=False)]
        if looks:
            least = min(looks, key=abs)
            apart[rank.host] = min(apart.get(rank.host, least), least, key=abs)
    wrong = [f"{host} by {offset:+.1f} s" for host, offset in apart.items() if _far(offset)]
    if wrong:
        return failed(
            f"{listed(wrong)}, seen from {first.host}", fix="have chrony or ntpd run on all nodes"
        )
    most = max(map(abs, apart.values()))
    if len(apart) == 1:
        return ok("one node, one clock")
    return ok(f"within {max(most, 0.001) * 1000:.0f} ms on {len(apart)} nodes")


def _far(offset_s: float) -> bool:
    return abs(offset_s) > MOST_APART_S


def inside(found: Gathered) -> Finding:
    """How fast do the ranks of a node sum?"""
    rates: dict[str, float] = {}
    for rank in found.ranks:
        if rank.inside_bytes_s is not None:
            rates[rank.host] = min(rates.get(rank.host, rank.inside_bytes_s), rank.inside_bytes_s)
    if not rates:
        alone = found.wanted.ranks_per_node == 1 and found.ranks
        return unchecked("a node has one rank" if alone else _STOPPED)
    text = f"{_gb(min(rates.values()))}/s at least"
    model = _model(found)
    if model is None:
        return ok(f"{text}, over {found.ranks[0].backend}{_unknown(found)}")
    share = LEAST_SHARE / 2 if model.link.kind.startswith("PCIe") else LEAST_SHARE
    text = f"{text} of {_gb(model.link.bytes_s)}/s ({model.link.kind})"
    slow = _slow(rates, share * model.link.bytes_s)
    if slow:
        return failed(
            f"{listed(f'{host}: {_gb(rates[host])}/s' for host in slow)}, of "
            f"{_gb(model.link.bytes_s)}/s ({model.link.kind})",
            fix="`nvidia-smi topo -m` and `nvidia-smi nvlink -s` there; NCCL_DEBUG=INFO tells "
            "what NCCL takes",
        )
    return ok(text)


def across(found: Gathered) -> Finding:
    """How fast do neighbouring nodes sum?"""
    rates: dict[tuple[str, ...], float] = {}
    for rank in found.ranks:
        for pair in rank.pairs:
            rates[pair.hosts] = min(rates.get(pair.hosts, pair.bytes_s), pair.bytes_s)
    if not rates:
        alone = len(found.wanted.hosts) == 1 and found.ranks
        return unchecked("the job has one node" if alone else _STOPPED)
    least = f"{_gb(min(rates.values()))}/s at least between two nodes"
    model = _model(found)
    if model is None:
        return ok(f"{least}, over {found.ranks[0].backend}{_unknown(found)}")
    wanted = min(model.link.bytes_s, model.network.bytes_s * found.wanted.ranks_per_node)
    against = f"of {_gb(wanted)}/s ({model.network.assumption})"
    named = {" and ".join(pair): rate for pair, rate in rates.items()}
    slow = _slow(named, LEAST_SHARE * wanted)
    if slow:
        pairs = [pair for pair in rates if " and ".join(pair) in slow]
        return failed(
            f"{_culprit(pairs, list(rates))}: {_gb(min(rates[pair] for pair in pairs))}/s, "
            f"{against}",
            fix="NCCL_DEBUG=INFO tells the interface: name InfiniBand's by NCCL_IB_HCA and "
            "NCCL_SOCKET_IFNAME under environment of the profile",
        )
    return ok(f"{least}, {against}")


def _culprit(slow: list[tuple[str, ...]], every: list[tuple[str, ...]]) -> str:
    """Returns the node that all slow pairs have in common and no fast one; else the pairs."""
    hosts = dict.fromkeys(host for pair in every for host in pair)
    guilty = [
        host
        for host in hosts
        if all((host in pair) == (pair in slow) for pair in every) and len(every) > 1
    ]
    if guilty:
        return listed(guilty)
    if len(slow) == len(every) > 1:
        return "all nodes"
    return "between " + listed(" and ".join(pair) for pair in slow)


def _slow(rates: Mapping[str, float], least: float) -> list[str]:
    """Returns whose rate is below the least, or far below that of the others."""
    beside = BESIDE_OTHERS * median(rates.values()) if len(rates) > 2 else 0.0
    return [name for name, rate in rates.items() if rate < max(least, beside)]


def _model(found: Gathered) -> GpuModel | None:
    """Returns the GPU that bandwidths are judged by; None on the CPU, or of an unknown one."""
    names = {rank.gpu for rank in found.ranks}
    if len(names) != 1 or "" in names:
        return None
    try:
        return of_driver(names.pop()) or (find(found.wanted.gpu) if found.wanted.gpu else None)
    except HardwareError:
        return None


def _unknown(found: Gathered) -> str:
    gpu = found.ranks[0].gpu
    return f"; {gpu} is not in the catalogue" if gpu else "; no GPU to judge it by"


def steps(found: Gathered) -> Finding:
    """Does each rank's device work as fast as the others'?"""
    timed = [rank for rank in found.ranks if rank.own_step_s]
    if not timed:
        return unchecked(_STOPPED)
    usually = median(rank.own_step_s for rank in timed)
    slow = [rank for rank in timed if rank.own_step_s > SLOWER * usually]
    on_gpus = timed[0].device.startswith("cuda")
    if slow and on_gpus:
        return failed(
            listed(_how_slow(rank, usually) for rank in slow),
            fix="leave those nodes out (exclude: of the profile): every step waits for the slowest",
        )
    most = max(rank.own_step_s for rank in timed) / usually
    text = (
        f"{usually * 1000:.3g} ms of work alone; the slowest rank takes {most:.2f} times the median"
    )
    if slow:  # cores are shared with whatever else runs there, so that is no fault
        return ok(text, fix=f"slower: {listed(_who(rank) for rank in slow)}")
    held = list(_held_down(timed))
    return ok(text, fix=f"clocks are held down: {listed(held)}" if held else "")


def _how_slow(rank: RankRecord, usually: float) -> str:
    many = rank.own_step_s / usually
    times = f"{_who(rank)}: {rank.own_step_s * 1000:.3g} ms, {many:.1f} times the median"
    return times + (f", held down by {listed(rank.slowed)}" if rank.slowed else "")


def _held_down(timed: list[RankRecord]) -> Iterator[str]:
    for rank in timed:
        if rank.slowed:
            yield f"{_who(rank)} by {listed(rank.slowed)}"


def _gb(bytes_s: float) -> str:
    return f"{bytes_s / 1e9:.3g} GB"

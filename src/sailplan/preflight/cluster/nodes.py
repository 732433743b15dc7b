"""What the records of a smoke job's nodes say: who reported, and what is not alike. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sailplan.hardware.catalogue import of_driver
from sailplan.hardware.driver import Driver, GpuState
from sailplan.hardware.xids import FAULTS, Xid
from sailplan.preflight.cluster.alike import listed, usual
from sailplan.preflight.cluster.records import Gathered, NodeRecord, Place
from sailplan.preflight.finding import Finding, failed, ok, unchecked
from sailplan.preflight.gpus import memory_trouble
from sailplan.sizes import duration

_NONE = "no node has reported"


def everyone(found: Gathered) -> Finding:
    """Has every node reported?"""
    here = {node.host for node in _nodes(found)}
    silent = [host for host in found.wanted.hosts if host not in here]
    if silent or not here:
        text = f"nothing from {listed(silent)}" if silent else _NONE
        return failed(
            text,
            fix="is the same Python at the same path there? `srun -w NODE` tells; the job's log "
            "says more",
        )
    return ok(f"{listed(sorted(here))}: {len(here)} × {found.wanted.ranks_per_node} ranks")


def shared_disk(found: Gathered) -> Finding:
    """Do all nodes see the same folders?"""
    nodes, wanted = _nodes(found), found.wanted
    if not nodes:
        return unchecked(_NONE)
    wrong = [f"{node.host} cannot write into {wanted.folder}" for node in found.printed]
    wrong += [
        f"{node.host} does not see what the first node wrote in {wanted.folder}"
        for node in nodes
        if node.token != wanted.token
    ]
    wrong += [text for place in wanted.places for text in _elsewhere(place, nodes)]
    if wrong:
        return failed(
            "; ".join(wrong),
            fix="take a folder on a disk that all nodes have: output_dir, --folder, and "
            "shared_cache of the profile",
        )
    places = [str(wanted.folder), *(place.path for place in wanted.places)]
    return ok(f"the same on all nodes: {listed(dict.fromkeys(places))}")


def _elsewhere(place: Place, nodes: list[NodeRecord]) -> Iterator[str]:
    """Yields where a folder is not the one that it is where the job was submitted."""
    for node in nodes:
        there = next((one for one in node.places if one.path == place.path), None)
        if there is None or there.inode is None:
            yield f"{node.host} has no {place.path}"
        elif place.inode is not None and there.inode != place.inode:
            yield f"{node.host} has another {place.path} than this machine ({there.kind})"
        elif not there.writable:
            yield f"{node.host} may not write into {place.path}"


def software(found: Gathered) -> Finding:
    """Have all nodes the same software?"""
    nodes, here = _nodes(found), found.wanted.software
    if not nodes:
        return unchecked(_NONE)
    names = dict.fromkeys(name for node in nodes for name in node.software)
    wrong, versions = [], {}
    for name in names:
        values = {node.host: node.software.get(name) for node in nodes}
        expected = usual(values, here.get(name))
        versions[name] = expected
        by_value: dict[str, list[str]] = {}
        for host, value in values.items():
            if value != expected:
                by_value.setdefault(value or f"no {name}", []).append(host)
        wrong += [
            f"{listed(hosts)}: {name} {value}, elsewhere {expected or 'none'}"
            if not value.startswith("no ")
            else f"{listed(hosts)}: {value}, elsewhere {expected}"
            for value, hosts in by_value.items()
        ]
    if wrong:
        return failed(
            "; ".join(wrong),
            fix="use one environment on a shared disk, or one container: venv or container of the "
            "profile",
        )
    other = [
        f"{name} {here[name] or 'none'}"
        for name, value in versions.items()
        if name in here and here[name] != value
    ]
    text = f"the same on all nodes: {_named(versions)}"
    fix = f"this machine plans with others: {listed(other)}" if other else ""
    return ok(text, fix=fix)


def _named(versions: dict[str, str | None]) -> str:
    first = [name for name in ("Python", "sailplan", "torch") if versions.get(name)]
    rest = sum(value is not None for value in versions.values()) - len(first)
    return ", ".join([*(f"{name} {versions[name]}" for name in first), f"{rest} more"])


def driver(found: Gathered) -> Finding:
    """Have all nodes the same driver?"""
    nodes = _nodes(found)
    drivers = {node.host: node.driver for node in nodes}
    if not nodes or not any(drivers.values()):
        return unchecked(nodes[0].no_driver or "no driver" if nodes else _NONE)
    told = {host: _shown(one) for host, one in drivers.items()}
    # Of two, the one without is the odd one.
    expected = usual(told, next(_shown(one) for one in drivers.values() if one))
    wrong = [f"{host}: {one}" for host, one in told.items() if one != expected]
    if wrong:
        return failed(
            f"{listed(wrong)}, elsewhere {expected}",
            fix="leave those nodes out (exclude: of the profile), and have them set up alike",
        )
    return ok(f"{expected}, the same on all nodes")


def _shown(driver: Driver | None) -> str:
    if driver is None:
        return "no NVIDIA driver"
    return f"{driver.version}, up to CUDA {driver.cuda_version[0]}.{driver.cuda_version[1]}"


def gpus(found: Gathered) -> Finding:
    """Are the GPUs those that the profile promises?"""
    nodes, wanted = _nodes(found), found.wanted
    if not nodes:
        return unchecked(_NONE)
    if not wanted.gpus_per_node:
        return unchecked("the job asks for no GPU")
    wrong = [text for node in nodes for text in _other_gpus(node, wanted.gpu, wanted.gpus_per_node)]
    if wrong:
        return failed(
            "; ".join(wrong),
            fix="correct gpu and gpus_per_node of the profile, or narrow its nodes by gpu_type or "
            "constraint",
        )
    kinds = {gpu.name for node in nodes for gpu in _gpus_of(node)}
    if len(kinds) > 1:
        return failed(
            f"GPUs of several kinds: {listed(sorted(kinds))}",
            fix="narrow the nodes by gpu_type or constraint of the profile: the slowest set the "
            "pace",
        )
    return ok(f"{wanted.gpus_per_node} × {next(iter(kinds))} on each node")


def _other_gpus(node: NodeRecord, name: str, count: int) -> Iterator[str]:
    here = _gpus_of(node)
    if not here and node.no_driver:
        yield f"{node.host} gives no GPU: {node.no_driver}"
    elif len(here) != count:
        yield f"{node.host} gives {len(here)} GPUs, and {count} are asked for"
    for kind in dict.fromkeys((gpu.name, gpu.memory_bytes) for gpu in here):
        model = of_driver(*kind)
        if name and (model is None or model.name != name):
            yield f"{node.host} has {kind[0]}, and the profile says {name}"


def memory_errors(found: Gathered) -> Finding:
    """Is the GPUs' memory well?"""
    here = [(node.host, gpu) for node in _nodes(found) for gpu in _gpus_of(node)]
    if not here:
        return unchecked("no GPU has reported")
    wrong = [f"{host} GPU {gpu.index}: {memory_trouble(gpu)}" for host, gpu in here]
    wrong = [text for text in wrong if not text.endswith(": ")]
    if wrong:
        return failed(
            "; ".join(wrong),
            fix="leave those nodes out (exclude: of the profile), and have the GPUs reset or "
            "replaced",
        )
    ever = [gpu.memory_errors_ever for _, gpu in here if gpu.memory_errors_ever is not None]
    if not ever:
        return unchecked("the driver does not count memory errors of these GPUs")
    before = f", {sum(ever)} in their lives" if sum(ever) else ""
    return ok(f"none since the drivers were loaded{before}, on {len(here)} GPUs")


def xids(found: Gathered) -> Finding:
    """Has a driver reported errors of a GPU?"""
    nodes = _nodes(found)
    if not any(_gpus_of(node) for node in nodes):
        return unchecked("no GPU has reported")
    of_log = [(node.host, xid) for node in nodes for xid in node.kernel_xids or ()]
    during = [
        (rank.host, Xid(number=number, pci="", age_s=0.0))
        for rank in found.ranks
        for number in rank.xids or ()
    ]
    faults = [(host, xid) for host, xid in (*of_log, *during) if xid.number in FAULTS]
    if faults:
        told = dict.fromkeys(_told(host, xid) for host, xid in faults)
        return failed(
            "; ".join(list(told)[:4]),
            fix="leave those nodes out (exclude: of the profile), and have the GPUs looked at: "
            "`nvidia-smi -q` there",
        )
    unread = [node.host for node in nodes if node.kernel_xids is None]
    watched = [rank for rank in found.ranks if rank.xids is not None]
    if unread:
        meanwhile = "; none during the job" if watched and not during else ""
        return unchecked(f"the kernel's log may not be read on {listed(unread)}{meanwhile}")
    others = len(of_log) + len(during)
    return ok(f"{others} of programs, none of the hardware" if others else "none in the logs")


def _told(host: str, xid: Xid) -> str:
    when = f"{duration(xid.age_s)} ago" if xid.age_s else "during the job"
    place = f" at {xid.pci}" if xid.pci else ""
    return f"{host}{place}: Xid {xid.number} ({FAULTS[xid.number]}), {when}"


def _nodes(found: Gathered) -> list[NodeRecord]:
    """Returns every node that could tell, whether it could write or not."""
    return sorted((*found.nodes, *found.printed), key=lambda node: node.host)


def _gpus_of(node: NodeRecord) -> tuple[GpuState, ...]:
    return node.driver.gpus if node.driver else ()

"""What nodes and ranks of the smoke job leave word of, and where: a file each, with one writer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sailplan.files import write_atomically
from sailplan.hardware.driver import Driver
from sailplan.hardware.xids import Xid
from sailplan.records import from_json, to_json

T = TypeVar("T")

MARK = "sailplan-node: "
"""What begins the line of a node that prints its record, since it cannot write it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A folder as one machine sees it."""

    path: str
    """Which."""
    inode: int | None
    """Its number, by which two machines that see the same folder know it; None where it is not."""
    kind: str = ""
    """The file system's, such as `nfs4`; empty where that cannot be told."""
    writable: bool = False
    """Whether this user may write into it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRecord:
    """One node, before any rank starts."""

    host: str
    """Its name, as Slurm has it."""
    software: Mapping[str, str | None]
    """Versions; None of what is not installed."""
    driver: Driver | None
    """What NVIDIA's driver tells, with the GPUs that the job may use."""
    no_driver: str = ""
    """Why it tells nothing."""
    kernel_xids: tuple[Xid, ...] | None = None
    """The driver's errors in the kernel's log; None where a user may not read that."""
    token: str = ""
    """What it read in the file of the first node; empty where it found none."""
    places: tuple[Place, ...] = ()
    """Folders that all nodes must see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRate:
    """What two neighbouring nodes sum per second."""

    hosts: tuple[str, str]
    """The two."""
    bytes_s: float
    """Bus bandwidth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankRecord:
    """One rank, as far as it came."""

    rank: int
    """Its number."""
    host: str
    """Its node."""
    stage: str = "starting"
    """What it was doing last; `done` at the end."""
    device: str = ""
    """Such as `cuda:0`."""
    gpu: str = ""
    """The GPU's name."""
    world_size: int = 1
    """Ranks that it met."""
    backend: str = ""
    """What they talk through."""
    engine: str = ""
    """What accelerate made of the toy."""
    imports_s: float = 0.0
    """Until the libraries were there."""
    meeting_s: float = 0.0
    """Until the ranks had met."""
    first_reduce_s: float = 0.0
    """The first sum over all ranks."""
    reduce_s: float = 0.0
    """The best of the larger ones."""
    bytes_per_s: float = 0.0
    """Their bus bandwidth, over all ranks."""
    inside_bytes_s: float | None = None
    """Bus bandwidth among the ranks of its node; None where it has one alone."""
    pairs: tuple[PairRate, ...] = ()
    """Bus bandwidth with the neighbouring nodes."""
    step_s: float = 0.0
    """A step of the toy, all ranks together."""
    first_loss: float = 0.0
    """Of the toy."""
    last_loss: float = 0.0
    """Of the toy, some steps later."""
    own_step_s: float = 0.0
    """A step of work that waits for no other rank."""
    clocks_s: tuple[float, ...] = ()
    """The node's clock each time that all ranks had met."""
    xids: tuple[int, ...] | None = None
    """Errors that the driver reported of its GPU meanwhile; None where it does not tell."""
    slowed: tuple[str, ...] | None = None
    """What held the GPU's clock down after its work; None where the driver does not tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the smoke job was to be."""

    hosts: tuple[str, ...]
    """Nodes that Slurm gave it; empty where it had none."""
    ranks_per_node: int
    """Ranks of each."""
    gpus_per_node: int
    """GPUs that it asked for of each node; 0 for none."""
    gpu: str
    """The GPU that the profile or the run names, as the catalogue has it; empty where none does."""
    token: str
    """What the first node wrote for the others."""
    folder: Path
    """Where all of them wrote."""
    software: Mapping[str, str | None] = field(default_factory=dict)
    """Versions where the job was submitted."""
    places: tuple[Place, ...] = ()
    """Folders that all nodes must see, as they are where the job was submitted."""
    strategy: str = "ddp"
    """How the toy was to be sharded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """All that is known of a smoke job once it has ended."""

    wanted: Wanted
    """What it was to be."""
    nodes: tuple[NodeRecord, ...] = ()
    """Of the nodes that reported."""
    ranks: tuple[RankRecord, ...] = ()
    """Of the ranks that reported."""
    printed: tuple[NodeRecord, ...] = ()
    """Of the nodes that could not write into the folder."""


def node_file(folder: Path, host: str) -> Path:
    """Returns where a node leaves its record."""
    return folder / f"node-{host}.json"


def rank_file(folder: Path, rank: int) -> Path:
    """Returns where a rank leaves its record."""
    return folder / f"rank-{rank}.json"


def seen_file(folder: Path) -> Path:
    """Returns the file that the first node writes, for all others to read."""
    return folder / "seen"


def places_file(folder: Path) -> Path:
    """Returns the file with the folders that every node must see."""
    return folder / "places.json"


def wanted_places(folder: Path) -> list[str]:
    """Returns the folders that every node must see; none where the file cannot be read."""
    try:
        return list(map(str, json.loads(places_file(folder).read_bytes())))
    except (OSError, ValueError):
        return []


def write(path: Path, record: NodeRecord | RankRecord) -> None:
    """Writes a record.

    Raises:
        OSError: It cannot be written.
    """
    write_atomically(path, json.dumps(to_json(record)).encode())


def read(folder: Path, log: str, wanted: Wanted) -> Gathered:
    """Reads what a smoke job has left; files that cannot be read count as not there.

    Args:
        folder: Where it wrote.
        log: What it printed.
        wanted: What it was to be.
    """
    marked = (line.partition(MARK) for line in log.splitlines())
    printed = (_parse(NodeRecord, text) for _, mark, text in marked if mark)
    return Gathered(
        wanted=wanted,
        nodes=tuple(sorted(_all(NodeRecord, folder, "node-*.json"), key=lambda one: one.host)),
        ranks=tuple(sorted(_all(RankRecord, folder, "rank-*.json"), key=lambda one: one.rank)),
        printed=tuple(record for record in printed if record is not None),
    )


def _all(kind: type[T], folder: Path, pattern: str) -> Iterator[T]:
    for path in folder.glob(pattern):
        try:
            record = _parse(kind, path.read_text(encoding="utf-8"))
        except OSError:
            continue
        if record is not None:
            yield record


def _parse(kind: type[T], text: str) -> T | None:
    try:
        return from_json(kind, json.loads(text))
    except (ValueError, TypeError, LookupError):
        return None

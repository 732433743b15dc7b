"""What torch's flight recorder knows of this rank's collectives, under NCCL and gloo alike.

torch numbers the collectives of each process group, and records which the rank has entered and
which are done; `docs/hangs.md` says how to look at the whole record.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from sailplan.train.guards.hang.stacks import Frame

_ANSWER_S = 3.0
"""How long the recorder may take: under NCCL it may wait for a lock of a call that hangs."""

_KEPT = 32
"""Collectives of a group, the last ones."""

_KEPT_FRAMES = 12
"""Calls of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """One that the rank has entered."""

    kind: str
    """Such as `all_reduce`."""
    shape: str
    """What it is of, such as `[[2, 64]]`."""
    frames: tuple[Frame, ...] = ()
    """Where it was entered, the innermost call first."""

    def is_like(self, other: Collective) -> bool:
        """Whether the two are one and the same; in some, every rank's part has its own shape."""
        here, there = self.frames[:1], other.frames[:1]
        return self.kind == other.kind and (self.shape == other.shape or here == there)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """How far a rank is in the collectives of a process group."""

    entered: int
    """The number of the last one that it has entered."""
    done: int
    """The number of the last one before which all are done, and itself."""
    recent: Mapping[int, Collective] = field(default_factory=dict)
    """The last ones that it has entered, by number."""

    @property
    def waits(self) -> bool:
        """Whether the rank has entered one that is not done."""
        return self.entered > self.done

    def told(self) -> dict[str, Any]:
        """Returns what `heard` takes, for a file."""
        return {
            "entered": self.entered,
            "done": self.done,
            "recent": [[number, *astuple(one)] for number, one in self.recent.items()],
        }

    @classmethod
    def heard(cls, told: Mapping[str, Any]) -> Group:
        """Returns what a rank has told."""
        recent = {
            number: Collective(kind=kind, shape=shape, frames=tuple(Frame(*f) for f in frames))
            for number, kind, shape, frames in told["recent"]
        }
        return cls(entered=told["entered"], done=told["done"], recent=recent)


def flight_record() -> bytes:
    """Returns the recorder's pickled record; nothing where there is none, or it does not answer."""
    found: list[bytes] = []

    def ask() -> None:
        import torch
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            recorder = torch._C._distributed_c10d
            under_nccl = "nccl" in dist.get_backend_config()  # `cpu:gloo,cuda:nccl`
            dump = getattr(recorder, "_dump_nccl_trace" if under_nccl else "_dump_fr_trace", None)
            found.append(dump() if dump else b"")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_S)
    return found[0] if found else b""


def groups_of(record: bytes) -> dict[str, Group]:
    """Returns how far the rank is in each process group, by the group's name.

    Args:
        record: What `flight_record` has returned in this process.
    """
    if not record:
        return {}
    told = pickle.loads(record)  # noqa: S301  torch has made it in this process
    entries: dict[str, dict[int, dict[str, Any]]] = {}
    names: dict[str, str] = {}
    for entry in told.get("entries", ()):
        if not entry.get("is_p2p"):
            of_group = str(entry["pg_id"])
            names[of_group] = entry["process_group"][0]
            entries.setdefault(of_group, {})[entry["collective_seq_id"]] = entry
    return {
        names[of_group]: _group(status, entries[of_group])
        for of_group, status in told.get("pg_status", {}).items()
        if of_group in names
    }


def _group(status: Mapping[str, int], entries: Mapping[int, Mapping[str, Any]]) -> Group:
    recent = {}
    for number in sorted(entries)[-_KEPT:]:
        entry = entries[number]
        calls = [Frame(call["filename"], call["line"], call["name"]) for call in entry["frames"]]
        recent[number] = Collective(
            kind=entry["profiling_name"].rpartition(":")[2],
            shape=str(entry["input_sizes"]),
            frames=tuple(calls[:_KEPT_FRAMES]),
        )
    # What it calls the last that is done is the last that it has heard of.
    waiting = [n for n, entry in entries.items() if not entry["retired"]]
    entered = max(status["last_enqueued_collective"], *entries)
    return Group(entered=entered, done=min(waiting, default=entered + 1) - 1, recent=recent)


def write_record(record: bytes, path: Path) -> None:
    """Keeps the record, for torch's own `torchfrtrace`."""
    if record:
        path.write_bytes(record)

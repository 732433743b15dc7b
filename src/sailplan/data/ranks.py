"""Has the ranks of a run wait for each other without a collective, and so without a time-out.

A barrier would end the run after `ddp_timeout`: one machine may find its rows cached, where another
has to encode them for an hour; one rank may check a checkpoint of a terabyte. So the ranks leave
word in the store of the process group. A rank that has died is its launcher's business, which then
ends the others.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

_LOOK_EVERY_S = 0.1
_FIRST_LOOK_S = 0.001
_meetings = itertools.count()

T = TypeVar("T")


def wait_for_ranks() -> None:
    """Returns when every rank has called this as often as this one has, however long that takes."""
    store, meeting = _store(), f"sailplan/meeting-{next(_meetings)}"
    if store is None:
        return
    import torch.distributed as dist

    try:
        if store.add(meeting, 1) == dist.get_world_size():
            store.set(f"{meeting}/all", "")
        _wait_for(store, f"{meeting}/all")
    except dist.DistNetworkError:  # the process that kept the store was killed; the ranks save
        dist.barrier()


def from_first_rank(find: Callable[[], T]) -> T:
    """Returns on every rank what the first rank alone finds, however long it takes.

    Args:
        find: Is called on the first rank; what it returns must be plain JSON.
    """
    store, key = _store(), f"sailplan/found-{next(_meetings)}"
    if store is None:
        return find()
    import torch.distributed as dist

    if dist.get_rank() == 0:
        store.set(key, json.dumps(find()))
    _wait_for(store, key)
    found: T = json.loads(store.get(key))
    return found


def _store() -> Any:
    """Returns the store of the process group, None where there is but one process."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.distributed_c10d._get_default_store()


def _wait_for(store: Any, key: str) -> None:
    pause = _FIRST_LOOK_S
    while not store.check([key]):
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_EVERY_S)

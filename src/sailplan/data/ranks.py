"""Has the ranks of a run wait for each other without a collective, and so without a time-out."""

from __future__ import annotations

import itertools
import time

_LOOK_EVERY_S = 0.1
_meetings = itertools.count()


def wait_for_ranks() -> None:
    """Returns when every rank has called this as often as this one has, however long that takes.

    A barrier would end the run after `ddp_timeout`: one machine may find its rows cached, where
    another has to encode them for an hour. So the ranks leave word in the store of the process
    group. A rank that has died is its launcher's business, which then ends the others.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    meeting = f"sailplan/meeting-{next(_meetings)}"
    if store.add(meeting, 1) == dist.get_world_size():
        store.set(f"{meeting}/all", "")
    while not store.check([f"{meeting}/all"]):
        time.sleep(_LOOK_EVERY_S)

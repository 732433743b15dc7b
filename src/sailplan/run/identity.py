"""What makes a run another run, so that it may not go on in the same directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import xxhash

from sailplan.hub.repository import MAIN, is_commit
from sailplan.run import saved
from sailplan.run.config import Run
from sailplan.run.repositories import REVISIONS

IDENTITY = (
    "model_name_or_path",
    "model_revision",
    "dataset_name",
    "dataset_revision",
    "dataset_config",
    "dataset_train_split",
    "datasets",
    "use_peft",
    "load_in_4bit",
    "load_in_8bit",
    "freeze",
    # They divide the optimizer's state, which another division cannot go on with.
    "vision_tower_learning_rate",
    "projector_learning_rate",
)
"""What makes a run another run: the model, the data, the method. Anything else may change on the
way, such as the hardware, the learning rate or the number of epochs."""

ADAPTER_IDENTITY = (
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "lora_target_parameters",
    "lora_modules_to_save",
    "use_rslora",
    "use_dora",
    "lora_rank_pattern",
    "lora_alpha_pattern",
)
"""The same for a run that trains an adapter: its shape and scale."""

_PINNED = frozenset(REVISIONS.values())


def identity(run: Run) -> str:
    """Returns a checksum of what makes the run this run; a checkpoint of another has another."""
    names = (*IDENTITY, *(ADAPTER_IDENTITY if run.get("use_peft") else ()))
    values = saved.fields({name: run.get(name) for name in names if name not in _PINNED})
    # A revision may be written as a branch first and as its commit later.
    for entry in values["datasets"] or ():
        entry.pop("revision", None)
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True, default=str).encode())


def changes(old: Run, new: Run) -> Iterator[tuple[str, Any, Any]]:
    """Yields what differs of the two runs' identities: name, old value, new value."""
    adapter = ADAPTER_IDENTITY if new.get("use_peft") else ()
    for name in (*IDENTITY, *adapter):
        there, here = (saved.fields({name: run.get(name)})[name] for run in (old, new))
        if there != here and not _differ_in_pins(name, there, here):
            yield name, there, here


def _differ_in_pins(name: str, there: Any, here: Any) -> bool:
    """Says whether one value is the other with a revision pinned that the other leaves open."""
    if name in REVISIONS.values():
        return any(
            one in (None, MAIN) and is_commit(other)
            for one, other in ((there, here), (here, there))
        )
    if name != "datasets" or not there or not here or len(there) != len(here):
        return False
    return all(
        {**a, "revision": None} == {**b, "revision": None}
        and (
            a.get("revision") == b.get("revision")
            or _differ_in_pins("dataset_revision", a.get("revision"), b.get("revision"))
        )
        for a, b in zip(there, here, strict=True)
    )

"""Which GPUs a run is planned for, and how we know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sailplan.errors import HardwareError
from sailplan.hardware.catalogue import CATALOGUE, find, of_driver
from sailplan.hardware.detect import Machine
from sailplan.plan.record import Card

if TYPE_CHECKING:
    from sailplan.run.config import Run


def card_of(run: Run, machine: Machine, *, here: bool = False) -> Card:
    """Returns the GPUs that the run names, else those of this machine.

    Args:
        run: The run; `launch.gpu`, `launch.gpus_per_node` and `launch.nodes` count.
        machine: This machine.
        here: Whether the run starts on this machine, whose GPUs then count before `launch.gpu`.

    Raises:
        HardwareError: No GPU is named and none is here, or it is not in the catalogue.
    """
    nodes = max(run.launch.nodes, run.accelerate.get("num_machines") or 1)
    asked = run.launch.gpus_per_node
    if asked is None and run.accelerate.get("num_processes"):
        asked = max(1, run.accelerate["num_processes"] // nodes)
    if asked is None and run.launch.strategy == "single":
        asked = 1
    found = machine.gpus.value
    if run.launch.gpu and not (here and found):
        model = find(run.launch.gpu)
        same = [gpu for gpu in found if of_driver(gpu.name, gpu.memory_bytes) is model]
        return Card(
            gpu=model.name,
            card_bytes=model.memory_bytes,
            gpus_per_node=asked or len(same) or 1,
            nodes=nodes,
            reason="launch.gpu",
        )
    names = ", ".join(model.name for model in CATALOGUE)
    if not found:
        got = f"no GPU to plan for: {machine.gpus.reason}, and launch.gpu names none"
        raise HardwareError(got, allowed=names, todo="name one, such as --gpu H100-80GB")
    here_model = of_driver(found[0].name, found[0].memory_bytes)
    if here_model is None:
        got = f"this machine's {found[0].name} is not in the catalogue"
        raise HardwareError(got, allowed=names, todo="name the nearest by --gpu")
    return Card(
        gpu=here_model.name,
        card_bytes=min(here_model.memory_bytes, *(gpu.memory_bytes for gpu in found)),
        gpus_per_node=asked or len(found),
        nodes=nodes,
        reason=machine.gpus.reason,
        host_bytes=machine.memory_bytes.value,
    )

"""How a run is divided on machines: device, number of processes, strategy, each with a reason.

The user's words come first and are checked against the machine; what is left open is chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass

from sailplan.errors import HardwareError, LaunchError, RunFileError
from sailplan.hardware.detect import Machine
from sailplan.launcher.preset import Preset, asked_preset, named_preset
from sailplan.run.config import Run
from sailplan.run.quantised import precision_of, refuse_undivided


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """How the run is divided."""

    preset: Preset
    """The accelerate preset, which names the strategy."""
    processes: int
    """Ranks on all machines; each has a GPU of its own, or a share of the cores."""
    nodes: int
    """Machines; each starts as many ranks as the others."""
    on_cpu: bool
    """Whether the ranks train on the CPU."""
    notes: tuple[str, ...]
    """Why, for the user; one line each."""

    @property
    def processes_per_node(self) -> int:
        """Ranks on each machine."""
        return self.processes // self.nodes


def divide(run: Run, machine: Machine) -> Division:
    """Decides device, number of processes and strategy, in this order.

    Args:
        run: The run.
        machine: Each of the machines it trains on.

    Raises:
        HardwareError: More processes than GPUs are asked for, or what a CPU cannot do.
        RunFileError: The settings contradict each other.
    """
    nodes = nodes_of(run)
    without_gpu = on_cpu(run, machine)
    device_note = _device_note(run, machine)
    beside, notes = _processes(run, machine, on_cpu=without_gpu)
    processes = beside * nodes
    preset, reason = _preset(run, processes)
    if preset.strategy == "single" and processes > 1:
        if nodes == 1 and not _count_is_asked(run, on_cpu=without_gpu):
            processes = 1
        else:
            got = f"strategy single with {processes} processes"
            raise RunFileError(got, todo="ask for one process, or for another strategy")
    if without_gpu and preset.strategy == "fsdp2":
        got = "strategy fsdp2 on the CPU, where accelerate would silently train as ddp"
        raise HardwareError(got, allowed="single, ddp, zero1, zero2, zero3, zero3_offload")
    precision = precision_of(bf16=run.get("bf16"), fp16=run.get("fp16"))
    refuse_undivided(run, preset.strategy, precision=precision)
    lacks_compiler = without_gpu and not machine.cpu_zero.value
    if lacks_compiler and nodes == 1 and preset.strategy.startswith("zero"):
        reason = f"{preset.strategy} cannot start on the CPU: {machine.cpu_zero.reason}"
        reason += "; going on with one process"
        if processes > 1 and run.get("global_batch_size") is None:
            reason += f", so that the global batch is 1/{processes} of what was asked"
        preset, processes = named_preset("single"), 1
    if reason:
        notes += (f"strategy {preset.strategy}: {reason}",)
    return Division(
        preset=preset,
        processes=processes,
        nodes=nodes,
        on_cpu=without_gpu,
        notes=(*device_note, *notes, *preset.notes),
    )


def nodes_of(run: Run) -> int:
    """Returns how many machines a run asks for."""
    return max(run.launch.nodes, run.accelerate.get("num_machines") or 1)


def refuse_other_machines(run: Run) -> None:
    """Refuses a run that trains on several machines, where ranks are started on one alone.

    Raises:
        LaunchError: It does.
    """
    nodes = nodes_of(run)
    if nodes > 1:
        got = f"{nodes} machines are asked for, and `sailplan train` starts ranks on this one"
        raise LaunchError(got, todo="`sailplan submit` has Slurm start them; or launch.nodes: 1")


def ranks_alone(run: Run, machine: Machine) -> int:
    """Returns how many ranks work side by side where none needs another: one per GPU, or as asked.

    Raises:
        HardwareError: More are asked for than there are GPUs.
    """
    return _processes(run, machine, on_cpu=on_cpu(run, machine))[0]


def on_cpu(run: Run, machine: Machine) -> bool:
    """Says whether a run trains on the CPU: asked to, or for want of a GPU."""
    return cpu_is_asked(run) or not machine.gpus.value


def cpu_is_asked(run: Run) -> bool:
    """Says whether a run asks to train on the CPU, in whichever of the three ways."""
    return bool(run.launch.cpu or run.get("use_cpu") or run.accelerate.get("cpu"))


def _device_note(run: Run, machine: Machine) -> tuple[str, ...]:
    """Says why a run trains on the CPU where nobody asked for it."""
    if cpu_is_asked(run) or machine.gpus.value:
        return ()
    return (f"training on the CPU: {machine.gpus.reason}",)


def _count_is_asked(run: Run, *, on_cpu: bool) -> bool:
    asked = (run.launch.gpus_per_node, run.accelerate.get("num_processes"))
    return any(asked) or (on_cpu and run.launch.processes is not None)


def _processes(run: Run, machine: Machine, *, on_cpu: bool) -> tuple[int, tuple[str, ...]]:
    """Returns the number of ranks of a machine: as asked, else one per GPU, else one.

    Raises:
        HardwareError: More are asked for than there are GPUs.
        RunFileError: What accelerate's flag asks for does not divide over the machines.
    """
    asked = run.launch.gpus_per_node or ranks_of_accelerate(run)
    if on_cpu:
        count = run.launch.processes or asked or 1
        cores = machine.cpu_cores.value
        if count > cores:
            return count, (f"warning: {count} processes share {cores} CPU cores",)
        return count, ()
    found = len(machine.gpus.value)
    if asked and asked > found:
        names = ", ".join(sorted({gpu.name for gpu in machine.gpus.value}))
        raise HardwareError(
            f"{asked} processes are asked for, and there are {found} GPUs here ({names}; "
            f"{machine.gpus.reason})",
            allowed=f"1 to {found}",
            todo=f"write launch.gpus_per_node: {found}, or launch.cpu: true",
        )
    return asked or found, ()


def ranks_of_accelerate(run: Run) -> int | None:
    """Returns the ranks of a machine by accelerate's flag, which counts all of them.

    Returns:
        None where the flag is not written.

    Raises:
        RunFileError: They do not divide over the machines.
    """
    count, nodes = run.accelerate.get("num_processes"), nodes_of(run)
    if not count:
        return None
    if count % nodes:
        got = f"num_processes {count} does not divide over {nodes} machines"
        raise RunFileError(got, todo="write the ranks of all machines, or launch.gpus_per_node")
    return int(count) // nodes


def _preset(run: Run, processes: int) -> tuple[Preset, str]:
    """Returns the preset, and the reason where it was chosen here."""
    strategy, asked = run.launch.strategy, asked_preset(run)
    inner = next((name for name in ("deepspeed", "fsdp") if run.get(name)), None)
    if strategy != "auto" or asked is not None:
        preset, reason = asked if asked and strategy == "auto" else named_preset(strategy), ""
        if asked and strategy not in ("auto", asked.strategy):
            reason = f"launch.strategy wins over accelerate's own keys ({asked.strategy})"
        if inner and preset.strategy not in ("single", "ddp"):
            got = f"strategy {preset.strategy} beside `{inner}: …`, which shards too"
            raise RunFileError(got, todo="drop one of the two")
        return preset, reason
    if inner:  # transformers reads it in each rank, which must know of the others
        return named_preset("ddp"), f"`{inner}: …` of the run file shards"
    if processes == 1:
        return named_preset("single"), "one process"
    adapter = next(
        (name for name in ("load_in_4bit", "load_in_8bit", "use_peft") if run.get(name)), None
    )
    if adapter:
        reason = f"{processes} processes train an adapter ({adapter}), which each can hold whole"
        return named_preset("ddp"), reason
    return named_preset("zero3"), f"{processes} processes train all weights, which it shards"

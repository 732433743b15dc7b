"""GPUs: are they there, free and well, and how do they reach each other?"""

from __future__ import annotations

from sailplan.hardware.driver import GpuState
from sailplan.preflight import children
from sailplan.preflight.finding import Finding, Subject, failed, of_error, ok, unchecked

MOST_HELD = 0.1
"""The share of a GPU's memory that others may hold: a desktop holds less, a training far more."""

PROBE_TIMEOUT_S = 120.0


def division(subject: Subject) -> Finding:
    """Can the run be divided over this machine?"""
    if subject.run is None:
        return unchecked("no run is named: `sailplan doctor RUN` checks what one needs")
    if subject.trouble is not None:
        if not subject.machine.gpus.value:
            return unchecked(f"{subject.trouble.got}; {subject.machine.gpus.reason}")
        return of_error(subject.trouble)
    many = subject.processes > 1
    place = "the CPU" if subject.on_cpu else "a GPU each" if many else "a GPU"
    text = (
        f"{subject.strategy}: {subject.processes} {'processes' if many else 'process'} on {place}"
    )
    launch = subject.run.launch
    if subject.on_cpu and not subject.machine.gpus.value and (launch.gpu or launch.gpus_per_node):
        return unchecked(f"{text}: the run asks for GPUs, and none is here")
    return ok(text)


def gpus(subject: Subject) -> Finding:
    """Are there GPUs, and are they in order?"""
    found = subject.driver.value
    if found is None or not found.gpus:
        return unchecked(subject.machine.gpus.reason)
    broken = [gpu for gpu in found.gpus if memory_trouble(gpu)]
    if broken:
        text = ", ".join(f"GPU {gpu.index}: {memory_trouble(gpu)}" for gpu in broken)
        return failed(
            f"memory errors that could not be corrected ({text})",
            fix="have the GPU reset or replaced, and leave it out by CUDA_VISIBLE_DEVICES",
        )
    names = [gpu.name for gpu in found.gpus]
    shown = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    if len(set(names)) > 1:
        return ok(shown, fix="the slowest sets the pace: leave the others out")
    return ok(f"{shown}, {_gib(found.gpus[0].memory_bytes)} each")


def memory_trouble(gpu: GpuState) -> str:
    """Returns what is wrong with a GPU's memory, in a clause; nothing where it is well."""
    if gpu.repair == "failed":
        return "no spare rows left for bad ones"
    parts = [f"{gpu.memory_errors} errors"] if gpu.memory_errors else []
    return ", ".join([*parts, *(["a reset must take bad rows out"] if gpu.repair else [])])


def memory(subject: Subject) -> Finding:
    """Is their memory free?"""
    found = subject.driver.value
    if found is None or not found.gpus:
        return unchecked("no GPU is here")
    held = [gpu for gpu in found.gpus if gpu.free_bytes < (1 - MOST_HELD) * gpu.memory_bytes]
    if held and not subject.on_cpu:
        return failed(
            "; ".join(map(_held, held)),
            fix="end those processes, or leave the GPU out by CUDA_VISIBLE_DEVICES",
        )
    least = min(gpu.free_bytes for gpu in found.gpus)
    return ok(
        f"{_gib(least)} free at least, {sum(len(gpu.processes) for gpu in found.gpus)} others"
    )


def _held(gpu: GpuState) -> str:
    by = ", ".join(
        f"{process.name} {process.pid}"
        + (f" {_gib(process.memory_bytes)}" if process.memory_bytes else "")
        for process in gpu.processes
    )
    text = f"GPU {gpu.index}: {_gib(gpu.free_bytes)} of {_gib(gpu.memory_bytes)} free"
    return f"{text}, held by {by or 'processes that the driver does not name'}"


def links(subject: Subject) -> Finding:
    """How do the GPUs reach each other?"""
    found = subject.driver.value
    if found is None or not found.gpus:
        return unchecked("no GPU is here")
    down = [gpu for gpu in found.gpus if gpu.nvlinks_down and not gpu.nvlinks]
    pcie = ", ".join(dict.fromkeys(gpu.pcie for gpu in found.gpus if gpu.pcie))
    if len(found.gpus) == 1:
        return ok(pcie or "one GPU")
    if down:
        return failed(
            f"NVLink is there and not up on GPU {', '.join(str(gpu.index) for gpu in down)}",
            fix="start nvidia-fabricmanager; `nvidia-smi nvlink -s` tells more",
        )
    if all(gpu.nvlinks for gpu in found.gpus):
        return ok(f"NVLink, {min(gpu.nvlinks for gpu in found.gpus)} connections each; {pcie}")
    return ok(f"{pcie or 'PCIe'}, through {found.between}" if found.between else pcie)


def computing(subject: Subject) -> Finding:
    """Does torch load, and compute rightly on each GPU?"""
    child = children.ask(
        "sailplan.preflight.probes.torch",
        environment=subject.environment,
        label="trying torch",
        timeout_s=PROBE_TIMEOUT_S,
    )
    if child.answer is None:
        return failed(
            f"torch cannot be imported: {child.reason}",
            fix="install torch again: pip install --force-reinstall torch",
            detail=child.last_words,
        )
    found = child.answer
    if not subject.machine.gpus.value:
        return unchecked(f"torch loads in {found['imports_s']:.1f} s; no GPU to compute on")
    if found["trouble"] and not subject.on_cpu:
        return failed(found["trouble"], fix="see driver above; `nvidia-smi` tells more")
    return ok(f"right on {found['count']} GPUs, with NCCL {found['nccl']}")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"

"""What this machine has, each answer with its reason.

No torch: a login node answers in milliseconds. GPUs come from the driver's own library (NVML), so
that a CPU-only torch or a missing driver shows as a reason, not as a crash.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_CGROUP = Path("/sys/fs/cgroup")
_TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Detected(Generic[T]):
    """A value that was found out, and how."""

    value: T
    """What was found."""
    reason: str
    """Where it comes from, or why there is nothing; one clause for the user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU that this process may use."""

    name: str
    """The driver's name, such as `NVIDIA H100 80GB HBM3`."""
    memory_bytes: int
    """Its whole memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What the launcher needs to know of one machine."""

    gpus: Detected[tuple[Gpu, ...]]
    """The visible GPUs, in order; empty with the reason where there are none."""
    cpu_cores: Detected[int]
    """Cores that this process may use."""
    memory_bytes: Detected[int]
    """Host memory that this process may use."""
    cpu_zero: Detected[bool]
    """Whether DeepSpeed can build its CPU communication, which needs a compiler and headers."""


def detect(environment: Mapping[str, str] | None = None) -> Machine:
    """Looks at this machine.

    Args:
        environment: Read for `CUDA_VISIBLE_DEVICES`, `CXX` and `PATH`; the process's own where
            not given.
    """
    environment = os.environ if environment is None else environment
    return Machine(
        gpus=detect_gpus(environment),
        cpu_cores=detect_cpu_cores(),
        memory_bytes=detect_memory(),
        cpu_zero=detect_cpu_zero(environment),
    )


def detect_gpus(environment: Mapping[str, str]) -> Detected[tuple[Gpu, ...]]:
    """Finds the NVIDIA GPUs that `CUDA_VISIBLE_DEVICES` leaves visible."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return Detected(value=(), reason=f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU")
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Detected(value=(), reason=f"no NVIDIA driver answers ({error})")
    try:
        found: list[tuple[str, Gpu]] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name, memory = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
            gpu = Gpu(name=str(name), memory_bytes=int(memory.total))
            found.append((str(pynvml.nvmlDeviceGetUUID(handle)), gpu))
    except pynvml.NVMLError as error:
        return Detected(value=(), reason=f"the NVIDIA driver does not list its GPUs ({error})")
    finally:
        pynvml.nvmlShutdown()
    if visible is None:
        return Detected(value=tuple(gpu for _, gpu in found), reason="listed by the NVIDIA driver")
    gpus = select_visible(found, visible)
    return Detected(value=gpus, reason=f"left visible by CUDA_VISIBLE_DEVICES={visible!r}")


def select_visible(found: list[tuple[str, T]], visible: str) -> tuple[T, ...]:
    """Applies `CUDA_VISIBLE_DEVICES` as CUDA does: in its order, up to the first wrong entry.

    Args:
        found: UUID and GPU (anything that stands for it), in the driver's order.
        visible: Comma-separated indices, or beginnings of UUIDs (`GPU-…`; a MIG slice counts as
            the one device that it is, with the first GPU's name and memory).
    """
    chosen: list[T] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdecimal() and int(entry) < len(found):
            chosen.append(found[int(entry)][1])
        elif entry.startswith("MIG-") and found:
            chosen.append(found[0][1])
        else:
            matches = [gpu for uuid, gpu in found if entry and uuid.startswith(entry)]
            if len(matches) != 1:
                break
            chosen.append(matches[0])
    return tuple(chosen)


def detect_cpu_cores(cgroup: Path = _CGROUP, topology: Path = _TOPOLOGY) -> Detected[int]:
    """Counts the cores of this process's affinity mask, or of its control group if fewer.

    Two threads of one core count once: they share the units that train.
    """
    siblings = {_siblings(topology, thread) for thread in os.sched_getaffinity(0)}
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        allowed = max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2 here, or its quota is "max"
        allowed = len(siblings)
    if allowed < len(siblings):
        return Detected(value=allowed, reason="the control group's quota (cpu.max)")
    return Detected(value=len(siblings), reason="the process's affinity mask")


def _siblings(topology: Path, thread: int) -> str:
    """Returns the hardware threads of a thread's core; itself where the kernel does not tell."""
    try:
        return (topology / f"cpu{thread}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(thread)


def detect_memory(cgroup: Path = _CGROUP) -> Detected[int]:
    """Reads the machine's memory in bytes, or the control group's limit if smaller."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        limit = int((cgroup / "memory.max").read_text())
    except (OSError, ValueError):  # no cgroup v2 here, or its limit is "max"
        limit = total
    if limit < total:
        return Detected(value=limit, reason="the control group's limit (memory.max)")
    return Detected(value=total, reason="the machine's physical memory")


def detect_cpu_zero(
    environment: Mapping[str, str], *, include: Path | None = None
) -> Detected[bool]:
    """Tells whether DeepSpeed can start on the CPU.

    It compiles its shared-memory communication at first use (`ShareMemCommBuilder`), with the
    compiler that torch's `cpp_extension` takes: `$CXX`, else `c++`.

    Args:
        environment: Read for `CXX` and `PATH`.
        include: Folder of the Python headers; this interpreter's own where not given.
    """
    compiler = environment.get("CXX", "c++").split()[0] if environment.get("CXX", "c++") else "c++"
    found = shutil.which(compiler, path=environment.get("PATH"))
    if found is None:
        return Detected(value=False, reason=f"no C++ compiler ({compiler} is not on PATH)")
    headers = Path(sysconfig.get_path("include")) if include is None else include
    if not (headers / "Python.h").is_file():
        return Detected(value=False, reason=f"no Python headers ({headers}/Python.h is missing)")
    return Detected(value=True, reason=f"{found} and {headers}/Python.h are there")

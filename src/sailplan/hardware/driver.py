"""What NVIDIA's driver tells of itself and of each GPU, beyond what a launch needs to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sailplan.hardware.detect import Detected, select_visible

T = TypeVar("T")

_LINK_NAMES = ((10, "one PCIe switch"), (20, "PCIe switches"), (30, "one PCIe host bridge"))
"""NVML's levels of what two GPUs have in common, up to which it is worth naming."""


Repair = Literal["", "pending", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A process that computes on a GPU."""

    pid: int
    """As the driver knows it; in a container that may be the host's number."""
    name: str
    """Its program, where it can be told."""
    memory_bytes: int | None
    """GPU memory that it holds, where the driver tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuState:
    """One visible GPU, as it is now."""

    index: int
    """The driver's number."""
    name: str
    """Such as `NVIDIA H100 80GB HBM3`."""
    memory_bytes: int
    """All memory."""
    free_bytes: int
    """What nobody holds."""
    compute_capability: tuple[int, int]
    """Such as (9, 0)."""
    nvlinks: int
    """NVLink connections that are up."""
    nvlinks_down: int
    """NVLink connections that are there and not up."""
    pcie: str
    """The PCIe link, such as `PCIe 5.0 x16`; empty where the driver does not tell."""
    memory_errors: int
    """Uncorrected memory errors since the driver was loaded; 0 where it does not count them."""
    memory_errors_ever: int | None = None
    """Uncorrected memory errors since it was built; None where it does not count them."""
    repair: Repair = ""
    """How its bad memory stands: `pending` waits for a reset, `failed` for another GPU."""
    processes: tuple[Process, ...] = ()
    """Who computes on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """The driver, and the GPUs that `CUDA_VISIBLE_DEVICES` leaves visible."""

    version: str
    """Such as `580.65.06`."""
    cuda_version: tuple[int, int]
    """The newest CUDA that it runs, such as (13, 0)."""
    gpus: tuple[GpuState, ...]
    """In the driver's order."""
    between: str = ""
    """What the GPUs have in common at worst, such as `one PCIe switch`; empty for one GPU."""


def read_driver(environment: Mapping[str, str]) -> Detected[Driver | None]:
    """Asks NVIDIA's driver; the value is None where there is none that answers."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Detected(value=None, reason=f"no NVIDIA driver answers ({error})")
    try:
        return Detected(value=_read(environment), reason="told by the NVIDIA driver")
    except pynvml.NVMLError as error:
        return Detected(value=None, reason=f"the NVIDIA driver does not tell ({error})")
    finally:
        pynvml.nvmlShutdown()


def _read(environment: Mapping[str, str]) -> Driver:
    import pynvml

    number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    handles = [
        pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
    ]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    found = [
        (str(pynvml.nvmlDeviceGetUUID(handle)), (index, handle))
        for index, handle in enumerate(handles)
    ]
    chosen = [pair for _, pair in found] if visible is None else select_visible(found, visible)
    return Driver(
        version=str(pynvml.nvmlSystemGetDriverVersion()),
        cuda_version=(number // 1000, number % 1000 // 10),
        gpus=tuple(_state(index, handle) for index, handle in chosen),
        between=_between([handle for _, handle in chosen]),
    )


def _state(index: int, handle: Any) -> GpuState:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    links = list(_nvlinks(handle))
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    generation = _told(lambda: pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), 0)
    width = _told(lambda: pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle), 0)
    return GpuState(
        index=index,
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        compute_capability=(int(major), int(minor)),
        nvlinks=sum(links),
        nvlinks_down=len(links) - sum(links),
        pcie=f"PCIe {generation}.0 x{width}" if generation and width else "",
        memory_errors=_memory_errors(handle, pynvml.NVML_VOLATILE_ECC) or 0,
        memory_errors_ever=_memory_errors(handle, pynvml.NVML_AGGREGATE_ECC),
        repair=_repair(handle),
        processes=tuple(_processes(handle)),
    )


def _memory_errors(handle: Any, counter: int) -> int | None:
    import pynvml

    kind = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    found = _told(lambda: pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, counter), None)
    return None if found is None else int(found)


def _repair(handle: Any) -> Repair:
    """Returns how it stands with rows that are remapped, and on older GPUs with retired pages."""
    import pynvml

    rows = _told(lambda: pynvml.nvmlDeviceGetRemappedRows(handle), None)
    if rows is not None:
        _, _, pending, has_failed = rows
        return "failed" if has_failed else "pending" if pending else ""
    pages = _told(lambda: pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle), 0)
    return "pending" if pages == pynvml.NVML_FEATURE_ENABLED else ""


def _nvlinks(handle: Any) -> Iterator[bool]:
    """Yields whether each of a GPU's NVLink connections is up."""
    import pynvml

    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = _told(lambda link=link: pynvml.nvmlDeviceGetNvLinkState(handle, link), None)  # type: ignore[misc]
        if state is not None:
            yield bool(state)


def _processes(handle: Any) -> Iterator[Process]:
    import psutil
    import pynvml

    nobody: list[Any] = []
    for process in _told(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle), nobody):
        try:
            name = psutil.Process(process.pid).name()
        except psutil.Error:  # another user's, or the host's number in a container
            name = "unknown"
        yield Process(pid=process.pid, name=name, memory_bytes=process.usedGpuMemory)


def _between(handles: list[Any]) -> str:
    """Returns what the least related two of the GPUs have in common."""
    import pynvml

    levels = [
        _told(lambda a=a, b=b: pynvml.nvmlDeviceGetTopologyCommonAncestor(a, b), None)  # type: ignore[misc]
        for number, a in enumerate(handles)
        for b in handles[number + 1 :]
    ]
    known = [level for level in levels if level is not None]
    if not known:
        return ""
    return next((name for level, name in _LINK_NAMES if max(known) <= level), "the CPUs")


def _told(ask: Callable[[], T], otherwise: T) -> T:
    """Returns an answer of the driver's, or what stands for it where it has none for this GPU."""
    import pynvml

    try:
        return ask()
    except pynvml.NVMLError:
        return otherwise

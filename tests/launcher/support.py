"""Machines and runs that the launcher's tests share."""

from __future__ import annotations

from pathlib import Path

import psutil

from sailplan.hardware.detect import Detected, Gpu, Machine
from sailplan.run.config import Run

GIB = 2**30


def machine(*, gpus: int = 0, cores: int = 2, cpu_zero: bool = True) -> Machine:
    card = Gpu(name="NVIDIA L4", memory_bytes=24 * GIB)
    found = "listed by the NVIDIA driver" if gpus else "no NVIDIA driver answers"
    return Machine(
        gpus=Detected(value=(card,) * gpus, reason=found),
        cpu_cores=Detected(value=cores, reason="the process's affinity mask"),
        memory_bytes=Detected(value=16 * GIB, reason="the machine's physical memory"),
        cpu_zero=Detected(value=cpu_zero, reason="" if cpu_zero else "no C++ compiler (c++)"),
    )


def run(folder: Path, *flags: str) -> Run:
    """A run of a small local model, with these flags on top."""
    path = folder / "run file.yaml"
    path.write_text(
        f"model_name_or_path: some/model\ndataset_name: some/data\noutput_dir: {folder}/out\n"
    )
    return Run.from_file(path, flags)


def is_alive(pid: int) -> bool:
    """Says whether a process runs; one that nobody has reaped yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

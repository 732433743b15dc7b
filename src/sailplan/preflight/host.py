"""The machine around the ranks: shared memory, limits, the port where they meet."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

from sailplan.errors import LaunchError
from sailplan.launcher.local import HOST, meeting_port
from sailplan.preflight.finding import Finding, Subject, failed, ok, unchecked
from sailplan.run.config import Run
from sailplan.sizes import shown_bytes
from sailplan.train.shared_memory import (
    DEEPSPEED_BYTES,
    MORE_SHARED_MEMORY,
    PREFETCHED,
    SHARED_MEMORY,
)

INFINIBAND = Path("/sys/class/infiniband")

COMFORTABLE_BYTES = 1 << 30
"""What any run with workers and some GPUs gets by with; a container has 64 MB unless told."""

NCCL_BYTES = 32 << 20
"""A rank's share of NCCL's buffers, where the GPUs reach each other through host memory."""

PIXELS, PIXEL_BYTES = 1 << 20, 12
"""Of an image in a batch, where the run sets no `max_pixels`: three float32 a pixel."""

LEAST_FILES = 1024
"""Open files that a rank gets by with: libraries, shards of weights, data."""

FILES_PER_BATCH = 8
"""Tensors of a batch on its way from a worker, each an open file."""


def shared_memory(subject: Subject) -> Finding:
    """Is there enough of /dev/shm for workers' batches and the ranks' communication?"""
    try:
        found = os.statvfs(SHARED_MEMORY)
        with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY) as probe:
            probe.write(b"sailplan")
    except OSError as error:
        return failed(
            f"{SHARED_MEMORY} cannot be written ({error.strerror})",
            fix=f"mount it: mount -t tmpfs -o size=16g tmpfs {SHARED_MEMORY}",
        )
    size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    wanted, why = shared_memory_needed(subject)
    text = f"{shown_bytes(free)} free of {shown_bytes(size)}"
    if free < wanted:
        return failed(
            f"{text}, and {shown_bytes(wanted)} are wanted ({why})",
            fix=f"{MORE_SHARED_MEMORY}; else dataloader_num_workers: 0",
        )
    return ok(f"{text}; {shown_bytes(wanted)} are wanted ({why})")


def shared_memory_needed(subject: Subject) -> tuple[int, str]:
    """Returns the bytes of /dev/shm that the ranks of this machine need at least, and for what."""
    run, ranks = subject.run, subject.processes
    if run is None:
        return COMFORTABLE_BYTES, "for any run"
    workers = run.get("dataloader_num_workers")
    ahead = workers * (run.get("dataloader_prefetch_factor") or PREFETCHED)
    images = run.get("per_device_train_batch_size") * (run.get("max_pixels") or PIXELS)
    batches = ranks * ahead * images * PIXEL_BYTES
    between = 0
    if ranks > 1:
        zero_on_cpu = subject.on_cpu and subject.strategy.startswith("zero")
        between = ranks * (DEEPSPEED_BYTES if zero_on_cpu else 0 if subject.on_cpu else NCCL_BYTES)
    parts = [f"{ranks} ranks"] if between or batches else ["no workers"]
    return batches + between, ", ".join([*parts, *([f"{workers} workers each"] if batches else [])])


def open_files(subject: Subject) -> Finding:
    """May a process open enough files?"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = LEAST_FILES
    if subject.run is not None:
        workers = subject.run.get("dataloader_num_workers")
        wanted = max(wanted, LEAST_FILES // 2 + workers * PREFETCHED * FILES_PER_BATCH)
    text = f"{_shown(soft)} at once"
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = hard == resource.RLIM_INFINITY or hard >= wanted
        way = f"ulimit -n {_shown(hard) if hard != resource.RLIM_INFINITY else 65536}"
        fix = way if raised else "raise nofile in /etc/security/limits.conf, or docker --ulimit"
        return failed(f"{text}, and {wanted} are wanted", fix=fix)
    return ok(text)


def locked_memory(_: Subject) -> Finding:
    """May memory be locked, which InfiniBand needs?"""
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "no limit" if soft == resource.RLIM_INFINITY else f"at most {shown_bytes(soft)}"
    devices = sorted(path.name for path in INFINIBAND.glob("*")) if INFINIBAND.is_dir() else []
    if not devices:
        return ok(f"{text}; no InfiniBand here, which would need more")
    if soft != resource.RLIM_INFINITY and soft < COMFORTABLE_BYTES:
        return failed(
            f"{text}, too little for InfiniBand ({', '.join(devices)})",
            fix="ulimit -l unlimited; under Slurm, LimitMEMLOCK=infinity for slurmd",
        )
    return ok(f"{text}, for InfiniBand ({', '.join(devices)})")


def port(subject: Subject) -> Finding:
    """Is a port free where the ranks meet?"""
    if subject.processes == 1 and subject.run is not None:
        return ok("not needed: one process meets nobody")
    try:
        found = meeting_port(subject.run or Run(explicit={}))
    except LaunchError as error:
        return failed(error.got, fix=error.todo)
    except OSError as error:
        return unchecked(f"{HOST} cannot be used ({error.strerror})")
    return ok(f"{found} is free on {HOST}")


def _shown(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)

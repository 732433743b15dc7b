"""Steps that waited for their data: why, and what to do about it, in one line."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

_MOSTLY = 0.5
"""From this part on, it is mostly that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How this rank's batches come about."""

    workers: int
    """Of its DataLoader."""
    cores: int
    """Of the machine, that its ranks and their workers may use."""
    ranks: int
    """On this machine."""
    spare: int
    """Cores of this rank that it does not compute with."""
    persistent: bool
    """Whether its workers outlive an epoch."""
    streams: bool
    """Whether rows are encoded while training."""
    numbers_per_pixel: int = 3
    """Of `pixel_values`: the channels, times the frames that a still picture is repeated for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waited:
    """Some steps of the rank that waited longest."""

    first_step: int
    last_step: int
    seconds: float
    """All of them together."""
    waited_s: float
    """Of it, waiting for the next batch."""
    epoch_began_s: float
    """Of that, waiting for the first batch of an epoch."""
    counts: Mapping[str, float]
    """Fields of `BatchCounts`, added up over the rank's batches."""

    @property
    def share(self) -> float:
        """The part of the time that was waiting."""
        return self.waited_s / self.seconds if self.seconds else 0.0


def explain(waited: Waited, loading: Loading, *, load: float | None = None) -> str:
    """Says how long steps waited for data, what took the time, and what to do.

    Args:
        waited: The steps.
        loading: How their batches came about.
        load: Processes that wanted a core, on average of the last minute; the machine's own where
            not given.
    """
    steps = waited.last_step - waited.first_step + 1
    load_s = waited.counts["read_s"] + waited.counts["collate_s"]
    compute_s = max(waited.seconds - waited.waited_s, 1e-9)
    mostly_waits = waited.counts["cpu_s"] < _MOSTLY * load_s
    idle = (os.getloadavg()[0] if load is None else load) < loading.cores
    starting = waited.epoch_began_s > _MOSTLY * waited.waited_s
    if loading.workers and starting and not loading.persistent:
        advice = (
            "most of the wait is for workers to start with each epoch: set "
            "dataloader_persistent_workers: true"
        )
    elif loading.workers and mostly_waits and idle:
        advice = (
            "its worker mostly waits itself, for a disk or a network: copy the data to a local "
            f"disk, or set dataloader_num_workers: {2 * loading.workers}"
        )
    else:
        advice = _advice(math.ceil(load_s / compute_s), loading)
    return (
        f"waiting for data: {waited.share:.0%} of the time of steps {waited.first_step} to "
        f"{waited.last_step}; a step takes {_time(load_s / steps)} to load "
        f"({_parts(waited.counts, steps, loading)}) and {_time(compute_s / steps)} to compute; "
        f"{advice}"
    )


def _parts(counts: Mapping[str, float], steps: int, loading: Loading) -> str:
    """Says what loading consists of, the longer part first."""
    reading = "reading and tokenising rows" if loading.streams else "reading rows"
    collating = f"padding {_number(round(counts['samples'] / steps), 'row')}"
    if counts["images"]:
        count = _number(round(counts["images"] / steps), "image")
        size = counts["pixels"] / counts["images"] / loading.numbers_per_pixel / 1e6
        collating = f"decoding {count}, of {size:.2g} megapixels as the model sees them"
    parts = [(counts["read_s"], reading), (counts["collate_s"], collating)]
    total = sum(seconds for seconds, _ in parts) or 1.0
    return ", ".join(f"{seconds / total:.0%} {what}" for seconds, what in sorted(parts)[::-1])


def _advice(wanted: int, loading: Loading) -> str:
    """Says what to do where loading is work.

    Args:
        wanted: Workers that would keep up.
        loading: How batches come about.
    """
    ranks = _number(loading.ranks, "rank")
    if loading.spare > loading.workers:
        workers = min(max(wanted, loading.workers + 1), loading.spare)
        of = f"now {loading.workers}; {_number(loading.cores, 'core')} for {ranks}"
        return f"set dataloader_num_workers: {workers} ({of})"
    cheaper = "lower max_pixels, or store the images smaller"
    if loading.streams:
        cheaper = "train without dataset_streaming, which tokenises once"
    return (
        f"no core is left of {loading.cores} for {ranks} with {_number(loading.workers, 'worker')}"
        f" each: give the run more (--cpus-per-task), {cheaper}"
    )


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"

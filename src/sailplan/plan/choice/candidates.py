"""The ways in which a run could be divided, each with what it would need and take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sailplan.errors import HardwareError, RunFileError
from sailplan.plan.cost.speed import estimate
from sailplan.plan.facts.batches import Batch
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.profile import Profile
from sailplan.plan.sharding import Memory, Sharding, Time
from sailplan.plan.workload import Workload
from sailplan.run.blocks import Strategy

if TYPE_CHECKING:
    from sailplan.hardware.catalogue import GpuModel

TIGHT = 0.88
"""Of a GPU's memory; beyond it a run is slower (a measured one by 1.6) and one long row ends it."""

SHARDED: tuple[Strategy, ...] = ("ddp", "zero1", "zero2", "zero3", "zero3_offload")
"""What is weighed for several ranks, from the simplest to the one that needs least."""

ALONE: tuple[Strategy, ...] = ("single", "zero3_offload")
"""The same for one rank."""

MOST_ROWS = 64
"""The largest micro batch that is weighed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One way to run, and what it would need."""

    strategy: Strategy
    ranks: int
    micro_batch: int
    """Samples."""
    accumulation: int
    checkpointing: bool
    """Gradient checkpointing."""
    memory: Memory
    time: Time
    card_bytes: int
    """What one GPU has."""

    @property
    def needed_bytes(self) -> int:
        """What it needs of one GPU."""
        return self.memory.needed_bytes

    @property
    def fits(self) -> bool:
        """Whether the GPU has as much."""
        return self.needed_bytes <= self.card_bytes

    @property
    def tight(self) -> bool:
        """Whether it fits, with little to spare."""
        return self.fits and self.needed_bytes > TIGHT * self.card_bytes

    @property
    def missing_bytes(self) -> int:
        """By how much it does not fit; 0 where it does."""
        return max(0, self.needed_bytes - self.card_bytes)

    @property
    def peak(self) -> dict[str, int]:
        """Kind to bytes at the worst moment."""
        return self.memory.phases[self.memory.peak_phase]

    @property
    def largest_kind(self) -> str:
        """What most memory is spent on at the worst moment."""
        return max(self.peak, key=lambda kind: self.peak[kind])

    @property
    def words(self) -> str:
        """It in a few words, such as `zero3, micro batch 4 × 2, checkpointing`."""
        batch = f"{self.micro_batch} × {self.accumulation}"
        checkpointing = "checkpointing" if self.checkpointing else "no checkpointing"
        return f"{self.strategy}, micro batch {batch}, {checkpointing}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What a run file says and what it leaves open: every combination is a candidate."""

    global_batch: int
    """Rows of an optimizer step over all ranks."""
    strategies: tuple[Strategy, ...]
    micro_batches: tuple[int, ...]
    checkpointing: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Weighs candidates of one run on one kind of GPU."""

    workload: Callable[[Strategy, int, int, bool], Workload]
    """Strategy, micro batch, accumulation and checkpointing to a workload."""
    profile: Callable[[Workload], Profile]
    shard: Callable[[Profile, Workload, Sharding], Memory]
    gpu: GpuModel
    card_bytes: int
    """What one GPU has, as the driver says it or the catalogue."""
    gpus_per_node: int
    data: DataFacts
    batch: Callable[[Workload, int], Batch]
    """A workload, and the samples of its micro batch, to the batch that it was made of."""
    impossible: tuple[str, ...] = ()
    """Strategies that cannot divide the run's weights."""
    memory_factor: float = 1.0
    """Measured over planned peak, of earlier runs."""
    time_factor: float = 1.0
    """Measured over planned time, of earlier runs."""

    def weigh(
        self, strategy: Strategy, ranks: int, micro_batch: int, accumulation: int, checkpoint: bool
    ) -> Candidate:
        """Returns a candidate."""
        workload = self.workload(strategy, micro_batch, accumulation, checkpoint)
        profile = self.profile(workload)
        sharding = sharding_of(strategy, ranks, self.gpus_per_node)
        filled = self.batch(workload, micro_batch).mean_tokens / workload.tokens
        time = estimate(profile, workload, sharding, self.gpu, filled=min(1.0, filled))
        return Candidate(
            strategy=strategy,
            ranks=ranks,
            micro_batch=micro_batch,
            accumulation=accumulation,
            checkpointing=checkpoint,
            memory=_scaled(self.shard(profile, workload, sharding), self.memory_factor),
            time=_slower(time, self.time_factor),
            card_bytes=self.card_bytes,
        )

    def all(self, wishes: Wishes, ranks: int) -> Iterator[Candidate]:
        """Yields every candidate that the wishes allow."""
        for strategy in (one for one in wishes.strategies if one not in self.impossible):
            for checkpoint in wishes.checkpointing:
                for micro in wishes.micro_batches:
                    if wishes.global_batch % (micro * ranks) == 0:
                        steps = wishes.global_batch // (micro * ranks)
                        yield self.weigh(strategy, ranks, micro, steps, checkpoint)


def sharding_of(strategy: Strategy, ranks: int, gpus_per_node: int) -> Sharding:
    """Returns the division that a preset of that strategy makes."""
    offload = strategy == "zero3_offload"
    return Sharding(
        strategy=strategy,
        ranks=ranks,
        ranks_per_node=min(ranks, gpus_per_node),
        offload_optimizer=offload,
        offload_parameters=offload,
    )


def divisors(global_batch: int, ranks: int) -> tuple[int, ...]:
    """Returns the micro batches that a global batch can be made of.

    Raises:
        RunFileError: It is no multiple of the ranks; the nearest that are, are shown.
    """
    share, rest = divmod(global_batch, ranks)
    if rest or not share:
        near = sorted({max(share, 1) * ranks, (share + 1) * ranks})
        counts = range(min(global_batch, ranks), 0, -1)
        fitting = next(count for count in counts if global_batch % count == 0)
        raise RunFileError(
            f"global_batch_size {global_batch} does not divide over {ranks} ranks",
            allowed=f"{' or '.join(map(str, near))} on {ranks} ranks",
            todo=f"or keep {global_batch} on {fitting} rank{'s' if fitting > 1 else ''}",
        )
    most = min(share, MOST_ROWS)
    return tuple(micro for micro in range(1, most + 1) if share % micro == 0)


def refuse_micro_batch(global_batch: int, ranks: int, micro_batch: int) -> None:
    """Refuses a global batch that is not made of whole micro batches; shows the nearest that are.

    Raises:
        RunFileError: It is not.
    """
    step = ranks * micro_batch
    if global_batch % step == 0:
        return
    near = sorted({max(global_batch // step, 1) * step, (global_batch // step + 1) * step})
    others = ", ".join(map(str, divisors(global_batch, ranks)))
    raise RunFileError(
        f"global_batch_size {global_batch} is no multiple of per_device_train_batch_size "
        f"{micro_batch} × {ranks} ranks",
        allowed=f"{' or '.join(map(str, near))}, or a micro batch of {others}",
    )


def refuse_more_ranks_than_rows(ranks: int, rows: int | None) -> None:
    """Refuses ranks that would have no row of their own.

    Raises:
        HardwareError: There are more ranks than rows.
    """
    if rows is not None and ranks > rows:
        got = f"{ranks} GPUs for {rows} rows: some would have none"
        raise HardwareError(got, allowed=f"1 to {rows} GPUs", todo="ask for fewer")


def _scaled(memory: Memory, factor: float) -> Memory:
    if factor == 1.0:
        return memory
    phases = {
        phase: {k: size if k == "context" else int(size * factor) for k, size in kinds.items()}
        for phase, kinds in memory.phases.items()
    }
    known = f"corrected by a measured run: × {factor:.2f}; before, {memory.known}"
    return replace(memory, phases=phases, band=memory.band / 2, known=known)


def _slower(time: Time, factor: float) -> Time:
    if factor == 1.0:
        return time
    return replace(
        time,
        step_s=time.step_s * factor,
        compute_s=time.compute_s * factor,
        communication_s=time.communication_s * factor,
        offload_s=time.offload_s * factor,
        band=1 + (time.band - 1) / 2,
    )


def nodes_of(ranks: int, gpus_per_node: int) -> int:
    """Returns how many machines hold so many ranks."""
    return math.ceil(ranks / gpus_per_node)

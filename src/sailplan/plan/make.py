"""Makes the plan of a run on some GPUs: the one way in for the command line and the launcher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sailplan.errors import RunFileError
from sailplan.hardware.catalogue import CATALOGUE, GpuModel, find
from sailplan.plan.choice.candidates import (
    ALONE,
    SHARDED,
    Bench,
    Candidate,
    Wishes,
    divisors,
    refuse_micro_batch,
    refuse_more_ranks_than_rows,
    sharding_of,
)
from sailplan.plan.choice.choose import Change, Choice, changes, choose, fewer_gpus
from sailplan.plan.choice.explain import explain
from sailplan.plan.choice.weigh import Frugal, weigh
from sailplan.plan.cost.around import disk_of, host_of, steps_of
from sailplan.plan.cost.memory import shard
from sailplan.plan.facts.batches import Batches
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.facts.draft import Draft
from sailplan.plan.facts.model import ModelFacts
from sailplan.plan.record import Card, Plan, Tried
from sailplan.plan.simulation.profiles import Profiles, Simulate, simulate_really
from sailplan.plan.workload import Workload
from sailplan.run.blocks import Strategy
from sailplan.run.method import AUTO, METHODS, MICRO_BATCH, method_of, with_method
from sailplan.run.quantised import precision_of, refuse_undivided, whole_under

if TYPE_CHECKING:
    from sailplan.run.config import Run

FASTER = 0.85
"""A candidate that the run file rules out is told of where its step takes less than this share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrections:
    """What measured runs say of plans like this one."""

    memory: float = 1.0
    time: float = 1.0
    source: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Planner:
    """All that a plan stands on; `of` makes it for one method."""

    run: Run
    model: ModelFacts
    data: DataFacts
    card: Card
    strategy: Strategy | None
    """What the run file asks for, by `launch.strategy` or by accelerate's own keys."""
    corrections: Corrections = Corrections()
    offload: bool = True
    """Whether the host's memory is weighed as a way to fit."""
    simulate: Simulate = simulate_really

    @property
    def gpu(self) -> GpuModel:
        """The GPU of the catalogue."""
        return find(self.card.gpu)

    def plan(self) -> Plan:
        """Makes the plan.

        Raises:
            RunFileError: The global batch does not divide over the ranks.
            HardwareError: There are more GPUs than rows.
            ModelError: The model cannot be simulated.
        """
        refuse_more_ranks_than_rows(self.card.ranks, self.data.rows)
        if method_of(self.run) != AUTO:
            plan = self._plan(())
            return replace(plan, reasons=explain(plan))
        tried: list[Tried] = []
        for method in METHODS:
            is_last = method == list(METHODS)[-1]
            run = with_method(self.run, method)
            # A step from the host's memory takes many times as long as a less faithful method's.
            plan = replace(self, run=run, offload=is_last)._plan(tuple(tried))
            if plan.fits or is_last:
                return replace(plan, reasons=explain(plan))
            tried.append(Tried(method=method, needed_bytes=plan.chosen.needed_bytes))
        raise AssertionError("one of the methods is the last")

    def _plan(self, tried: tuple[Tried, ...]) -> Plan:
        wishes = self.wishes()
        bench, frugal = self._bench(wishes)
        candidates = weigh(bench, frugal, wishes, self.card.ranks, first=self._first())
        held = [one for one in candidates if self._host_holds(one, bench, frugal)]
        choice = choose(held or candidates)
        chosen = choice.chosen
        workload = bench.workload(
            chosen.strategy, chosen.micro_batch, chosen.accumulation, chosen.checkpointing
        )
        profile, batch = frugal(workload), bench.batch(workload, chosen.micro_batch)
        sharding = sharding_of(chosen.strategy, chosen.ranks, self.card.gpus_per_node)
        steps = steps_of(self.run, self.data.rows, chosen)
        return Plan(
            model=self.model.name,
            method=method_of(self.run),
            tried=tried,
            parameters=profile.parameters,
            trained_parameters=profile.trained_parameters,
            image_tokens=profile.image_tokens
            // max(workload.num_images, 1)
            * self.data.images_per_row,
            card=self.card,
            global_batch=wishes.global_batch,
            length_tokens=workload.length_tokens,
            batching=batch.words,
            data=self.data,
            chosen=chosen,
            runners_up=choice.runners_up,
            candidates=choice.candidates,
            fewer_gpus=fewer_gpus(bench, wishes, self.card.ranks) if chosen.fits else (),
            changes=() if chosen.fits else self._changes(bench, wishes, chosen),
            faster=self._faster(bench, wishes, choice),
            steps=steps,
            host=host_of(self.run, profile, sharding),
            disk=disk_of(self.run, profile, workload, sharding, steps),
            price_per_hour=self.run.launch.price_per_hour,
            notes=(*self._notes(), *(() if batch.packs or not batch.why else (batch.why,))),
            corrected_by=self.corrections.source,
            memory_factor=self.corrections.memory,
            time_factor=self.corrections.time,
        )

    def wishes(self) -> Wishes:
        """Returns what the run file says, and what it leaves open.

        Raises:
            RunFileError: The global batch does not divide over the ranks.
        """
        run, ranks = self.run, self.card.ranks
        micro, wanted = run.get(MICRO_BATCH), run.get("global_batch_size")
        accumulated = run.get("gradient_accumulation_steps")
        if wanted is None:
            wanted = micro * accumulated * ranks
        micros = divisors(wanted, ranks)
        if micro == AUTO and run.is_set("gradient_accumulation_steps"):
            micros = tuple(m for m in micros if m * accumulated * ranks == wanted)
        elif micro != AUTO:
            refuse_micro_batch(wanted, ranks, micro)
            run.for_world_size(ranks)  # refuses an accumulation that does not multiply
            micros = (micro,)
        if not micros:
            got = f"global_batch_size {wanted} over {ranks} ranks accumulating {accumulated}"
            raise RunFileError(got, todo="drop gradient_accumulation_steps")
        if self.strategy:
            precision = precision_of(bf16=run.get("bf16"), fp16=run.get("fp16"))
            refuse_undivided(run, self.strategy, precision=precision)
        open_strategies = SHARDED if ranks > 1 else ALONE
        if self._ddp_would_lose_precision():
            open_strategies = open_strategies[1:]
        if not self.offload:
            open_strategies = tuple(s for s in open_strategies if s != "zero3_offload")
        written = run.is_set("gradient_checkpointing")
        return Wishes(
            global_batch=wanted,
            strategies=(self.strategy,) if self.strategy else open_strategies,
            micro_batches=micros,
            checkpointing=(bool(run.get("gradient_checkpointing")),) if written else (True, False),
        )

    def _ddp_would_lose_precision(self) -> bool:
        """Says whether DDP would train 16-bit weights without the float32 copies of the others."""
        half = self.run.get("dtype") in ("bfloat16", "float16")
        return half and not self.run.get("use_peft") and self.card.ranks > 1

    def _notes(self) -> Iterator[str]:
        yield f"the model's config is from {self.model.source}"
        yield from self.data.notes
        if self._ddp_would_lose_precision() and self.strategy is None:
            dtype = self.run.get("dtype")
            yield (
                f"ddp is not weighed: it would train {dtype} weights without the float32 copies "
                "that DeepSpeed keeps, and small updates would be lost"
            )

    def _first(self) -> Strategy:
        """Returns the strategy that is most likely to be chosen."""
        if self.card.ranks == 1:
            return "single"
        return "ddp" if self.run.get("use_peft") else "zero3"

    def _bench(self, wishes: Wishes) -> tuple[Bench, Frugal]:
        batches = Batches(
            run=self.run,
            config=self.model.config,
            data=self.data,
            global_batch=wishes.global_batch,
            weights=lambda: profiles.exact(one_sample()).weights_by_part,
        )
        draft = Draft(run=self.run, model=self.model, data=self.data, gpu=self.gpu, batches=batches)
        profiles = Profiles(
            micro_batches=wishes.micro_batches, sized=draft.sized, simulate=self.simulate
        )

        def one_sample() -> Workload:
            first = self._first()
            strategy = first if first in wishes.strategies else wishes.strategies[0]
            return draft.workload(strategy, 1, 1, wishes.checkpointing[0])

        frugal = Frugal(profiles=profiles)
        bench = Bench(
            workload=draft.workload,
            profile=frugal,
            shard=shard,
            gpu=self.gpu,
            card_bytes=self.card.card_bytes,
            gpus_per_node=self.card.gpus_per_node,
            data=self.data,
            batch=lambda workload, micro: batches(micro, workload.attention),
            impossible=whole_under(self.run),
            memory_factor=self.corrections.memory,
            time_factor=self.corrections.time,
        )
        return bench, frugal

    def _host_holds(self, one: Candidate, bench: Bench, frugal: Frugal) -> bool:
        """Says whether the machine has the memory for what a candidate offloads, where we know."""
        if self.card.host_bytes is None or one.strategy != "zero3_offload":
            return True
        workload = bench.workload(
            one.strategy, one.micro_batch, one.accumulation, one.checkpointing
        )
        sharding = sharding_of(one.strategy, one.ranks, self.card.gpus_per_node)
        needed = host_of(self.run, frugal(workload), sharding).peak_bytes
        return needed <= self.card.host_bytes

    def _changes(self, bench: Bench, wishes: Wishes, nearest: Candidate) -> tuple[Change, ...]:
        def other_methods() -> Iterator[tuple[str, Bench]]:
            names = list(METHODS)
            for method in names[names.index(method_of(self.run)) + 1 :]:
                explicit = {k: v for k, v in self.run.explicit.items() if k not in METHODS["qlora"]}
                run = with_method(replace(self.run, explicit=explicit), method)
                yield method, replace(self, run=run)._bench(wishes)[0]

        def shorter(length: int) -> Bench:
            lengths = tuple(min(length, one) for one in self.data.lengths)
            return replace(self, data=replace(self.data, lengths=lengths))._bench(wishes)[0]

        return changes(
            bench,
            wishes,
            nearest,
            other_methods=other_methods,
            shorter=None if self.data.images_per_row else shorter,
            gpus=[gpu for gpu in CATALOGUE if gpu.memory_bytes > self.card.card_bytes],
            rows=self.data.rows,
        )

    def _faster(self, bench: Bench, wishes: Wishes, choice: Choice) -> Candidate | None:
        """Returns the best of the micro batches that the run file rules out, if it is faster."""
        if len(wishes.micro_batches) > 1 or not choice.chosen.fits:
            return None
        others = divisors(wishes.global_batch, self.card.ranks)
        candidates = [
            bench.weigh(
                choice.chosen.strategy,
                self.card.ranks,
                micro,
                wishes.global_batch // (micro * self.card.ranks),
                choice.chosen.checkpointing,
            )
            for micro in others
        ]
        best = choose(candidates).chosen
        quick = best.time.step_s < FASTER * choice.chosen.time.step_s
        return best if best.fits and not best.tight and quick else None

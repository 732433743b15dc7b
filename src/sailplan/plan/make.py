"""Makes the plan of a run on some GPUs: the one way in for the command line and the launcher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sailplan.errors import RunFileError
from sailplan.hardware.catalogue import CATALOGUE, GpuModel, find
from sailplan.plan.candidates import (
    ALONE,
    SHARDED,
    Bench,
    Candidate,
    Wishes,
    divisors,
    refuse_more_ranks_than_rows,
    sharding_of,
)
from sailplan.plan.choose import Change, Choice, changes, choose, fewer_gpus
from sailplan.plan.data_facts import DataFacts
from sailplan.plan.draft import Draft
from sailplan.plan.host import Disk, Host, Saving, disk_space, host_memory
from sailplan.plan.memory import shard
from sailplan.plan.model_facts import ModelFacts
from sailplan.plan.optimizers import state_bytes
from sailplan.plan.profiles import Profiles, Simulate, simulate_really
from sailplan.plan.record import Card, Plan, Tried
from sailplan.plan.steps import Steps, count_steps
from sailplan.plan.weigh import Frugal, weigh
from sailplan.run.blocks import Strategy
from sailplan.run.method import AUTO, METHODS, MICRO_BATCH, method_of, with_method

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
            return self._plan(())
        tried: list[Tried] = []
        for method in METHODS:
            is_last = method == list(METHODS)[-1]
            run = with_method(self.run, method)
            # A step from the host's memory takes many times as long as a less faithful method's.
            plan = replace(self, run=run, offload=is_last)._plan(tuple(tried))
            if plan.fits or is_last:
                return plan
            tried.append(Tried(method=method, needed_bytes=plan.chosen.needed_bytes))
        raise AssertionError("one of the methods is the last")

    def _plan(self, tried: tuple[Tried, ...]) -> Plan:
        wishes = self.wishes()
        bench, frugal = self._bench(wishes)
        candidates = weigh(bench, frugal, wishes, self.card.ranks, first=self._first())
        choice = choose(candidates)
        chosen = choice.chosen
        workload = bench.workload(
            chosen.strategy, chosen.micro_batch, chosen.accumulation, chosen.checkpointing
        )
        profile = frugal(workload)
        steps = self._steps(chosen)
        host, disk = self._around(chosen, bench, frugal, steps)
        return Plan(
            model=self.model.name,
            method=method_of(self.run),
            tried=tried,
            parameters=profile.parameters,
            trained_parameters=profile.trained_parameters,
            image_tokens=profile.image_tokens // chosen.micro_batch,
            card=self.card,
            global_batch=wishes.global_batch,
            length_tokens=workload.length_tokens,
            data=self.data,
            chosen=chosen,
            runners_up=choice.runners_up,
            candidates=choice.candidates,
            fewer_gpus=fewer_gpus(bench, wishes, self.card.ranks) if chosen.fits else (),
            changes=() if chosen.fits else self._changes(bench, wishes, chosen),
            faster=self._faster(bench, wishes, choice),
            steps=steps,
            host=host,
            disk=disk,
            price_per_hour=self.run.launch.price_per_hour,
            notes=tuple(self._notes()),
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
            run.for_world_size(ranks)  # refuses what does not multiply
            micros = (micro,)
        if not micros:
            got = f"global_batch_size {wanted} over {ranks} ranks accumulating {accumulated}"
            raise RunFileError(got, todo="drop gradient_accumulation_steps")
        open_strategies = SHARDED if ranks > 1 else ALONE
        if run.get("load_in_8bit"):  # DeepSpeed's stages refuse or ignore 8-bit weights
            open_strategies = open_strategies[:1]
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
        draft = Draft(run=self.run, model=self.model, data=self.data, gpu=self.gpu)
        frugal = Frugal(
            profiles=Profiles(micro_batches=wishes.micro_batches, simulate=self.simulate)
        )
        bench = Bench(
            workload=draft.workload,
            profile=frugal,
            shard=shard,
            gpu=self.gpu,
            card_bytes=self.card.card_bytes,
            gpus_per_node=self.card.gpus_per_node,
            data=self.data,
            grouped=self.run.get("train_sampling_strategy") == "group_by_length",
            memory_factor=self.corrections.memory,
            time_factor=self.corrections.time,
        )
        return bench, frugal

    def _steps(self, chosen: Candidate) -> Steps | None:
        run, rows = self.run, self.data.rows
        if rows is None and run.get("max_steps") <= 0:
            return None
        per_step = chosen.micro_batch * chosen.accumulation * chosen.ranks
        return count_steps(
            rows=run.get("max_steps") * per_step if rows is None else rows,
            micro_batch=chosen.micro_batch,
            accumulation=chosen.accumulation,
            ranks=chosen.ranks,
            epochs=run.get("num_train_epochs"),
            max_steps=run.get("max_steps"),
            drop_last=bool(run.get("dataloader_drop_last")),
        )

    def _around(
        self, chosen: Candidate, bench: Bench, frugal: Frugal, steps: Steps | None
    ) -> tuple[Host, Disk]:
        run = self.run
        workload = bench.workload(
            chosen.strategy, chosen.micro_batch, chosen.accumulation, chosen.checkpointing
        )
        profile = frugal(workload)
        sharding = sharding_of(chosen.strategy, chosen.ranks, self.card.gpus_per_node)
        workers = int(run.get("dataloader_num_workers") or 0)
        states = state_bytes(workload.optimizer, profile)
        kept = states.of_parameters
        if sharding.strategy.startswith("zero"):
            kept = states.of_float32 + 4 * profile.trained_parameters
        elif sharding.strategy == "fsdp2":
            kept = states.of_float32
        saving = Saving(
            strategy=str(run.get("save_strategy")),
            steps=float(run.get("save_steps")),
            limit=run.get("save_total_limit"),
            only_model=bool(run.get("save_only_model")),
        )
        disk = disk_space(
            profile,
            workload,
            sharding,
            state_bytes=kept,
            saving=saving,
            total_steps=steps.total if steps else 1,
            epochs=run.get("num_train_epochs"),
        )
        return host_memory(profile, sharding, workers=workers), disk

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

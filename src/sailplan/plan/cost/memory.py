"""The bytes of one rank, by phase and kind: a profile under a strategy.

Sources: DeepSpeed's `stage_1_and_2.py`, `stage3.py` and `partition_parameters.py` (0.19), torch's
reducer and `fully_shard`, TRL 1.16, and the measured runs of `benchmarks/plan_accuracy.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sailplan.checkpoint.stored import ITEM_BYTES
from sailplan.model.parts import LANGUAGE_MODEL
from sailplan.plan.cost.optimizers import state_bytes, step_bytes
from sailplan.plan.profile import Moment, Profile
from sailplan.plan.sharding import GIB, Memory, Sharding
from sailplan.plan.workload import Workload

CONTEXT_BYTES = int(0.8 * GIB)
"""CUDA's context, its libraries and NCCL's buffers: an estimate, no run of ours measured it."""

HEAD_BACKWARD = "backward head"
"""The moment at which the loss and the output embedding are differentiated."""


def shard(profile: Profile, workload: Workload, sharding: Sharding) -> Memory:
    """Returns what one rank of a strategy needs.

    Args:
        profile: What the simulation of its micro batch found.
        workload: That micro batch.
        sharding: How the run is divided.
    """
    rules = _rules(profile, workload, sharding)
    phases: dict[str, dict[str, int]] = {"load": _load(profile, workload, sharding)}
    moments = {"load": "loading the weights"}
    for phase in ("forward", "backward"):
        chosen = max(
            (m for m in profile.moments if m.phase == phase),
            key=lambda m: sum(_at(m, profile, rules).values()),
        )
        phases[phase], moments[phase] = _at(chosen, profile, rules), chosen.name
    phases["step"], moments["step"] = _step(profile, workload, rules), "optimizer step"
    phases["evaluation"] = _evaluation(profile, rules)
    moments["evaluation"] = "forward without gradients"
    phases["save"] = {**_state(rules), "gathered": _saved(profile, workload, sharding)}
    moments["save"] = "gathering the weights"
    for kinds in phases.values():
        kinds["context"] = CONTEXT_BYTES
    band, known = _band(workload, sharding)
    # 1.1 to 1.57 times were measured under ZeRO-3, whose gathers are of all sizes
    fragmentation = 1.57 if sharding.strategy.startswith("zero3") else 1.25
    return Memory(
        phases=phases, moments=moments, band=band, known=known, fragmentation=fragmentation
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rules:
    """What a strategy keeps, in bytes of one rank."""

    parameters: int
    gradients: int
    """Kept all the time, where they are (ZeRO's partitions)."""
    gradient_size: float
    """Bytes of a gradient's element that stays until the step, where gradients are not sharded."""
    whole_gradients: bool
    """Whether the gradients of earlier micro batches are alive during the next."""
    optimizer: int
    buckets: int
    gathered: int
    at_step: int | None
    """Gradients at the optimizer's step, where they are others than at the end of backward."""
    oversize: int
    """What handling the largest gradient takes where it fits no bucket."""


def _rules(profile: Profile, workload: Workload, sharding: Sharding) -> _Rules:
    strategy, ranks = sharding.strategy, sharding.ranks
    trained, frozen = profile.trained_parameters, _frozen_bytes(profile)
    trained_bytes = sum(group.trained_bytes for group in profile.groups)
    states = state_bytes(workload.optimizer, profile)
    buckets = gathered = gradients = oversize = 0
    gradient_size = trained_bytes / max(trained, 1)
    if strategy in ("single", "ddp"):
        parameters = frozen + trained_bytes
        optimizer = int(states.of_parameters)
        if strategy == "ddp" and ranks > 1:
            # a copy of all gradients: accelerate leaves gradient_as_bucket_view off
            buckets = trained_bytes
    elif strategy == "fsdp2":
        # accelerate keeps what trains in float32, and computes in the layers' own dtype
        compute = ITEM_BYTES[workload.autocast or workload.weights]
        size = 4 if workload.autocast else ITEM_BYTES[workload.weights]
        parameters = (size * trained + frozen) // ranks
        gradients, gradient_size = size * trained // ranks, 0
        optimizer = int((states.of_float32 if size == 4 else states.of_parameters) / ranks)
        layer = max(_layer_elements(profile), default=0)
        gathered = 2 * layer * compute + _outside(profile) * compute
        buckets = 2 * layer * compute
    else:
        half = _half(workload)
        size = half if workload.quantization is None else 2
        whole = frozen + trained * size
        reduce = sharding.reduce_bucket or 500_000_000
        bucket = min(reduce, trained) * size
        gradient_size = size
        states_bytes = states.of_parameters if half == 4 else states.of_float32 + 4 * trained
        optimizer = 0 if sharding.offload_optimizer else int(states_bytes / ranks)
        largest = max((max(g.trained_tensors, default=0) for g in profile.groups), default=0)
        if strategy in ("zero1", "zero2"):
            parameters = whole
            buckets = bucket
            if strategy == "zero2" or sharding.offload_optimizer:
                gradients = 0 if sharding.offload_optimizer else trained * size // ranks
                gradient_size = 0
            if sharding.offload_optimizer:
                buckets += largest * size
                if largest > reduce:
                    # itself, flat copies before and after the reduction, and on the rank that
                    # steps with it one in float32
                    oversize = largest * (3 * size + 4)
        else:
            parameters = 0 if sharding.offload_parameters else whole // ranks
            gradients = 0 if sharding.offload_optimizer else trained * size // ranks
            gradient_size, buckets = 0, bucket
            gathered = _gathered(profile, sharding, whole, keeps=_keeps(workload, sharding))
    return _Rules(
        parameters=parameters + profile.buffer_bytes,
        gradients=gradients,
        gradient_size=gradient_size,
        whole_gradients=workload.accumulation > 1,
        optimizer=optimizer,
        buckets=buckets,
        gathered=gathered,
        oversize=oversize,
        at_step=trained * int(gradient_size) // ranks if strategy == "zero1" else None,
    )


def _half(workload: Workload) -> int:
    """Bytes of a weight under DeepSpeed, which casts to the precision that it computes in."""
    return ITEM_BYTES[workload.autocast or workload.weights]


def _keeps(workload: Workload, sharding: Sharding) -> bool:
    """Says whether autograd keeps every gathered weight until backward.

    `zero.Init` replaces `F.linear` by one that does not (`zero3_linear_wrap`). Where the model was
    loaded without it, only checkpointing, which saves no weights, spares them.
    """
    return not _loads_shards(workload, sharding) and workload.checkpointing == "none"


def _loads_shards(workload: Workload, sharding: Sharding) -> bool:
    """Says whether ZeRO-3 divides the model while it loads; quantised, transformers loads it whole.

    Seen with transformers 5.23, which quantises nothing under `zero.Init`.
    """
    return sharding.zero_init and workload.quantization is None


def _gathered(profile: Profile, sharding: Sharding, whole_bytes: int, *, keeps: bool) -> int:
    """Returns the whole weights that ZeRO-3 holds at a moment.

    It gathers ahead up to `max_live` elements, and the module at work whatever its size. What it
    frees stays with the allocator until the streams have passed it (`free_param` records the
    stream): as much again, where there is anything to free.
    """
    if sharding.ranks == 1 and not sharding.offload_parameters:
        return 0
    elements = profile.parameters
    if keeps:  # and what backward gathers again beside it
        return int(whole_bytes * (1 + min(1.0, sharding.max_live / elements)))
    largest = max(group.largest_elements for group in profile.groups)
    live = min(elements, sharding.max_live + largest)
    pending = min(live, elements - live)
    return int((live + pending) * whole_bytes / elements)


def _at(moment: Moment, profile: Profile, rules: _Rules) -> dict[str, int]:
    """Returns what is alive at one moment."""
    activations, gradients = moment.activation_bytes, rules.gradients
    if rules.gradient_size:
        if rules.whole_gradients:
            gradients += int(profile.trained_parameters * rules.gradient_size)
        elif moment.phase == "backward":
            activations = moment.with_own_gradients_bytes
            gradients += int(_made_before(moment, profile) * rules.gradient_size)
    kinds = {**_state(rules), "gradients": gradients, "activations": activations}
    kinds["gathered"] = rules.gathered
    if moment.name == HEAD_BACKWARD and rules.oversize:
        kinds["activations"] = max(activations, moment.left_bytes + rules.oversize)
    return kinds


def _made_before(moment: Moment, profile: Profile) -> int:
    """Returns the weights whose gradients are there when a stretch of backward begins.

    Backward goes from the head to the first layer of the language model, and through the vision
    tower afterwards; groups are in the order of forward.
    """
    reached = None
    for other in profile.moments:
        if other.phase == "backward" and other.group is not None:
            reached = other.group
        if other is moment:
            break
    if reached is None:  # the head itself
        return 0
    groups = profile.groups
    first = reached if moment.group is None else reached + 1  # a layer at work is not done yet
    in_language = groups[reached].part == LANGUAGE_MODEL
    done = [g for g in groups[first:] if (g.part == LANGUAGE_MODEL) == in_language]
    if not in_language:
        done += [group for group in groups if group.part == LANGUAGE_MODEL]
    return sum(group.trained_elements for group in done)


def _state(rules: _Rules) -> dict[str, int]:
    return {
        "parameters": rules.parameters,
        "gradients": rules.gradients,
        "optimizer": rules.optimizer,
        "buckets": rules.buckets,
    }


def _step(profile: Profile, workload: Workload, rules: _Rules) -> dict[str, int]:
    kinds = _state(rules)
    trained = profile.trained_parameters
    if rules.at_step is not None:
        kinds["gradients"] = rules.at_step
    elif rules.gradient_size:
        kinds["gradients"] += int(trained * rules.gradient_size)
    kinds["activations"] = step_bytes(workload.optimizer, profile, rules.optimizer)
    return kinds


def _evaluation(profile: Profile, rules: _Rules) -> dict[str, int]:
    """Without autograd nothing is saved: only what a stretch itself needs beyond its input."""
    worst = max(m.activation_bytes - m.began_bytes for m in profile.moments if m.phase == "forward")
    return {**_state(rules), "activations": worst, "gathered": rules.gathered}


def _load(profile: Profile, workload: Workload, sharding: Sharding) -> dict[str, int]:
    """Returns the bytes while the weights are loaded."""
    size = ITEM_BYTES[workload.weights]
    largest = max(group.largest_elements for group in profile.groups)
    if sharding.strategy in ("zero3", "zero3_offload"):
        whole = _frozen_bytes(profile) + sum(g.trained_bytes for g in profile.groups)
        held = whole // sharding.ranks if _loads_shards(workload, sharding) else whole
        return {"parameters": held, "gathered": largest * size}
    if sharding.strategy == "fsdp2":
        return {"parameters": 0}
    held = _frozen_bytes(profile) + sum(g.trained_bytes for g in profile.groups)
    return {"parameters": held, "activations": largest * size if workload.quantization else 0}


def _saved(profile: Profile, workload: Workload, sharding: Sharding) -> int:
    """Returns the bytes on the GPU while the weights are gathered for saving."""
    if sharding.strategy in ("zero3", "zero3_offload", "fsdp2") and sharding.ranks > 1:
        return max(g.largest_elements for g in profile.groups) * _half(workload)
    return 0


def _frozen_bytes(profile: Profile) -> int:
    return sum(group.frozen_bytes for group in profile.groups)


def _layer_elements(profile: Profile) -> list[int]:
    """Elements of each layer that is gathered by itself."""
    layers = {m.group for m in profile.moments if m.group is not None}
    return [profile.groups[i].trained_elements + profile.groups[i].frozen_elements for i in layers]


def _outside(profile: Profile) -> int:
    """Elements outside of layers, which FSDP keeps together with the root."""
    prefixes = {
        profile.groups[m.group].name.rpartition(".")[0]
        for m in profile.moments
        if m.group is not None
    }
    return sum(
        group.trained_elements + group.frozen_elements
        for group in profile.groups
        if group.name.rpartition(".")[0] not in prefixes
    )


def _band(workload: Workload, sharding: Sharding) -> tuple[float, str]:
    """Returns how well such a case is known."""
    if workload.quantization:
        return 0.15, "quantised runs were compared with upper bounds only"
    if sharding.strategy in ("fsdp2", "zero1", "zero3_offload"):
        return 0.12, "the rules are the library's own; no measured run of this kind was compared"
    if workload.adapter or workload.images or sharding.strategy == "ddp":
        return 0.07, "the band is that of text models trained in full; this kind was not compared"
    return 0.07, "runs of this kind were compared with measurements"

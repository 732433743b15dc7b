"""From a shallow model to the whole one: each further layer adds what the last one added."""

from __future__ import annotations

from collections.abc import Sequence

from sailplan.model.parts import LANGUAGE_MODEL
from sailplan.plan.profile import Moment, Profile, Tensors
from sailplan.plan.simulation.depth import Stack
from sailplan.plan.simulation.record import Stretch


def extrapolate(
    stretches: Sequence[Stretch],
    stacks: Sequence[Stack],
    groups: tuple[Tensors, ...],
    *,
    image_tokens: int,
    buffer_bytes: int,
) -> Profile:
    """Returns the profile of the whole model.

    Args:
        stretches: What was recorded, in order.
        stacks: The layers of which only a few were simulated.
        groups: The parameters of the whole model.
        image_tokens: Of the micro batch.
        buffer_bytes: Of the whole model.
    """
    missing = [stack.depth - stack.shallow for stack in stacks]
    added = {
        phase: [
            _left_by_a_layer(stretches, number, stack, phase) * count if count else 0
            for number, (stack, count) in enumerate(zip(stacks, missing, strict=True))
        ]
        for phase in ("forward", "backward")
    }
    names = {group.name: index for index, group in enumerate(groups)}
    moments = []
    for position, stretch in enumerate(stretches):
        extra = sum(
            bytes_
            for number, bytes_ in enumerate(added[stretch.phase])
            if bytes_ and _all_are_saved(stretches, position, number, stacks[number])
        )
        name = _name(stretch, stacks)
        moments.append(
            Moment(
                name=f"{stretch.phase} {name}",
                phase=stretch.phase,
                group=names.get(name),
                began_bytes=stretch.began + extra,
                activation_bytes=stretch.worst + extra,
                with_own_gradients_bytes=stretch.worst_with_own + extra,
                left_bytes=stretch.left + extra,
            )
        )
    flops = dict.fromkeys(("forward", "backward"), 0.0)
    vision = 0.0
    for stretch in stretches:
        flops[stretch.phase] += stretch.flops
        if stretch.stack is not None and _sees(groups, names, stacks[stretch.stack]):
            vision += stretch.flops
    for number, stack in enumerate(stacks):
        for phase in flops:
            more = missing[number] * _flops_of_a_layer(stretches, number, stack, phase)
            flops[phase] += more
            vision += more if _sees(groups, names, stack) else 0.0
    first_backward = next(m for m in moments if m.phase == "backward")
    return Profile(
        groups=groups,
        moments=tuple(moments),
        saved_bytes=first_backward.began_bytes,
        forward_flops=flops["forward"],
        backward_flops=flops["backward"],
        vision_flops=vision,
        image_tokens=image_tokens,
        buffer_bytes=buffer_bytes,
    )


def _name(stretch: Stretch, stacks: Sequence[Stack]) -> str:
    """Returns the module's name in the whole model; the last layers stay the last."""
    if stretch.stack is None:
        return stretch.module
    stack = stacks[stretch.stack]
    is_last = stretch.index >= stack.shallow - stack.period
    return f"{stack.name}.{stretch.index + (stack.depth - stack.shallow if is_last else 0)}"


def _left_by_a_layer(stretches: Sequence[Stretch], number: int, stack: Stack, phase: str) -> int:
    """Returns the bytes that each further layer leaves alive in a phase.

    Autocast keeps the weights that it has cast until the forward pass ends. Afterwards those are
    left that autograd has saved, which under checkpointing are none.
    """
    mine = [s for s in stretches if s.stack == number and s.phase == "forward"]
    last, before = mine[-1], mine[-1 - stack.period]
    left = (last.left - before.left) // stack.period
    if phase == "forward":
        return left
    ended = max(i for i, s in enumerate(stretches) if s.phase == "forward")
    at_end, saved = stretches[ended].casts, stretches[ended].casts_saved
    casts = (last.casts - before.casts) // stack.period
    return left - (casts * (at_end - saved) // at_end if at_end else 0)


def _all_are_saved(stretches: Sequence[Stretch], position: int, number: int, stack: Stack) -> bool:
    """Says whether all layers of a stack have saved their activations, and none has freed them."""
    last, before = stack.shallow - stack.period, stretches[: position + 1]
    if stretches[position].phase == "forward":
        return any(s.stack == number and s.index >= last for s in before)
    return not any(s.stack == number and s.index < last and s.phase == "backward" for s in before)


def _flops_of_a_layer(stretches: Sequence[Stretch], number: int, stack: Stack, phase: str) -> float:
    last = [
        s.flops
        for s in stretches
        if s.stack == number and s.phase == phase and s.index >= stack.shallow - stack.period
    ]
    return sum(last) / stack.period


def _sees(groups: tuple[Tensors, ...], names: dict[str, int], stack: Stack) -> bool:
    index = names.get(f"{stack.name}.0")
    return index is not None and groups[index].part != LANGUAGE_MODEL

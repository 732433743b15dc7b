"""From a shallow model to the whole one: each further layer adds what the last one added."""

from __future__ import annotations

from typing import Any

from sailplan.plan.profile import Moment, Profile, Tensors


def extrapolate(
    stretches: list[Any],
    stacks: list[Any],
    groups: tuple[Tensors, ...],
    *,
    saved_bytes: int,
    image_tokens: int,
    buffer_bytes: int,
) -> Profile:
    """Returns the profile of the whole model.

    Args:
        stretches: What was recorded, in order.
        stacks: The layers of which only a few were simulated.
        groups: The parameters of the whole model.
        saved_bytes: Alive between forward and backward of the shallow one.
        image_tokens: Of the micro batch.
        buffer_bytes: Of the whole model.
    """
    slopes = [_slope(stretches, number, stack) for number, stack in enumerate(stacks)]
    missing = [stack.depth - stack.shallow for stack in stacks]
    names = {group.name: index for index, group in enumerate(groups)}
    moments, flops = [], {"forward": 0.0, "backward": 0.0}
    vision = 0.0
    for position, stretch in enumerate(stretches):
        extra = sum(
            slope * count
            for number, (slope, count) in enumerate(zip(slopes, missing, strict=True))
            if _full(stretches, position, number, stacks[number])
        )
        index = stretch.index
        name = stretch.module
        if stretch.stack is not None:
            stack = stacks[stretch.stack]
            if index >= stack.shallow - stack.period:  # the last layers stay the last
                index += stack.depth - stack.shallow
            name = f"{stack.name}.{index}"
        moments.append(
            Moment(
                name=f"{stretch.phase} {name}",
                phase=stretch.phase,
                group=names.get(name),
                activation_bytes=stretch.alive + extra,
                with_own_gradients_bytes=stretch.with_own + extra,
                left_bytes=stretch.end + extra,
            )
        )
        flops[stretch.phase] += stretch.flops
    for number, stack in enumerate(stacks):
        for phase in flops:
            flops[phase] += missing[number] * _layer_flops(stretches, number, stack, phase)
    for stretch in stretches:
        if stretch.stack is not None and _is_vision(groups, names, stacks[stretch.stack].name):
            vision += stretch.flops
    for number, stack in enumerate(stacks):
        if _is_vision(groups, names, stack.name):
            for phase in flops:
                vision += missing[number] * _layer_flops(stretches, number, stack, phase)
    saved = saved_bytes + sum(s * m for s, m in zip(slopes, missing, strict=True))
    return Profile(
        groups=groups,
        moments=tuple(moments),
        saved_bytes=saved,
        forward_flops=flops["forward"],
        backward_flops=flops["backward"],
        vision_flops=vision,
        image_tokens=image_tokens,
        buffer_bytes=buffer_bytes,
    )


def _slope(stretches: list[Any], number: int, stack: Any) -> int:
    """Returns the bytes that each further layer leaves alive for the backward pass."""
    if stack.depth == stack.shallow:
        return 0
    ends = [s.end for s in stretches if s.stack == number and s.phase == "forward"]
    return (ends[-1] - ends[-1 - stack.period]) // stack.period


def _full(stretches: list[Any], position: int, number: int, stack: Any) -> bool:
    """Says whether all layers of a stack have left their activations, and none has freed them."""
    last, stretch = stack.shallow - stack.period, stretches[position]
    if stretch.phase == "forward":
        return any(
            s.stack == number and s.index >= last and s.phase == "forward"
            for s in stretches[: position + 1]
        )
    return not any(
        s.stack == number and s.index < last and s.phase == "backward"
        for s in stretches[: position + 1]
    )


def _layer_flops(stretches: list[Any], number: int, stack: Any, phase: str) -> float:
    mine = [s for s in stretches if s.stack == number and s.phase == phase]
    last = [s.flops for s in mine if s.index >= stack.shallow - stack.period]
    return sum(last) / stack.period if last else 0.0


def _is_vision(groups: tuple[Tensors, ...], names: dict[str, int], stack: str) -> bool:
    index = names.get(f"{stack}.0")
    return index is not None and groups[index].part != "language_model"

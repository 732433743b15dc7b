"""Profiles of other micro batches out of two that were simulated.

What a micro batch keeps, and what it computes, grows by the same for each row: between two
simulated sizes a straight line is exact wherever the same instant is the worst, and errs upwards
elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from sailplan.checkpoint.stored import ITEM_BYTES
from sailplan.plan.profile import Moment, Profile
from sailplan.plan.workload import Workload


def interpolate(
    small: tuple[int, Profile], large: tuple[int, Profile], micro_batch: int
) -> Profile:
    """Returns the profile of a micro batch.

    Args:
        small: A micro batch, and its profile.
        large: A larger one, of the same model.
        micro_batch: Of how many rows.
    """
    (low, first), (high, last) = small, large
    if micro_batch == low or low == high:
        return first
    if micro_batch == high:
        return last

    def at(a: float, b: float) -> float:
        return a + (b - a) * (micro_batch - low) / (high - low)

    same = len(first.moments) == len(last.moments)
    before = first.moments if same else last.moments
    return dataclasses.replace(
        last,
        moments=tuple(_moment(a, b, at) for a, b in zip(before, last.moments, strict=True)),
        saved_bytes=int(at(first.saved_bytes, last.saved_bytes)),
        forward_flops=at(first.forward_flops, last.forward_flops),
        backward_flops=at(first.backward_flops, last.backward_flops),
        vision_flops=at(first.vision_flops, last.vision_flops),
        image_tokens=round(at(first.image_tokens, last.image_tokens)),
    )


def _moment(a: Moment, b: Moment, at: Callable[[float, float], float]) -> Moment:
    sizes = [field.name for field in dataclasses.fields(Moment) if field.name.endswith("_bytes")]
    between = {name: int(at(getattr(a, name), getattr(b, name))) for name in sizes}
    return dataclasses.replace(b, **between)  # type: ignore[arg-type]  # fields of bytes alone


def recast(profile: Profile, simulated: Workload, wanted: Workload) -> Profile:
    """Returns a profile with its weights in other dtypes: an approximation without a simulation.

    It settles whether weights, gradients and optimizer states alone are too large.

    Args:
        profile: Of `simulated`.
        simulated: A workload.
        wanted: The same but for `weights`, and for the adapter's dtype.
    """
    weights = ITEM_BYTES[wanted.weights] / ITEM_BYTES[simulated.weights]
    trained = weights
    if wanted.adapter and simulated.adapter:
        trained = ITEM_BYTES[wanted.adapter.dtype] / ITEM_BYTES[simulated.adapter.dtype]
    frozen = 1.0 if wanted.quantization else weights
    return dataclasses.replace(
        profile,
        groups=tuple(
            dataclasses.replace(
                group,
                trained_bytes=int(group.trained_bytes * trained),
                frozen_bytes=int(group.frozen_bytes * frozen),
            )
            for group in profile.groups
        ),
    )

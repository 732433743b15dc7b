"""Profiles of other micro batches out of two that were simulated.

What a micro batch keeps, and what it computes, grows by the same for each token and each image:
between two simulated sizes a straight line is exact wherever the same instant is the worst, and
errs upwards elsewhere. Where a micro batch has more of the one than of the other, its memory is
taken to have more of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from sailplan.checkpoint.stored import ITEM_BYTES
from sailplan.plan.profile import Moment, Profile
from sailplan.plan.workload import Workload


def interpolate(first: Profile, last: Profile, *, tokens: float, images: float) -> Profile:
    """Returns the profile of a micro batch.

    Args:
        first: Of a small one.
        last: Of a larger one, of the same model.
        tokens: Where its tokens lie between those of the two: 0 is the small one, 1 the large one.
        images: The same of its images.
    """
    if tokens == images == 1:
        return last

    def line(share: float) -> Callable[[float, float], float]:
        return lambda a, b: a + (b - a) * share

    held, of_text, of_images = line(max(tokens, images)), line(tokens), line(images)

    def flops(phase: str) -> float:
        """The vision tower's part of both passes is known together; each is taken to have it."""
        a, b = (getattr(profile, phase) for profile in (first, last))
        seen = [p.vision_flops / (p.forward_flops + p.backward_flops) for p in (first, last)]
        text = of_text(a * (1 - seen[0]), b * (1 - seen[1]))
        return text + of_images(a * seen[0], b * seen[1])

    same = len(first.moments) == len(last.moments)
    before = first.moments if same else last.moments
    return dataclasses.replace(
        last,
        moments=tuple(_moment(a, b, held) for a, b in zip(before, last.moments, strict=True)),
        saved_bytes=int(held(first.saved_bytes, last.saved_bytes)),
        forward_flops=flops("forward_flops"),
        backward_flops=flops("backward_flops"),
        vision_flops=of_images(first.vision_flops, last.vision_flops),
        image_tokens=round(of_images(first.image_tokens, last.image_tokens)),
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

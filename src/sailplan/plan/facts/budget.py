"""The image processor's settings with a run's pixel budget in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sailplan.plan.store import cached


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What an image processor is made of."""

    text: str
    """As JSON."""


def with_budget(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    min_pixels: int | None,
    max_pixels: int | None,
) -> dict[str, Any]:
    """Returns settings under which images are no larger and no smaller than a run allows.

    Args:
        config: The model's config.
        settings: What its image processor's file says.
        min_pixels: The run's; None leaves the processor's own.
        max_pixels: The run's.

    Raises:
        RunFileError: This processor has no such limit.
    """
    if min_pixels is None and max_pixels is None:
        return dict(settings)
    key = json.dumps([dict(config), dict(settings), min_pixels, max_pixels], sort_keys=True)
    found = cached(Settings, key, lambda: _make(config, settings, min_pixels, max_pixels))
    return dict(json.loads(found.text))


def _make(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    min_pixels: int | None,
    max_pixels: int | None,
) -> Settings:
    from sailplan.model.pixels import set_pixel_budget
    from sailplan.plan.simulation.batch import image_processor
    from sailplan.plan.simulation.depth import config_of

    images = image_processor(config_of(config), dict(settings))
    merge = config.get("spatial_merge_size")
    whole = SimpleNamespace(image_processor=images, spatial_merge_size=merge)
    set_pixel_budget(whole, min_pixels=min_pixels, max_pixels=max_pixels)
    return Settings(text=images.to_json_string())

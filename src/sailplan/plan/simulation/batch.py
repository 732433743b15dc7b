"""A micro batch as the collator would make it: real ids and grids, pixels of any kind."""

from __future__ import annotations

from typing import Any

from sailplan.errors import ModelError
from sailplan.model.families import family_of
from sailplan.plan.workload import Images, Workload


def image_processor(config: Any, settings: Any = None) -> Any:
    """Returns the image processor of a model.

    Args:
        config: The model's config.
        settings: What its `preprocessor_config.json` says; the class's own defaults where None.

    Raises:
        ModelError: transformers has none for the architecture.
    """
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    settings = dict(settings or {})
    name = settings.pop("image_processor_type", None)
    kind = getattr(transformers, str(name).removesuffix("Fast"), None) if name else None
    if kind is None:
        entry = IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type)
        names = list(entry.values()) if isinstance(entry, dict) else list(entry or ())
        names = [n for n in names if n and hasattr(transformers, n)]
        vision = getattr(getattr(config, "vision_config", None), "model_type", "")
        if config.model_type == "llava" and vision == "pixtral":
            names = ["PixtralImageProcessor"]
        if not names:
            got = f"transformers has no image processor for {config.model_type}"
            raise ModelError(got, todo="plan with a local folder of the model, or a text-only run")
        kind = getattr(transformers, names[0])
    return kind(**settings)


def pixels(
    images: Images, rows: int, config: Any, processor: Any, *, packed: bool
) -> dict[str, Any]:
    """Returns what the vision tower is given for a micro batch, for real.

    Args:
        images: The images of each row.
        rows: Of the micro batch.
        config: The model's config.
        processor: Its image processor.
        packed: Whether the images of a row are of several samples.
    """
    from PIL import Image

    blank = Image.new("RGB", (images.width, images.height))
    family = family_of(config)
    given: Any = [blank] * images.per_row * rows
    if packed and family.nested_images and not family.pixels_by_row:
        given = [[blank] for _ in given]  # an image that is alone in its sample is cut up most
    elif family.nested_images:
        given = [[blank] * images.per_row for _ in range(rows)]
    made = processor(images=given, return_tensors="pt")
    return dict(made)


def inputs(workload: Workload, config: Any, model: Any, vision: dict[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of the model's forward pass.

    Args:
        workload: The workload.
        config: The model's config.
        model: The model, for the number of its image tokens.
        vision: What `pixels` gave; empty without images.
    """
    import inspect

    import torch

    rows, length = workload.micro_batch, workload.length_tokens
    tokens = image_tokens(config, model, vision) // rows if vision else 0
    length = max(length, tokens + 8)
    ids = torch.ones(rows, length, dtype=torch.long)
    family = family_of(config)
    image_id = family.image_token_id or 0
    if tokens:
        ids[:, 4 : 4 + tokens] = image_id
    given: dict[str, Any] = {"input_ids": ids, **vision}
    if workload.segments is not None:
        given["position_ids"] = _positions(workload.segments, length, model)
    else:
        mask = torch.ones(rows, length, dtype=torch.long)
        if workload.padded and rows > 1:
            mask[-1, -2:] = 0
        given["attention_mask"] = mask
    accepted = inspect.signature(type(model.base_model).forward).parameters
    types = (ids == image_id).long() if tokens else torch.zeros_like(ids)
    if family.prefix_lm:  # 1 is the answer, not the image
        types = torch.zeros_like(ids)
        types[:, 4 + tokens :] = 1
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in accepted and vision:
            given[name] = types
    if "cross_attention_mask" in accepted and vision:
        tiles = vision["pixel_values"].shape[2]
        given["cross_attention_mask"] = torch.ones(
            rows, length, vision["pixel_values"].shape[1], tiles, dtype=torch.long
        )
    if "kwargs" not in accepted:
        given = {name: value for name, value in given.items() if name in accepted}
    return given


def _positions(segments: tuple[int, ...], length: int, model: Any) -> Any:
    """Returns the position ids of a row; what images change of them is no matter of memory.

    Args:
        segments: Tokens of each sample.
        length: Of the row, where its images take more than that.
        model: The model.
    """
    import torch

    *others, last = segments
    spans = [*others, last + length - sum(segments)]
    plain = torch.cat([torch.arange(span) for span in spans])[None]
    deep = hasattr(model.base_model, "get_rope_index")
    return plain[None].repeat(4, 1, 1) if deep else plain


def placeholders(given: dict[str, Any], config: Any) -> int:
    """Returns how many tokens of a micro batch stand for images."""
    return int((given["input_ids"] == (family_of(config).image_token_id or 0)).sum())


def image_tokens(config: Any, model: Any, vision: dict[str, Any]) -> int:
    """Returns how many placeholders the images of the micro batch take in the text.

    Counted where it is decided: in the features that the model puts in their place.
    """
    import torch

    if family_of(config).cross_attention:
        return int(vision["pixel_values"].shape[0] * vision["pixel_values"].shape[1])
    with torch.no_grad():
        features = model.base_model.get_image_features(**_accepted(model, vision))
    features = getattr(features, "pooler_output", features)
    if isinstance(features, tuple | list):
        return sum(int(piece.numel() // piece.shape[-1]) for piece in features)
    return int(features.numel() // features.shape[-1])


def _accepted(model: Any, vision: dict[str, Any]) -> dict[str, Any]:
    import inspect

    parameters = inspect.signature(model.base_model.get_image_features).parameters
    return {name: value for name, value in vision.items() if name in parameters}

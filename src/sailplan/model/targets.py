"""Which layers LoRA adapts, as names that PEFT and other readers of an adapter understand."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from sailplan.errors import ModelError
from sailplan.model.parts import Parts, find_parts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


def target_modules(
    model: PreTrainedModel,
    wanted: str | Sequence[str] | None,
    *,
    vision: bool = False,
    unused: Collection[str] = (),
    frozen: Collection[str] = (),
) -> str | list[str]:
    """Returns PEFT's `target_modules`: a list of names, or a regular expression.

    The language model's linear layers are the default, and an unqualified `q_proj` means theirs:
    the vision tower is reached only with `vision`, or by a target that names it.

    Args:
        model: The model, before PEFT wraps it.
        wanted: The run's `lora_target_modules`: layer names, one regular expression that whole
            names must match, `all-linear` or None (the same).
        vision: The run's `lora_vision`.
        unused: Parameters that the architecture never uses; their layers are left out.
        frozen: Parts that the run freezes; no layer of theirs is adapted.

    Raises:
        ModelError: A target matches no layer, or means the LM head.
    """
    parts = find_parts(model)
    linear, other = _layers(model)
    idle = {name.rpartition(".")[0] for name in unused}
    head = {parts.head}

    def reachable(names: Iterable[str], target: str) -> set[str]:
        named = [root for root in parts.vision if root.rpartition(".")[2] in target]
        return {
            name
            for name in names
            if name not in idle
            and name not in head
            and parts.part_of(name) not in frozen
            and (vision or not parts.is_vision(name) or any(name.startswith(r) for r in named))
        }

    targets = [wanted] if isinstance(wanted, str) else list(wanted or [ALL_LINEAR])
    chosen: set[str] = set()
    for target in targets:
        if target == ALL_LINEAR:
            chosen |= reachable(linear, target)
            continue
        matched = {name for name in (*linear, *other) if _matches(target, name)}
        found = reachable(matched, target)
        if not found:
            in_frozen = {parts.part_of(name) for name in matched} & set(frozen)
            raise _no_match(target, matched, idle, parts, in_frozen, reachable(linear, target))
        chosen |= found
    if not chosen:
        got = f"LoRA finds no layer to adapt: freeze names {', '.join(sorted(frozen))}"
        raise ModelError(got, todo="" if vision else "write lora_vision: true to adapt the others")
    return _compact(chosen, [name for name, _ in model.named_modules()], parts)


def _layers(model: nn.Module) -> tuple[list[str], list[str]]:
    """Returns the names of linear layers, quantised ones included, and of others LoRA knows."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear, other = [], []
    for name, module in model.named_modules():
        # bitsandbytes' Linear4bit and Linear8bitLt are subclasses of nn.Linear.
        if isinstance(module, (nn.Linear, Conv1D)):
            linear.append(name)
        elif isinstance(module, (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            other.append(name)
    return linear, other


def _matches(target: str, name: str) -> bool:
    if re.fullmatch(r"[\w.-]+", target):
        return name == target or name.endswith(f".{target}")
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise ModelError(
            f"lora_target_modules: {target!r} is no regular expression ({error})",
            allowed="layer names, one regular expression, all-linear",
        ) from None


def _no_match(
    target: str,
    matched: set[str],
    idle: set[str],
    parts: Parts,
    frozen: set[str],
    linear: set[str],
) -> ModelError:
    leaves = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    got = f"lora_target_modules: {target!r}"
    if parts.head in matched:
        return ModelError(
            f"{got} is the LM head, and an adapter there would never be trained: the loss is "
            "computed from the head's own weight",
            todo="leave it out, or train the whole head with lora_modules_to_save",
        )
    if matched and matched <= idle:
        return ModelError(
            f"{got} matches only layers that this architecture never uses", allowed=leaves
        )
    if frozen:
        return ModelError(
            f"{got} matches layers of {', '.join(sorted(frozen))}, which freeze names",
            todo="drop one of the two",
        )
    if matched:
        return ModelError(
            f"{got} matches only inside {', '.join(parts.vision)}",
            todo="write lora_vision: true to adapt it",
        )
    nearest = difflib.get_close_matches(target, leaves.split(", "), n=2)
    return ModelError(
        f"{got} matches no layer of the model",
        allowed=leaves,
        todo=f"did you mean {' or '.join(nearest)}?" if nearest else "",
    )


def _compact(chosen: set[str], modules: list[str], parts: Parts) -> str | list[str]:
    """Writes the chosen names as short as PEFT reads them back exactly.

    An adapter outlives the layout it was trained in (hub names, other versions, inference
    servers), so names are kept unqualified where that is exact.
    """
    leaves = sorted({name.rpartition(".")[2] for name in chosen})
    either = "|".join(map(re.escape, leaves))
    roots = "|".join(re.escape(root.rpartition(".")[2]) for root in parts.vision)
    candidates: list[str | list[str]] = [
        leaves,
        rf"(?!(?:.*\.)?(?:{roots})(?:\.|$))(?:.*\.)?(?:{either})",
        "|".join(sorted({re.sub(r"\b\d+\b", r"\\d+", re.escape(name)) for name in chosen})),
        "|".join(map(re.escape, sorted(chosen))),
    ]
    return next(item for item in candidates if selected_modules(item, modules) == chosen)


def selected_modules(targets: str | Collection[str], modules: list[str]) -> set[str]:
    """Returns the modules that PEFT picks: whole names by pattern, or ends by name."""
    if isinstance(targets, str):
        pattern = re.compile(targets)
        return {name for name in modules if pattern.fullmatch(name)}
    ends = tuple(f".{target}" for target in targets)
    return {name for name in modules if name in targets or name.endswith(ends)}

"""The parameters of a model, in groups that are gathered and freed together."""

from __future__ import annotations

from typing import Any

from sailplan.plan.profile import Tensors


def stacks_of(whole: Any, small: Any) -> list[Any]:
    """Returns the module lists that are shorter in the shallow model, in the order of forward.

    Args:
        whole: The model, as transformers made it.
        small: The shallow one.
    """
    from torch import nn

    from sailplan.model.parts import find_parts
    from sailplan.plan.depth import _period
    from sailplan.plan.simulate import Stack

    parts = find_parts(whole)
    found = []
    lists = {n: m for n, m in small.named_modules() if isinstance(m, nn.ModuleList)}
    for name, module in whole.named_modules():
        if not isinstance(module, nn.ModuleList) or name not in lists:
            continue
        if len(module) and next(module[0].parameters(), None) is not None:
            if parts.is_vision(name) and len(module) == len(lists[name]) and len(module) < 4:
                continue
            period = 1 if parts.is_vision(name) else _period(whole.config.get_text_config())
            if any(name.startswith(f"{other.name}.") for other in found):
                continue
            if len(module) < len(lists[name]) or (len(module) == len(lists[name]) and len(module) < 2):
                continue
            found.append(
                Stack(name=name, depth=len(module), shallow=len(lists[name]), period=period)
            )
    return sorted(found, key=lambda stack: not parts.is_vision(stack.name))


def groups_of(whole: Any, stacks: list[Any]) -> tuple[Tensors, ...]:
    """Returns the parameters of the model: one group for each layer, one for each module besides."""
    from sailplan.model.parts import base_model, find_parts

    parts = find_parts(base_model(whole))
    roots = [stack.name for stack in stacks]
    found: dict[str, list[tuple[str, Any]]] = {}
    base = base_model(whole)
    for name, parameter in base.named_parameters():
        found.setdefault(_group(name, roots), []).append((name, parameter))
    groups = []
    for group, members in found.items():
        trained = [p for _, p in members if p.requires_grad]
        frozen = [p for _, p in members if not p.requires_grad]
        groups.append(
            Tensors(
                name=group,
                part=parts.part_of(members[0][0]),
                frozen_elements=sum(map(_elements, frozen)),
                frozen_bytes=sum(map(_bytes, frozen)),
                trained_elements=sum(map(_elements, trained)),
                trained_bytes=sum(map(_bytes, trained)),
                largest_elements=max(map(_elements, [*trained, *frozen])),
                trained_tensors=tuple(map(_elements, trained)),
                frozen_tensors=tuple(map(_elements, frozen)),
            )
        )
    return tuple(groups)


def _group(name: str, roots: list[str]) -> str:
    for root in roots:
        if name.startswith(f"{root}."):
            return f"{root}.{name[len(root) + 1 :].partition('.')[0]}"
    return name.rpartition(".")[0] or name


def _elements(parameter: Any) -> int:
    return int(getattr(parameter, "plan_elements", parameter.numel()))


def _bytes(parameter: Any) -> int:
    return int(getattr(parameter, "plan_bytes", parameter.numel() * parameter.element_size()))

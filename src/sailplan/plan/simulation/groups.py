"""The parameters of a model, in groups that are gathered and freed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sailplan.plan.profile import Tensors
from sailplan.plan.simulation.depth import Stack


def groups_of(model: Any, stacks: Sequence[Stack]) -> tuple[Tensors, ...]:
    """Returns the parameters of a model: one group for each layer, one for each module besides.

    Args:
        model: The model, wrapped by PEFT where it is.
        stacks: Its layers.
    """
    from sailplan.model.parts import base_model, find_parts

    base = base_model(model)
    parts, roots = find_parts(base), [stack.name for stack in stacks]
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, parameter in base.named_parameters():
        found.setdefault(_group(name, roots), []).append((name, parameter))
    return tuple(_tensors(name, parts, members) for name, members in found.items())


def _tensors(name: str, parts: Any, members: list[tuple[str, Any]]) -> Tensors:
    trained = [parameter for _, parameter in members if parameter.requires_grad]
    frozen = [parameter for _, parameter in members if not parameter.requires_grad]
    return Tensors(
        name=name,
        part=parts.part_of(members[0][0]),
        frozen_elements=sum(map(_elements, frozen)),
        frozen_bytes=sum(map(_bytes, frozen)),
        trained_elements=sum(map(_elements, trained)),
        trained_bytes=sum(map(_bytes, trained)),
        largest_elements=max(map(_elements, [*trained, *frozen])),
        trained_tensors=tuple(map(_elements, trained)),
    )


def _group(name: str, roots: list[str]) -> str:
    for root in roots:
        if name.startswith(f"{root}."):
            return f"{root}.{name[len(root) + 1 :].partition('.')[0]}"
    return name.rpartition(".")[0] or name


def _elements(parameter: Any) -> int:
    return int(getattr(parameter, "plan_elements", parameter.numel()))


def _bytes(parameter: Any) -> int:
    return int(getattr(parameter, "plan_bytes", parameter.numel() * parameter.element_size()))

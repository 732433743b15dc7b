"""The two kinds of names that weights have: those in a model's files, and those of its modules.

Checkpoints of training and adapters use the names of modules, published models those of the files
of their first release; `from_pretrained` and `save_pretrained` go from one to the other, and where
experts are fused or projections split the shapes change with the names. transformers' own rules
(5.23, `core_model_loading`) are applied here to planned tensors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from sailplan.errors import CheckpointError
from sailplan.merge.planned import Planned
from sailplan.merge.tensor_plan import TensorPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMER_BUFFERS = r"rotary_emb\.inv_freq|(^|\.)position_ids$"
"""Buffers that older versions saved and no model reads any more."""


def to_modules(plans: Sequence[TensorPlan], model: PreTrainedModel) -> list[TensorPlan]:
    """Returns the weights under the names and in the shapes and the order of the modules.

    Which rules were used stays with the model, so that `to_hub` undoes just these. Of weights that
    are tied, one remains.

    Args:
        plans: The tensors of a model's files; names of modules are taken as well.
        model: The model, on the meta device.

    Raises:
        CheckpointError: A weight is missing, is not the model's, or has another shape.
    """
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    made, unknown = _converted(plans, model)
    ignored = [_FORMER_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ())]
    unknown = [name for name in unknown if not any(re.search(rule, name) for rule in ignored)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], state, n=1, cutoff=0.3)
        raise CheckpointError(
            f"{len(unknown)} tensors are none of a {type(model).__name__}'s, such as {unknown[0]}"
            + (f" (the nearest name is {near[0]})" if near else ""),
            todo="check that config.json belongs to these weights",
        )
    return complete(made, model, state)


def complete(
    plans: Mapping[str, TensorPlan],
    model: PreTrainedModel,
    state: Mapping[str, tuple[int, ...]] | None = None,
) -> list[TensorPlan]:
    """Returns a model's weights in its order, each once.

    Args:
        plans: The weights under the names of the modules.
        model: The model, on the meta device.
        state: The shapes of its weights by name, where they are known already.

    Raises:
        CheckpointError: A weight is missing or has another shape.
    """
    if state is None:
        state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = dict(plans)
    for alias, stored in model.all_tied_weights_keys.items():
        kept = found.pop(alias, None)
        if kept is not None:
            found.setdefault(stored, kept)
    optional = list(model._keys_to_ignore_on_load_missing or ())
    tied = model.all_tied_weights_keys
    missing = [
        name
        for name in state
        if name not in found
        and name not in tied
        and not any(re.search(rule, name) for rule in optional)
    ]
    if missing:
        raise CheckpointError(
            f"{len(missing)} weights of the {type(model).__name__} are missing, such as "
            f"{missing[0]}",
            todo="the checkpoint is incomplete, or of another model",
        )
    for name, plan in found.items():
        if plan.shape != state[name]:
            raise CheckpointError(
                f"{name} has the shape {plan.shape}, config.json says {state[name]}",
                todo="check that config.json belongs to these weights",
            )
    return [replace(found[name], name=name) for name in state if name in found]


def module_name(name: str, model: PreTrainedModel) -> str:
    """Returns the name among the modules of a weight that an older version may have named."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    state = model.state_dict()
    if name in state:
        return name
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    return str(rename_source_key(name, renamings, [], model.base_model_prefix, state)[0])


def to_hub(plans: Sequence[TensorPlan], model: PreTrainedModel) -> list[TensorPlan]:
    """Returns the weights under the names and in the shapes that `save_pretrained` would write.

    Args:
        plans: The weights under the names of the modules, with what an adapter does to them.
        model: The model; of files that were read by `to_modules`, the names come back.

    Raises:
        CheckpointError: Rows that an adapter changes cannot be brought into the files' layout.
    """
    from transformers.core_model_loading import revert_weight_conversion

    order = {plan.name: number for number, plan in enumerate(plans)}
    tensors = {plan.name: Planned.of(plan) for plan in plans}
    origins: dict[str, int] = {}
    made: list[TensorPlan] = []
    for name, planned in _run(lambda: revert_weight_conversion(model, cast(Any, tensors))).items():
        made.append(planned.plan(name))
        origins[name] = min((order[run.plan.name] for run in planned.runs()), default=0)
    return sorted(made, key=lambda plan: origins[plan.name])


def _converted(
    plans: Sequence[TensorPlan], model: PreTrainedModel
) -> tuple[dict[str, TensorPlan], list[str]]:
    """Does what `from_pretrained` does; returns the weights of the modules, and names of others."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        WeightTransform,
        dot_natural_key,
        rename_source_key,
    )

    state = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [rule for rule in transforms if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in transforms if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    pending: dict[str, WeightTransform] = {}
    unknown: list[str] = []
    for plan in sorted(plans, key=lambda plan: dot_natural_key(plan.name)):
        places = (model.base_model_prefix, state)
        name, pattern = rename_source_key(plan.name, renamings, converters, *places)
        if name not in state and plan.name in state:
            name, pattern = rename_source_key(plan.name, [], [], *places)
        if name not in state:
            unknown.append(plan.name)
            continue
        rule = deepcopy(by_pattern[pattern]) if pattern else WeightRenaming(plan.name, name)
        planned = cast(Any, Planned.of(plan))
        pending.setdefault(name, rule).add_tensor(name, plan.name, pattern or plan.name, planned)
    made: dict[str, TensorPlan] = {}
    for first, rule in pending.items():
        tensors = _run(lambda: rule.convert(first, model=model, config=model.config))  # noqa: B023
        made |= {name: planned.plan(name) for name, planned in tensors.items()}
    used = [rule for rule in transforms if rule.was_used()]
    if used:  # As from_pretrained leaves them; without any, save_pretrained takes its defaults.
        model._weight_conversions = used
    return made, unknown


def _run(convert: Callable[[], Mapping[str, Any]]) -> dict[str, Planned]:
    """Returns what a rule makes; a value may be a list of one."""
    try:
        made = convert()
    except NotImplementedError as error:
        raise CheckpointError(
            f"transformers changes these weights in a way that cannot be planned: {error}",
            todo="keep the names of the modules: --names module",
        ) from error
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

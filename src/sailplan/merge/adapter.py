"""Puts an adapter onto planned weights: which of its tensors belong to which weight, and how."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sailplan.checkpoint.adapter_folder import AdapterFolder
from sailplan.checkpoint.stored import Pieces
from sailplan.errors import CheckpointError
from sailplan.merge.adapter_settings import (
    check_kind,
    scaling,
    targeted_parameters,
    token_indices,
)
from sailplan.merge.lora import AddedBias, Convolution, Experts, LowRank, Tokens, grown
from sailplan.merge.tensor_plan import Delta, TensorPlan

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+?)(?P<nested>(?:\.base_layer)*)\."
    r"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|"
    r"(?:token_adapter\.)?trainable_tokens_delta)(?:\.(?P<kind>weight|bias))?"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """Weights with an adapter on them."""

    plans: Sequence[TensorPlan]
    """The weights of the modules, in their order."""
    untied: Sequence[str] = ()
    """Weights that were tied, and are their own now."""


def apply(
    adapter: AdapterFolder,
    plans: Sequence[TensorPlan],
    model: PreTrainedModel,
    *,
    module_name: Callable[[str], str] = lambda name: name,
) -> Applied:
    """Puts an adapter onto the weights of its base.

    Where an adapter changes one of two tied weights alone, what was trained is two weights: they
    are written as two, and no longer tied.

    Args:
        adapter: The adapter.
        plans: The base's weights under the names of the modules, in the dtype that is written.
        model: The base, on the meta device.
        module_name: Brings names of older versions of transformers to those of the modules.

    Raises:
        CheckpointError: The adapter is of a kind that cannot be merged, or a part of it belongs to
            no weight of the base.
    """
    check_kind(adapter.config)
    made = {plan.name: plan for plan in plans}
    tied = dict(model.all_tied_weights_keys)
    work = _Work(
        adapter=adapter,
        model=model,
        made=made,
        base=dict(made),
        tied=tied,
        module_name=module_name,
    )
    targets: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for name in sorted(adapter.tensors):
        bare = name.removeprefix(_PREFIX)
        match = _PART.fullmatch(bare)
        if match is None:
            work.replace(name, bare.replace(".base_layer.", "."))
            continue
        part = match["part"].rpartition(".")[2]
        if match["kind"] == "bias":
            part += ".bias"
        depth = match["nested"].count(".")
        targets[match["module"], depth][part] = name
    for (module, depth), parts in targets.items():
        work.change(module, depth, parts, wrapped=max(d for m, d in targets if m == module) + 1)
    if not work.changed:
        raise CheckpointError(f"the adapter {adapter.folder} changes nothing")
    untied = work.untie()
    order = {name: number for number, name in enumerate(model.state_dict())}
    return Applied(plans=sorted(made.values(), key=lambda plan: order[plan.name]), untied=untied)


@dataclass(kw_only=True, slots=True)
class _Work:
    """The weights while an adapter is put onto them."""

    adapter: AdapterFolder
    model: PreTrainedModel
    made: dict[str, TensorPlan]
    tied: dict[str, str]
    module_name: Callable[[str], str]
    base: Mapping[str, TensorPlan]
    changed: dict[str, bool] = field(default_factory=dict)
    """The weights that were changed, and whether a tied one changes with them."""

    def replace(self, name: str, weight: str) -> None:
        """Puts a tensor of the adapter in a weight's place."""
        plan = self._weight(weight, name)
        pieces = self.adapter.tensors[name]
        may_grow = "embed" in weight or weight.startswith("lm_head.")
        if pieces.shape != plan.shape and not (may_grow and pieces.shape[1:] == plan.shape[1:]):
            raise CheckpointError(
                f"the adapter's {name} has the shape {pieces.shape}, the base's {plan.shape}"
            )
        source = Pieces(shape=pieces.shape, segments=pieces.segments)
        self._put(replace(plan, source=source, replaced_by=(name,)))

    def change(self, module: str, depth: int, parts: Mapping[str, str], *, wrapped: int) -> None:
        """Puts what the adapter has for one module onto its weight, and its bias."""
        names = list(parts.values())
        if "trainable_tokens_delta" in parts:
            self._tokens(module, parts["trainable_tokens_delta"])
            return
        if "lora_B.bias" in parts:
            bias = self._weight(f"{module}.bias", parts["lora_B.bias"])
            added = AddedBias(
                reads=self._reads(parts["lora_B.bias"]),
                bias=self.adapter.tensors[parts["lora_B.bias"]],
                scaling=scaling(self.adapter.config, module),
            )
            self._put(replace(bias, delta=added))
            names.remove(parts["lora_B.bias"])
        first, second = (
            ("lora_A", "lora_B") if "lora_A" in parts else ("lora_embedding_A", "lora_embedding_B")
        )
        if not {first, second} <= parts.keys():
            raise CheckpointError(
                f"the adapter has {names[0]}, and lacks what belongs to it ({first}, {second})",
                todo="the file is incomplete: save the adapter again",
            )
        a, b = (self.adapter.tensors[parts[part]] for part in (first, second))
        reads = self._reads(*names)
        own = self._module(module)
        if own is not None and targeted_parameters(self.adapter.config, module, own):
            self._parameter(module, depth, wrapped, reads, a, b)
            return
        plan = self._weight(f"{module}.weight", names[0])
        self._put(replace(plan, delta=self._delta(module, plan, reads, a, b, parts)))

    def untie(self) -> list[str]:
        """Gives a weight of its own to each that was tied to one that has changed alone."""
        untied: list[str] = []
        for alias, stored in self.tied.items():
            if alias in self.changed:
                untied.append(alias)
            elif stored in self.changed and not self.changed[stored]:
                self.made[alias] = replace(self.base[stored], name=alias)
                untied.append(alias)
        return untied

    def _delta(
        self,
        module: str,
        plan: TensorPlan,
        reads: Mapping[str, Pieces],
        a: Pieces,
        b: Pieces,
        parts: Mapping[str, str],
    ) -> Delta:
        own = type(self._module(module)).__name__
        factor = scaling(self.adapter.config, module)
        if len(plan.shape) > 2:
            return Convolution(reads=reads, a=a, b=b, scaling=factor, shape=plan.shape)
        is_embedding = "lora_embedding_A" in parts
        transposed = is_embedding or own == "Conv1D"
        magnitude = parts.get("lora_magnitude_vector")
        if magnitude is not None and transposed:
            raise CheckpointError(f"{module}: DoRA of a {own} cannot be merged here", todo=_BY_PEFT)
        expected = (b.shape[0], a.shape[1])
        if plan.shape != (expected[::-1] if transposed else expected):
            raise CheckpointError(
                f"{module}: the adapter makes a weight of {expected}, the base's is {plan.shape}",
                todo="name the base that it was trained on: --base",
            )
        return LowRank(
            reads=reads,
            a=a,
            b=b,
            scaling=factor,
            transposed=transposed,
            rounded=plan.dtype if is_embedding else None,
            magnitude=self.adapter.tensors[magnitude] if magnitude else None,
        )

    def _parameter(
        self,
        module: str,
        depth: int,
        wrapped: int,
        reads: Mapping[str, Pieces],
        a: Pieces,
        b: Pieces,
    ) -> None:
        """Changes a parameter that is no module's `weight`; PEFT nests one wrapper in another."""
        own = self._module(module)
        found = targeted_parameters(self.adapter.config, module, own) if own is not None else []
        if len(found) != wrapped:
            raise CheckpointError(
                f"the adapter changes {wrapped} parameters of {module}, its target_parameters name "
                f"{', '.join(found) or 'none'}",
                todo="check target_parameters in adapter_config.json",
            )
        # The first one was wrapped first, so it is the innermost.
        parameter = found[wrapped - 1 - depth]
        plan = self._weight(f"{module}.{parameter}", next(iter(reads)))
        factor = scaling(self.adapter.config, f"{module}.{parameter}")
        if len(plan.shape) == 2:
            made: Delta = LowRank(reads=reads, a=a, b=b, scaling=factor, rounded=plan.dtype)
        else:
            experts, rows, columns = plan.shape
            made = Experts(
                reads=reads,
                a=a,
                b=b,
                scaling=factor,
                shape=(experts, rows, columns),
                transposed=bool(getattr(own, "is_transposed", False)),
                rounded=plan.dtype,
            )
        self._put(replace(plan, delta=made))

    def _tokens(self, module: str, name: str) -> None:
        plan = self._weight(f"{module}.weight", name)
        indices = token_indices(self.adapter.config, module)
        trained = self.adapter.tensors[name]
        if len(indices) != trained.shape[0]:
            raise CheckpointError(
                f"the adapter has {trained.shape[0]} rows in {name}, its trainable_token_indices "
                f"name {len(indices)}",
                todo="check adapter_config.json",
            )
        larger = grown(plan, max(indices) + 1, set(indices))
        delta = Tokens(reads=self._reads(name), trained=trained, indices=tuple(indices))
        self._put(replace(larger, delta=delta), with_tied=True)

    def _weight(self, name: str, asked_by: str) -> TensorPlan:
        """Returns the plan of a weight that a tensor of the adapter belongs to."""
        for own in (name, self.module_name(name)):
            if own in self.made:
                return self.made[own]
            if own in self.tied and self.tied[own] in self.base:
                return replace(self.base[self.tied[own]], name=own)
        near = difflib.get_close_matches(name, self.made, n=1, cutoff=0.3)
        raise CheckpointError(
            f"the adapter's {asked_by} belongs to {name}, which the base lacks"
            + (f" (the nearest name is {near[0]})" if near else ""),
            todo="name the base that it was trained on: --base",
        )

    def _put(self, plan: TensorPlan, *, with_tied: bool = False) -> None:
        self.made[plan.name] = plan
        settings = self.adapter.config
        self.changed[plan.name] = with_tied or bool(settings.get("ensure_weight_tying"))

    def _module(self, name: str) -> nn.Module | None:
        for own in (name, self.module_name(f"{name}.weight").removesuffix(".weight")):
            try:
                found: nn.Module = self.model.get_submodule(own)
            except AttributeError:
                continue
            return found
        return None

    def _reads(self, *names: str) -> dict[str, Pieces]:
        return {name: self.adapter.tensors[name] for name in names}


_BY_PEFT = "merge it with PEFT's own merge_and_unload"

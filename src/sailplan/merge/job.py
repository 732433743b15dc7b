"""A merge from end to end: what a path is, the proven plan of the output, then the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sailplan.checkpoint import adapter_folder
from sailplan.checkpoint.adapter_folder import AdapterFolder
from sailplan.errors import CheckpointError
from sailplan.merge.companions import CONFIG, companions
from sailplan.merge.read import cast, read
from sailplan.merge.recover import adapter_of, recovered
from sailplan.merge.source import Source, base_of, recognise
from sailplan.merge.tensor_plan import Shard, TensorPlan, prove, prove_used_up, shard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sailplan.merge.adapter import Applied

DEFAULT_SHARD_BYTES = 5 * 1000**3
"""transformers' own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a user may choose about a merge."""

    adapter: Path | None = None
    """An adapter that goes on top of a model."""
    base: str | None = None
    """The base of an adapter, where it is not the one that its config names."""
    dtype: str | None = None
    """What weights are written in; by default what the model was trained in."""
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    """The most bytes of a file."""
    names: Literal["hub", "module"] = "hub"
    """Names as in published files, or as of the modules."""
    base_precision: Literal["16bit", "dequantized"] = "16bit"
    """Of a QLoRA adapter: the base as published, or as it was quantised for training."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A merge that is planned and proven; nothing is written yet."""

    source: Source
    """What is merged."""
    base: Source | None = None
    """The base of an adapter."""
    adapter: AdapterFolder | None = None
    """The adapter."""
    model: PreTrainedModel | None = None
    """The model, on the meta device."""
    modules: Sequence[TensorPlan] = ()
    """The weights under the names of the modules."""
    shards: Sequence[Shard]
    """The files."""
    companions: Mapping[str, bytes]
    """What stands beside them."""
    options: Mapping[str, object] = field(default_factory=dict)
    """What else decides about the bytes."""
    notes: Sequence[str] = ()
    """What a user should know."""

    @property
    def plans(self) -> list[TensorPlan]:
        """The tensors of the output."""
        return [plan for file in self.shards for plan in file.tensors]

    @property
    def read_bytes(self) -> int:
        """The bytes that are read of the inputs."""
        pieces = [plan.source for plan in self.plans]
        if self.adapter:
            pieces += self.adapter.tensors.values()
        return sum(segment.num_bytes for piece in pieces for segment in piece.segments)

    @property
    def num_bytes(self) -> int:
        """The bytes of the output's weights."""
        return sum(file.num_bytes for file in self.shards)


def prepare(path: Path, options: Options | None = None) -> Job:
    """Plans a merge and proves it complete; writes nothing.

    Args:
        path: A run directory, a checkpoint, a model or an adapter.
        options: What is wanted.

    Raises:
        CheckpointError: The path is none of these, or something is missing or broken.
        ModelError: The base is missing, or no model of a known architecture.
    """
    from sailplan.merge.names import module_name, to_hub, to_modules
    from sailplan.model.skeleton import skeleton

    wanted = options or Options()
    source, notes = recognise(path)
    if source.kind == "model" and source.sharded and wanted.dtype == "float32":
        source = source.sharded  # the master weights
    tuned, base = _adapter_and_base(source, wanted)
    weights = base or source
    home = _home_of_config(weights, wanted)
    _refuse_quantised(home)
    model = skeleton(home, trust_remote_code=wanted.trust_remote_code)
    plans = to_modules(read(weights, None if tuned else wanted.dtype), model)
    changes: dict[str, Any] = {}
    if tuned is not None:
        from sailplan.merge.adapter import apply
        from sailplan.merge.dequantize import (
            dequantised,
            error_against_adapter,
            is_known_quantised,
            settings_of,
        )

        plans = [cast(plan, wanted.dtype) for plan in plans]
        applied = apply(tuned, plans, model, module_name=lambda name: module_name(name, model))
        plans = list(applied.plans)
        if wanted.base_precision == "dequantized":
            other = skeleton(home, trust_remote_code=wanted.trust_remote_code)
            plans = dequantised(plans, other, settings_of(source.home))
            share = error_against_adapter(plans)
            notes.append(f"quantising the base changed it {share:.2f} times as much as the adapter")
        elif is_known_quantised(source.home):
            notes.append(
                "trained on a quantised base, merged into the published one: it will not answer "
                "quite as trained; --base-precision dequantized does"
            )
        prove_used_up(plans, tuned.tensors)
        changes = _changes(applied, model)
        notes += [
            f"{name} is no longer tied: the adapter changed one of two" for name in applied.untied
        ]
    prove(plans)
    made = to_hub(plans, model) if wanted.names == "hub" else plans
    prove(made)
    _check_nothing_lost(plans, made)
    homes = [source.home, source.home.parent, *([base.home] if base else []), home]
    return Job(
        source=source,
        base=base,
        adapter=tuned,
        model=model,
        modules=plans,
        shards=shard(made, wanted.max_shard_bytes),
        companions=companions(homes, made, architecture=type(model).__name__, changes=changes),
        options={
            "adapter": json.dumps(tuned.config, sort_keys=True) if tuned else "",
            "base_precision": wanted.base_precision,
        },
        notes=notes,
    )


def prepare_adapter(path: Path, dtype: str | None = None) -> Job:
    """Plans how an adapter comes out of a sharded checkpoint.

    Args:
        path: A run directory, a `checkpoint-N`, or the sharded folder itself.
        dtype: What it is written in; by default what it was trained in.

    Raises:
        CheckpointError: There is no sharded checkpoint, or no adapter in it.
    """
    source, notes = recognise(path)
    sharded = source if source.kind in ("zero", "dcp") else source.sharded
    if sharded is None:
        raise CheckpointError(
            f"{source} has no sharded checkpoint beside it",
            allowed="a checkpoint-N with a global_stepN or pytorch_model_fsdp folder",
        )
    file, beside = recovered(sharded, dtype)
    prove(file.tensors)
    return Job(source=sharded, shards=[file], companions=beside, notes=notes)


def _adapter_and_base(
    source: Source, wanted: Options
) -> tuple[AdapterFolder | None, Source | None]:
    """Returns the adapter and the base that belongs to it; None for both of a whole model."""
    if wanted.adapter is not None:
        if source.is_adapter:
            raise CheckpointError(
                f"{source} is an adapter itself",
                allowed="--adapter on top of a whole model",
                todo="merge the first one, then the second one into its result",
            )
        tuned, _ = recognise(wanted.adapter)
        if not tuned.is_adapter:
            raise CheckpointError(f"--adapter: {tuned} is no adapter")
        return _read_adapter(tuned), source
    if not source.is_adapter:
        return None, None
    adapter = _read_adapter(source)
    folder = base_of(source, wanted.base, trust_remote_code=wanted.trust_remote_code)
    base, _ = recognise(folder)
    if base.is_adapter:
        raise CheckpointError(
            f"the base {folder} is an adapter itself",
            todo="merge that one first, and name the result: --base",
        )
    return adapter, base


def _check_nothing_lost(plans: Sequence[TensorPlan], made: Sequence[TensorPlan]) -> None:
    """Proves that what is added to the modules' weights is added to those of the files as well."""
    added, kept = (
        {name for plan in some if plan.delta is not None for name in plan.delta.reads}
        for some in (plans, made)
    )
    if added != kept:
        raise CheckpointError(
            f"{min(added - kept)} of the adapter is lost on the way to the files' names",
            todo="keep the names of the modules: --names module",
        )


def _changes(applied: Applied, model: PreTrainedModel) -> dict[str, Any]:
    """Returns what an adapter changes in the config: ties, and the size of the vocabulary."""
    changes: dict[str, Any] = {}
    if applied.untied:
        changes["tie_word_embeddings"] = False
    own = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is own)
    rows = next(plan.shape[0] for plan in applied.plans if plan.name == f"{name}.weight")
    if rows != own.num_embeddings:
        changes["vocab_size"] = rows
    return changes


def _read_adapter(source: Source) -> AdapterFolder:
    if source.kind == "adapter":
        return adapter_folder.read(source.folder)
    return adapter_of(source)


def _refuse_quantised(home: Path) -> None:
    """Refuses weights that are stored quantised: they are no longer numbers of a dtype."""
    config = json.loads((home / CONFIG).read_text(encoding="utf-8"))
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    if settings:
        kind = settings.get("quant_method", "somehow")
        raise CheckpointError(
            f"{home} is stored quantised ({kind})",
            todo="name the 16-bit model that it was made of: --base",
        )


def _home_of_config(weights: Source, wanted: Options) -> Path:
    """Returns the folder that has the model's config."""
    if (weights.home / CONFIG).is_file():
        return weights.home
    if (weights.home.parent / CONFIG).is_file():  # a run's own folder, above its checkpoints
        return weights.home.parent
    if wanted.base is not None:
        return base_of(weights, wanted.base, trust_remote_code=wanted.trust_remote_code)
    raise CheckpointError(
        f"{weights.home} has no {CONFIG}",
        todo="copy the model's config.json there, or name the model that was trained: --base",
    )

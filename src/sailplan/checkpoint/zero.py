"""Reads DeepSpeed's ZeRO checkpoints: where each parameter's elements lie, of ZeRO-1, 2 and 3.

A folder `global_stepN` holds, for W ranks,

- model states: one `mp_rank_00_model_states.pt` under ZeRO-1 and 2, under ZeRO-3 one
  `zero_pp_rank_R_mp_rank_00_model_states.pt` a rank, whose parameters are empty;
- optimizer states, `[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt`, with the float32 weights.

`param_shapes` in the model states is a list of groups, each a mapping of names to shapes in the
order of the flat vectors. Under ZeRO-3 each parameter takes ceil(numel / W) elements on every rank.
Under ZeRO-1 and 2 a group is one vector that is cut evenly over the ranks, where a parameter may
straddle two of them, with `param_alignment_paddings` behind each parameter where there are any.
Layout as in deepspeed 0.19, `utils/zero_to_fp32.py` and `runtime/zero/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailplan.checkpoint.stored import Pieces, Row, Segment, StoredTensor
from sailplan.checkpoint.zero_states import ZeroStates, load
from sailplan.errors import CheckpointError

_ALIGNMENT = 2
"""ZeRO-1 and 2 pad a group to a multiple of this times the ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroCheckpoint:
    """The weights of a ZeRO checkpoint, under the names of the module that was trained."""

    folder: Path
    """The `global_stepN` folder."""
    stage: int
    """1, 2 or 3."""
    world_size: int
    """The ranks that wrote it."""
    trained: Mapping[str, Pieces]
    """Master weights, of what was trained."""
    kept: Mapping[str, Pieces]
    """Frozen parameters and buffers, in the dtype of the model."""
    working: Mapping[str, Pieces]
    """The same as `trained` in the dtype of the model, where it is stored whole (ZeRO-1 and 2)."""
    aliases: Mapping[str, str]
    """Names of tied parameters that are stored under another name."""
    dtypes: Mapping[str, str]
    """The dtype that each of them had in the model."""


def read(folder: Path) -> ZeroCheckpoint:
    """Reads where everything lies; no weights, and no code of a pickle.

    Raises:
        CheckpointError: A rank's file is missing, truncated or of another run, or the shapes do not
            add up.
    """
    states = load(folder)
    model = states.models[0]
    module = model["module"]
    trained = laid_out(states, states.masters, folder)
    if states.stage == 3:
        kept = _frozen_partitioned(states.models, folder)
        working: dict[str, Pieces] = {}
    else:
        kept = _whole(module, (name for name in module if name not in trained))
        working = _whole(module, (name for name in trained if name in module))
    buffers = _whole(module, (n for n in model.get("buffer_names") or () if n in module))
    aliases = {str(a): str(b) for a, b in dict(model.get("shared_params") or {}).items()}
    return ZeroCheckpoint(
        folder=folder,
        stage=states.stage,
        world_size=states.world_size,
        trained=trained,
        kept={n: p for n, p in {**buffers, **kept}.items() if n not in aliases},
        working=working,
        aliases=aliases,
        dtypes={n: t.dtype for n, t in module.items() if isinstance(t, StoredTensor)},
    )


def laid_out(
    states: ZeroStates, vectors: Sequence[Sequence[StoredTensor]], folder: Path
) -> dict[str, Pieces]:
    """Returns where each trained parameter's elements lie in the flat vectors of the ranks.

    Args:
        states: What the ranks wrote.
        vectors: Of every rank one vector a group: the weights, or a state of the optimizer.
        folder: The `global_stepN` folder.

    Raises:
        CheckpointError: The shapes do not add up, or there are none.
    """
    shapes = [dict(group) for group in states.models[0].get("param_shapes") or ()]
    if not any(shapes):
        raise CheckpointError(f"{folder} names no trained parameters (param_shapes)")
    if states.stage == 3:
        return _partitioned(shapes, [Row(groups) for groups in vectors], folder)
    return _straddling(shapes, states, vectors, folder)


def _partitioned(
    groups: Sequence[Mapping[str, Any]], rows: Sequence[Row], folder: Path
) -> dict[str, Pieces]:
    """Lays out ZeRO-3: of each parameter, ceil(numel / W) elements on every rank, padding last."""
    pieces: dict[str, Pieces] = {}
    position = 0
    for shapes in groups:
        for name, shape in shapes.items():
            numel = math.prod(shape)
            part = -(-numel // len(rows))
            segments: list[Segment] = []
            for rank, row in enumerate(rows):
                segments += row.take(position, max(0, min(part, numel - rank * part)))
            pieces[name] = _proven(name, shape, segments, folder)
            position += part
    for rank, row in enumerate(rows):
        if position != len(row):
            raise CheckpointError(
                f"{folder}: rank {rank} holds {len(row)} elements, its parameters take {position}",
                todo="the checkpoint is incomplete: take the one before it",
            )
    return pieces


def _straddling(
    groups: Sequence[Mapping[str, Any]],
    states: ZeroStates,
    vectors: Sequence[Sequence[StoredTensor]],
    folder: Path,
) -> dict[str, Pieces]:
    """Lays out ZeRO-1 and 2: each group is one vector over all ranks."""
    pieces: dict[str, Pieces] = {}
    paddings = states.optimizers[0].get("param_alignment_paddings")
    counts = {len(groups), *map(len, vectors)}
    if len(counts) > 1:
        raise CheckpointError(f"{folder}: the ranks hold different numbers of parameter groups")
    for number, shapes in enumerate(groups):
        row = Row(rank[number] for rank in vectors)
        behind = paddings[number] if paddings else [0] * len(shapes)
        position = 0
        for (name, shape), gap in zip(shapes.items(), behind, strict=True):
            numel = math.prod(shape)
            pieces[name] = _proven(name, shape, row.take(position, numel), folder)
            position += numel + gap
        multiple = _ALIGNMENT * states.world_size
        if -(-position // multiple) != -(-len(row) // multiple):
            raise CheckpointError(
                f"{folder}: group {number} holds {len(row)} elements, its parameters take "
                f"{position}",
                todo="the checkpoint is incomplete: take the one before it",
            )
    return pieces


def _frozen_partitioned(models: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Pieces]:
    """Lays out ZeRO-3's frozen parameters: each rank's fragment, the last ones padded."""
    shapes = models[0].get("frozen_param_shapes") or {}
    pieces: dict[str, Pieces] = {}
    for name, shape in shapes.items():
        numel = math.prod(shape)
        segments: list[Segment] = []
        for model in models:
            fragment = (model.get("frozen_param_fragments") or {}).get(name)
            if fragment is None:
                raise CheckpointError(f"{folder}: a rank lacks its part of {name}")
            left = numel - sum(segment.count for segment in segments)
            segments += Row([fragment]).take(0, min(fragment.numel, left))
        pieces[name] = _proven(name, shape, segments, folder)
    return pieces


def _whole(module: Mapping[str, Any], names: Iterable[str]) -> dict[str, Pieces]:
    """Returns tensors of the model states that are stored whole; ZeRO-3's placeholders are not."""
    found: dict[str, Pieces] = {}
    for name in names:
        tensor = module[name]
        if isinstance(tensor, StoredTensor) and tensor.is_contiguous:
            found[name] = tensor.pieces()
    return found


def _proven(name: str, shape: Any, segments: Sequence[Segment], folder: Path) -> Pieces:
    pieces = Pieces(shape=tuple(shape), segments=tuple(segments))
    found = sum(segment.count for segment in segments)
    if found != pieces.numel:
        raise CheckpointError(
            f"{folder}: {name} takes {pieces.numel} elements, {found} are there",
            todo="the checkpoint is incomplete: take the one before it",
        )
    return pieces

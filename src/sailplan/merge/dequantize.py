"""A base as QLoRA trained on it: quantised by bitsandbytes and back, for the weights that were.

A QLoRA run trains `dequant(quant(W)) + ΔW`. Merged onto the published W the adapter meets other
weights than it was trained with; onto these it computes the very function that was trained.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sailplan.checkpoint.stored import Pieces, part_of
from sailplan.errors import CheckpointError, SailplanError
from sailplan.merge.reader import Reader
from sailplan.merge.tensor_plan import Delta, TensorPlan
from sailplan.model.load import quantization_config
from sailplan.run.config import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 64
"""Elements that share a scale in 4 bits, bitsandbytes' default."""
_AT_ONCE = BLOCK << 14
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantised:
    """A weight that is quantised and dequantised again, some rows at a time."""

    source: Pieces
    """Where it lies."""
    bits: int
    """4 or 8."""
    kind: str
    """`nf4` or `fp4`, of 4 bits."""
    nested: bool
    """Whether the scales are quantised as well, of 4 bits."""
    dtype: str
    """What the model was loaded in before it was quantised."""
    then: Delta | None = None
    """What an adapter adds."""

    @property
    def reads(self) -> Mapping[str, Pieces]:
        """What the adapter's delta reads."""
        return self.then.reads if self.then else {}

    @property
    def columns(self) -> int:
        """A row, or the whole weight where rows are not whole blocks."""
        row = self.source.shape[-1]
        return row if self.bits == 8 or row % BLOCK == 0 else math.prod(self.source.shape)

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Returns rows of the weight as it was trained on, with what the adapter adds."""
        base = self.dequantised(weight, start)
        if self.then is None:
            return base
        columns = self.then.columns
        first = start * self.columns // columns
        merged = self.then.rows(base.reshape(-1, columns), first)
        return merged.reshape(-1, self.columns)

    def dequantised(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Returns rows of the weight as it was trained on."""
        from bitsandbytes import functional

        loaded = weight.to(getattr(torch, self.dtype)).contiguous()
        if self.bits == 8:
            codes, scales, _ = functional.int8_vectorwise_quant(loaded.to(torch.float16))
            seen: torch.Tensor = functional.int8_vectorwise_dequant(codes, scales)
            return seen.to(loaded.dtype)
        packed, state = functional.quantize_4bit(
            loaded, blocksize=BLOCK, compress_statistics=False, quant_type=self.kind
        )
        if self.nested:
            first = start * self.columns // BLOCK
            state.absmax = self._scales()[first : first + len(state.absmax)]
        found: torch.Tensor = functional.dequantize_4bit(packed, state)
        return found.view(weight.shape)

    def at_once(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the whole weight as bitsandbytes itself quantises and dequantises it.

        As it does on a GPU: where rows are not whole blocks, its kernel for a CPU (0.50) reads the
        scales of other blocks.
        """
        from bitsandbytes import functional

        if self.bits == 8:
            return self.dequantised(weight, 0)
        packed, state = functional.quantize_4bit(
            weight.to(getattr(torch, self.dtype)).reshape(-1, self.columns),
            blocksize=BLOCK,
            compress_statistics=self.nested,
            quant_type=self.kind,
        )
        found: torch.Tensor = functional.dequantize_4bit(packed, state)
        return found.view(weight.shape)

    def _scales(self) -> torch.Tensor:
        with _ONE_AT_A_TIME:
            return _nested_scales(self.source, self.dtype)


@lru_cache(maxsize=2)
def _nested_scales(source: Pieces, dtype: str) -> torch.Tensor:
    """Returns a weight's scales, `[blocks]`, after they were quantised themselves."""
    from bitsandbytes import functional

    scales: list[torch.Tensor] = []
    with Reader() as reader:
        for start in range(0, source.numel, _AT_ONCE):
            count = min(_AT_ONCE, source.numel - start)
            part = reader.read(part_of(source.segments, start, count), reuse=True)
            part = part.to(getattr(torch, dtype)).abs()
            whole = count // BLOCK * BLOCK
            scales.append(part[:whole].view(-1, BLOCK).amax(dim=1).float())
            if whole < count:
                scales.append(part[whole:].amax().float().view(1))
    absmax = torch.cat(scales)
    offset = absmax.mean()
    codes, state = functional.quantize_blockwise(absmax - offset, blocksize=256)
    found: torch.Tensor = functional.dequantize_blockwise(codes, state) + offset
    return found


def settings_of(home: Path) -> Run:
    """Returns the run that trained an adapter, as far as it decides how the base was quantised.

    Args:
        home: The adapter's folder; its run's `run.yaml` is there, or in the folder above.

    Raises:
        CheckpointError: The run did not quantise its base.
    """
    file = _run_file(home)
    if file is None:  # TRL's defaults
        return Run(explicit={"load_in_4bit": True, "dtype": "bfloat16"})
    run = Run.from_file(file)
    if not _quantises(run):
        raise CheckpointError(
            f"{file} did not quantise its base", allowed="--base-precision 16bit of such an adapter"
        )
    return run


def is_known_quantised(home: Path) -> bool:
    """Tells whether an adapter's run file says that its base was quantised.

    Args:
        home: As of `settings_of`. A run file there that cannot be read says nothing.
    """
    file = _run_file(home)
    with suppress(SailplanError):
        return file is not None and _quantises(Run.from_file(file))
    return False


def _run_file(home: Path) -> Path | None:
    files = (folder / "run.yaml" for folder in (home, home.parent))
    return next((path for path in files if path.is_file()), None)


def _quantises(run: Run) -> bool:
    return bool(run.get("load_in_4bit") or run.get("load_in_8bit"))


def dequantised(plans: Sequence[TensorPlan], model: PreTrainedModel, run: Run) -> list[TensorPlan]:
    """Puts quantisation before what an adapter adds, for the weights that a run quantised.

    Args:
        plans: The weights of the modules.
        model: The model on the meta device, which is changed: its layers become quantised ones.
        run: The run.
    """
    from transformers.quantizers import AutoHfQuantizer

    written = run.get("dtype")
    stored = str(model.config.dtype or torch.float32).removeprefix("torch.")
    dtype = stored if written in (None, "auto") else str(written)
    config: Any = quantization_config(run, getattr(torch, dtype))
    quantizer: Any = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer._process_model_before_weight_loading(model, device_map=None)
    layers = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    }
    return [
        replace(
            plan,
            delta=Quantised(
                source=plan.source,
                bits=4 if run.get("load_in_4bit") else 8,
                kind=str(run.get("bnb_4bit_quant_type")),
                nested=bool(run.get("use_bnb_nested_quant")),
                dtype=dtype,
                then=plan.delta,
            ),
        )
        if plan.name in layers
        else plan
        for plan in plans
    ]


def error_against_adapter(plans: Sequence[TensorPlan], rows: int = 64) -> float:
    """Returns how large the quantisation's error is against what the adapter adds.

    Of the first rows of every weight that has both: the ratio of the two Frobenius norms.
    """
    lost = added = 0.0
    with Reader() as reader:
        for plan in plans:
            quantised = plan.delta
            if not isinstance(quantised, Quantised) or quantised.then is None:
                continue
            whole = max(1, rows * plan.shape[-1] // quantised.columns)
            count = min(whole * quantised.columns, plan.source.numel)
            base = reader.read(part_of(plan.source.segments, 0, count))
            base = base.view(-1, quantised.columns)
            seen = quantised.dequantised(base, 0)
            lost += float((seen.float() - base.float()).square().sum())
            added += float((quantised.rows(base, 0).float() - seen.float()).square().sum())
    return math.sqrt(lost / added) if added else math.inf

"""From a run file to the micro batches that it may run: precision, adapter, loss, checkpointing.

The rules are those of `model.load` and of TRL: weights are float32 unless `dtype` is written, and
bf16 is on unless it or fp16 is written. DeepSpeed casts unquantised weights to the precision that
it computes in and keeps float32 copies; there is no autocast under it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sailplan.plan.facts.batches import Batch
from sailplan.plan.facts.budget import with_budget
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.facts.model import ModelFacts
from sailplan.plan.workload import Adapter, Images, Loss, Workload
from sailplan.run.blocks import Strategy

if TYPE_CHECKING:
    from sailplan.hardware.catalogue import GpuModel
    from sailplan.run.config import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """All that the workloads of one run have in common."""

    run: Run
    model: ModelFacts
    data: DataFacts
    gpu: GpuModel
    batches: Callable[[int, str], Batch]
    """Samples of a micro batch and the attention implementation to the largest one."""

    def workload(
        self, strategy: Strategy, micro_batch: int, accumulation: int, checkpointing: bool
    ) -> Workload:
        """Returns what a rank computes under a strategy.

        Raises:
            RunFileError: Packing is asked for and the model cannot.
        """
        run, deepspeed = self.run, strategy.startswith("zero")
        weights, autocast = self._precision(deepspeed=deepspeed)
        quantization = self._quantization()
        plain = Workload(
            config=self.model.config,
            micro_batch=1,
            length_tokens=self.data.longest,
            trained_share=self.data.trained_share,
            image_processor=self._image_processor(),
            weights=weights,
            autocast=autocast,
            quantization=quantization,
            double_quantization=bool(run.get("use_bnb_nested_quant")),
            adapter=self._adapter(weights, deepspeed=deepspeed),
            frozen=tuple(sorted(run.get("freeze") or ())),
            checkpointing=self._checkpointing(strategy, on=checkpointing),
            attention=self._attention(half=weights != "float32" or autocast is not None),
            loss=self._loss(),
            optimizer=str(run.get("optim")),
            accumulation=accumulation,
        )
        return self.sized(plain, micro_batch)

    def sized(self, workload: Workload, micro_batch: int) -> Workload:
        """Returns a workload of the run with the largest micro batch of so many samples.

        Raises:
            RunFileError: Packing is asked for and the model cannot.
        """
        batch, data = self.batches(micro_batch, workload.attention), self.data
        images = None
        if batch.images_per_row:
            images = Images(
                per_row=batch.images_per_row, height=data.image_height, width=data.image_width
            )
        return dataclasses.replace(
            workload,
            micro_batch=batch.rows,
            length_tokens=batch.length_tokens,
            segments=batch.segments,
            images=images,
            padded=batch.segments is None and batch.rows > 1,
        )

    def mixed(self) -> str | None:
        """Returns the dtype of mixed precision; None where there is none."""
        if self.run.get("fp16"):
            return "float16"
        # TRL trains in bf16 where neither is written; a GPU without it is not asked to.
        bf16 = self.run.get("bf16")
        return "bfloat16" if (bf16 or bf16 is None) and self.gpu.bf16 else None

    def _precision(self, *, deepspeed: bool) -> tuple[str, str | None]:
        """Returns the dtype of the weights, and that of autocast."""
        written = self.run.get("dtype")
        if written in (None, "auto"):
            saved = self.model.config.get("dtype") or self.model.config.get("torch_dtype")
            written = str(saved or "float32").removeprefix("torch.")
        mixed = self.mixed()
        if not deepspeed or self._quantization():
            return written, mixed
        return (mixed, None) if mixed else (written, None)

    def _quantization(self) -> Literal["nf4", "fp4", "int8"] | None:
        if self.run.get("load_in_4bit"):
            return "fp4" if self.run.get("bnb_4bit_quant_type") == "fp4" else "nf4"
        return "int8" if self.run.get("load_in_8bit") else None

    def _adapter(self, weights: str, *, deepspeed: bool) -> Adapter | None:
        run = self.run
        if not run.get("use_peft"):
            return None
        targets: Any = run.get("lora_target_modules") or "all-linear"
        if isinstance(targets, list):
            targets = targets[0] if targets == ["all-linear"] else tuple(targets)
        # PEFT raises 16-bit adapters to float32; TRL casts those over quantised weights to bf16,
        # and DeepSpeed casts all to what it computes in.
        dtype = "float32"
        if self._quantization():
            dtype = "bfloat16"
        elif deepspeed:
            dtype = weights
        return Adapter(
            rank=int(run.get("lora_r")),
            targets=targets,
            vision=bool(run.get("lora_vision")),
            modules_to_save=tuple(run.get("lora_modules_to_save") or ()),
            dora=bool(run.get("use_dora")),
            dropout=float(run.get("lora_dropout") or 0.0),
            rank_pattern=run.get("lora_rank_pattern") or {},
            dtype=dtype,
        )

    def _checkpointing(
        self, strategy: Strategy, *, on: bool
    ) -> Literal["none", "reentrant", "non_reentrant"]:
        if not on:
            return "none"
        kwargs = self.run.get("gradient_checkpointing_kwargs") or {}
        # TRL has adapters under ZeRO-3 checkpoint the reentrant way whatever is written.
        forced = strategy.startswith("zero3") and self.run.get("use_peft")
        return "reentrant" if forced or kwargs.get("use_reentrant") else "non_reentrant"

    def _attention(self, *, half: bool) -> str:
        import importlib.util

        from sailplan.model.attention import check_masks
        from sailplan.model.families import sees_both_ways

        written = self.run.get("attn_implementation")
        config = self.model.config
        name, text = str(config.get("model_type")), config.get("text_config") or config
        both_ways = sees_both_ways(name, text.get("use_bidirectional_attention"))
        if written not in (None, "auto"):
            check_masks(str(written), name, both_ways=both_ways)
            return str(written)
        if both_ways:
            return "sdpa"
        has_flash = importlib.util.find_spec("flash_attn") is not None
        return "flash_attention_2" if has_flash and half and self.gpu.bf16 else "sdpa"

    def _loss(self) -> Loss:
        """TRL's own head never makes all logits; only smoothed labels need them."""
        return "full" if self.run.get("label_smoothing_factor") else "chunked"

    def _image_processor(self) -> dict[str, Any] | None:
        """Returns the image processor's settings, with the run's pixel budget."""
        if self.model.image_processor is None:
            return None
        limits = {name: self.run.get(name) for name in ("min_pixels", "max_pixels")}
        return with_budget(self.model.config, self.model.image_processor, **limits)

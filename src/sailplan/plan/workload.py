"""What one rank computes in one micro batch: all that decides on memory and time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Loss = Literal["chunked", "full", "full_shifted", "full_kept", "liger"]
"""How the head's loss is computed.

`chunked` is TRL's fused head, at the positions that have a label; `full` transformers' own on all
logits, in float32; `full_shifted` the one of transformers before 4.45, with a shifted copy;
`full_kept` is `full` with the logits alive during backward; `liger` is Liger's fused linear cross
entropy.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """The images of the largest micro batch."""

    per_row: int
    """Images of each row."""
    height: int
    """Pixels, as the file has them."""
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """What PEFT adds."""

    rank: int
    targets: tuple[str, ...] | str
    """Names or a pattern, as PEFT takes them; `all-linear` for every linear layer."""
    vision: bool = False
    """Whether the vision tower is adapted too."""
    modules_to_save: tuple[str, ...] = ()
    dora: bool = False
    dropout: float = 0.0
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    """Of the adapter's weights: PEFT raises 16-bit ones to float32 unless told otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One micro batch of one rank, before anything is sharded."""

    config: Mapping[str, Any]
    """The model's config, as `config.json` has it."""
    micro_batch: int
    """Rows; one where samples share it."""
    length_tokens: int
    """Of each row, image tokens among them; padded."""
    segments: tuple[int, ...] | None = None
    """Tokens of each sample of the one row that they share; None where each has its own."""
    trained_share: float = 1.0
    """Of the tokens, those with a label."""
    images: Images | None = None
    image_processor: Mapping[str, Any] | None = None
    """What `preprocessor_config.json` says of sizes; the class's own defaults where None."""
    weights: str = "bfloat16"
    """The dtype of the weights: `float32`, `bfloat16` or `float16`."""
    autocast: str | None = None
    """The dtype that matrix products are cast to, where it is not the weights'."""
    quantization: Literal["nf4", "fp4", "int8"] | None = None
    double_quantization: bool = True
    adapter: Adapter | None = None
    frozen: tuple[str, ...] = ()
    """Parts that do not train: `vision_tower`, `projector`, `language_model`."""
    checkpointing: Literal["none", "reentrant", "non_reentrant"] = "none"
    attention: str = "sdpa"
    loss: Loss = "chunked"
    padded: bool = True
    """Whether rows differ in length, so that attention needs a mask."""
    optimizer: str = "adamw_torch_fused"
    """As transformers' `optim` names it."""
    accumulation: int = 1
    """Micro batches of one optimizer step."""

    @property
    def tokens(self) -> int:
        """Tokens of the micro batch, padding among them."""
        return self.micro_batch * self.length_tokens

    @property
    def num_images(self) -> int:
        """Images of the micro batch."""
        return self.micro_batch * self.images.per_row if self.images else 0

    def sized_as(self, other: Workload) -> Workload:
        """Returns the workload with the rows of another."""
        return dataclasses.replace(
            self,
            micro_batch=other.micro_batch,
            length_tokens=other.length_tokens,
            segments=other.segments,
            images=other.images,
            padded=other.padded,
        )

    def repeated(self, times: int) -> Workload:
        """Returns a workload of so many times the samples."""
        if self.segments is None:
            return dataclasses.replace(self, micro_batch=times * self.micro_batch, padded=True)
        images = self.images
        if images is not None:
            images = dataclasses.replace(images, per_row=times * images.per_row)
        return dataclasses.replace(
            self,
            length_tokens=times * self.length_tokens,
            segments=times * self.segments,
            images=images,
        )

    def key(self) -> str:
        """Returns a text that differs where anything differs that the simulation sees."""
        fields = dataclasses.asdict(self)
        for name in ("optimizer", "accumulation"):
            fields.pop(name)
        return json.dumps(fields, sort_keys=True, default=str)

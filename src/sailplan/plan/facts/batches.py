"""The micro batches of a run as training will make them: samples in one row, or padded rows.

The samples are dealt by training's own sampler, so that the largest row is known. Everything heavy
is imported where it is used: with what is kept from an earlier plan, nothing is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sailplan.model.batching import READ
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.store import cached

if TYPE_CHECKING:
    from sailplan.run.config import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """How micro batches are made of a model's samples."""

    packs: bool
    """Whether they share a row."""
    words: str
    """That, and why."""
    hidden_size: int
    """Of the language model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dealt:
    """The samples of a run, dealt into micro batches."""

    lengths: tuple[int, ...]
    """Tokens of each sample of the largest micro batch, the longest first."""
    tokens: int
    """It holds, padding among them."""
    image_tokens: int
    """The most that any micro batch holds."""
    mean_tokens: float
    """Of a micro batch, padding among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The largest micro batch of a run."""

    rows: int
    length_tokens: int
    """Of each row, padding among them."""
    segments: tuple[int, ...] | None
    """Tokens of each sample of the one row; None where each has its own."""
    images_per_row: int
    mean_tokens: float
    """Of a micro batch on average, padding among them."""
    words: str
    """Such as `packed rows of up to 6,312 tokens`."""
    packs: bool
    """Whether samples share rows."""
    why: str
    """Why they do or do not, as training says it."""


def making_of(run: Run, config: Mapping[str, Any], attention: str) -> Making:
    """Returns how the micro batches of a run are made.

    Args:
        run: The run.
        config: Its model's.
        attention: The implementation.

    Raises:
        RunFileError: Packing is asked for and the model cannot.
    """
    asked = {name: run.get(name) for name in READ if run.is_set(name)}
    key = json.dumps([config, asked, attention], sort_keys=True, default=str)
    return cached(Making, f"making {key}", lambda: _making(run, config, attention))


def _making(run: Run, config: Mapping[str, Any], attention: str) -> Making:
    from sailplan.imports import quick_imports

    with quick_imports():
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        from sailplan.model.batching import choose_batching
        from sailplan.model.families import family_of
        from sailplan.model.load import classes
        from sailplan.plan.simulation.depth import config_of
    if config.get("model_type") not in CONFIG_MAPPING_NAMES:  # its simulation says so
        return Making(packs=False, words="", hidden_size=1)
    known = config_of(config)
    _, model_class = classes(known, str(known.model_type))
    if attention == "sdpa" and not getattr(model_class, "_supports_sdpa", True):
        attention = "eager"
    packs, words = choose_batching(run, family_of(known), attention)
    return Making(packs=packs, words=words, hidden_size=int(known.get_text_config().hidden_size))


@dataclass(kw_only=True, slots=True)
class Batches:
    """Gives the largest micro batch of a run, for any number of samples.

    Args:
        run: The run.
        config: Its model's.
        data: Its rows.
        global_batch: Rows of an optimizer step over all ranks.
        weights: Returns, for each part of the model, the weights that do not train and those that
            do; asked where there are images.
    """

    run: Run
    config: Mapping[str, Any]
    data: DataFacts
    global_batch: int
    weights: Callable[[], Mapping[str, tuple[int, int]]]
    _makings: dict[str, Making] = field(default_factory=dict)
    _known: dict[tuple[int, bool], Batch] = field(default_factory=dict)

    def __call__(self, micro_batch: int, attention: str) -> Batch:
        """Returns the largest micro batch.

        Args:
            micro_batch: Samples of each, on average.
            attention: The model's attention implementation.

        Raises:
            RunFileError: Packing is asked for and the model cannot.
        """
        making = self._makings.get(attention)
        if making is None:
            making = making_of(self.run, self.config, attention)
            self._makings[attention] = making
        key = micro_batch, making.packs
        if key not in self._known:
            self._known[key] = self._batch(micro_batch, making)
        return self._known[key]

    def _batch(self, micro_batch: int, making: Making) -> Batch:
        if making.packs and micro_batch > 1:
            return self._packed(micro_batch, making)
        return self._padded(micro_batch, making)

    def _packed(self, micro_batch: int, making: Making) -> Batch:
        data = self.data
        images = micro_batch * data.images_per_row
        segments = (data.longest,) * micro_batch
        if not self._is_equal and self._is_dealt:
            dealt = self._dealt(micro_batch, making)
            segments = dealt.lengths
            if data.largest_image_tokens:
                images = math.ceil(dealt.image_tokens / data.largest_image_tokens)
        rest = -sum(segments) % self._multiple
        segments = (*segments, rest) if rest else segments
        tokens = sum(segments)
        return Batch(
            rows=1,
            length_tokens=tokens,
            segments=segments,
            images_per_row=images,
            mean_tokens=data.mean * micro_batch,
            words=f"packed rows of up to {tokens:,} tokens",
            packs=True,
            why=making.words,
        )

    def _padded(self, micro_batch: int, making: Making) -> Batch:
        """Returns as many of the longest row as hold the tokens of the largest micro batch.

        Where attention has a mask, that of few long rows is larger than that of many short ones.
        """
        data = self.data
        length = data.longest + -data.longest % self._multiple
        rows, images = micro_batch, data.images_per_row
        grouped = self.run.get("train_sampling_strategy") == "group_by_length"
        mean = data.padded(micro_batch, grouped=grouped) * micro_batch
        shape = f"{rows} × {length:,}"
        if micro_batch > 1 and not self._is_equal and self._is_dealt:
            dealt = self._dealt(micro_batch, making)
            longest = dealt.lengths[0]
            shape = f"{len(dealt.lengths)} × {longest + -longest % self._multiple:,}"
            rows, mean = math.ceil(dealt.tokens / data.longest), dealt.mean_tokens
            if data.largest_image_tokens:
                of_all = math.ceil(dealt.image_tokens / data.largest_image_tokens)
                images = max(images, math.ceil(of_all / rows))
        if making.packs:
            words = f"rows of one sample, up to {length:,} tokens"
        else:
            words = f"padded micro batches of up to {shape} tokens"
        return Batch(
            rows=rows,
            length_tokens=length,
            segments=(length,) if making.packs else None,
            images_per_row=images,
            mean_tokens=mean,
            words=words,
            packs=making.packs,
            why=making.words,
        )

    @property
    def _is_equal(self) -> bool:
        return len(set(self.data.lengths)) == 1

    @property
    def _is_dealt(self) -> bool:
        """Whether the samples of a step are dealt by their work, instead of drawn."""
        grouped = self.run.get("train_sampling_strategy") == "group_by_length"
        return not grouped and not self.run.get("dataset_streaming")

    @property
    def _multiple(self) -> int:
        """What rows are filled up to a multiple of; `auto` fills none on GPUs."""
        written = str(self.run.get("pad_to_multiple_of"))
        return int(written) if written.isdecimal() else 1

    def _dealt(self, micro_batch: int, making: Making) -> Dealt:
        data, run = self.data, self.run
        weights = self.weights() if any(data.image_tokens) else {}
        groups = max(1, self.global_batch // micro_batch)
        seed = run.get("seed") if run.get("data_seed") is None else run.get("data_seed")
        asked = {
            "packs": making.packs,
            "groups": groups,
            "step_samples": groups * micro_batch,
            "seed": None if run.get("train_sampling_strategy") == "sequential" else int(seed),
            "drop_last": bool(run.get("dataloader_drop_last")),
            "epochs": float(run.get("num_train_epochs")),
            "max_steps": int(run.get("max_steps")),
            "hidden_size": making.hidden_size,
        }
        facts = [data.rows, data.lengths, data.image_tokens, data.patches_per_token]
        return cached(
            Dealt,
            f"dealt {json.dumps([facts, weights, asked])}",
            lambda: _deal(data, weights, asked),
        )


def _deal(data: DataFacts, weights: Mapping[str, tuple[int, int]], asked: Any) -> Dealt:
    from sailplan.imports import quick_imports

    with quick_imports():
        from sailplan.plan.facts.dealing import deal_rows
    return deal_rows(data, weights, **asked)

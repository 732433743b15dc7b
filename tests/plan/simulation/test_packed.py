"""A packed row is simulated as it trains: by sample, without a mask, in every family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoProcessor, LlamaConfig

from sailplan.plan.simulation.simulate import simulate
from sailplan.plan.workload import Images, Workload
from tests.plan.simulation.test_simulate import FAMILIES, TEXT

UNPACKED = ("gemma3", "molmo2", "mllama")
PACKED = [name for name in FAMILIES if name not in UNPACKED]
ROWS = Workload(
    config=LlamaConfig(**TEXT).to_dict(),
    micro_batch=4,
    length_tokens=512,
    weights="float32",
    autocast="bfloat16",
    padded=True,
)
ROW = dataclasses.replace(
    ROWS, micro_batch=1, length_tokens=2048, segments=(512,) * 4, padded=False
)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_packed_row_computes_what_its_samples_compute_alone(attention: str) -> None:
    packed, padded = simulate(dataclasses.replace(ROW, attention=attention)), simulate(ROWS)
    assert packed.forward_flops == pytest.approx(padded.forward_flops, rel=0.01)
    assert packed.backward_flops == pytest.approx(padded.backward_flops, rel=0.01)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_packed_row_has_no_mask_of_tokens_by_tokens(attention: str) -> None:
    def saved(times: int) -> int:
        return simulate(
            dataclasses.replace(
                ROW,
                attention=attention,
                checkpointing="non_reentrant",
                length_tokens=2048 * times,
                segments=ROW.segments and ROW.segments * times,
            )
        ).saved_bytes

    # A mask of bytes alone would be 64 MB at 8192 tokens, and sixteen times that of 2048.
    assert saved(4) == pytest.approx(4 * saved(1), rel=0.05)


def test_flash_attention_keeps_one_output_where_segments_keep_two() -> None:
    hidden, layers = TEXT["hidden_size"], TEXT["num_hidden_layers"]
    flash = simulate(dataclasses.replace(ROW, attention="flash_attention_2"))
    segments = simulate(ROW)
    once = 2 * 2048 * hidden * layers
    assert segments.saved_bytes - flash.saved_bytes == pytest.approx(once, rel=0.2)


@pytest.mark.parametrize("family", PACKED)
def test_packed_row_of_every_family_attends_by_sample(
    tiny_model: Callable[[str], Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sailplan.model import packed_attention

    folder = tiny_model(family)
    processor = AutoProcessor.from_pretrained(folder)
    images = getattr(processor, "image_processor", None)
    seen: list[tuple[Any, list[tuple[int, int]]]] = []
    cut = packed_attention._segments

    def watched(position_ids: torch.Tensor) -> list[tuple[int, int]]:
        seen.append((tuple(position_ids.shape), cut(position_ids)))
        return seen[-1][1]

    monkeypatch.setattr(packed_attention, "_segments", watched)
    profile = simulate(
        Workload(
            config=AutoConfig.from_pretrained(folder).to_dict(),
            micro_batch=1,
            length_tokens=900,
            segments=(400, 300, 200),
            images=None if images is None else Images(per_row=3, height=100, width=140),
            image_processor=None if images is None else images.to_dict(),
            checkpointing="non_reentrant",
        )
    )
    assert seen
    assert {shape[0] for shape, _ in seen} == {1}
    assert {len(spans) for _, spans in seen} == {3}
    assert bool(profile.image_tokens) == (images is not None)

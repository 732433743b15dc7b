"""A shallow model's figures, extrapolated, are those of the whole one, in every family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoProcessor, LlamaConfig, MistralConfig, Qwen2VLConfig

from sailplan.errors import ModelError
from sailplan.model.published import published
from sailplan.plan.cost.memory import shard
from sailplan.plan.sharding import Sharding
from sailplan.plan.simulation.simulate import simulate, simulate_all
from sailplan.plan.workload import Adapter, Images, Workload
from tests.plan.tiny import CONFIG

TEXT = {
    "vocab_size": 4000,
    "hidden_size": 256,
    "intermediate_size": 700,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
QWEN = Qwen2VLConfig(
    text_config={
        **TEXT,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [8, 12, 12],
        },
    },
    vision_config={"depth": 7, "embed_dim": 128, "hidden_size": 256, "num_heads": 4},
    image_token_id=3990,
    video_token_id=3991,
    vision_start_token_id=3992,
    vision_end_token_id=3993,
)
IMAGES = Images(per_row=1, height=224, width=308)
CASES = {
    "llama-full": Workload(
        config=LlamaConfig(**TEXT).to_dict(),
        micro_batch=2,
        length_tokens=256,
        weights="float32",
        autocast="bfloat16",
        checkpointing="non_reentrant",
    ),
    "mistral-nf4": Workload(
        config=MistralConfig(**TEXT).to_dict(),
        micro_batch=2,
        length_tokens=256,
        quantization="nf4",
        adapter=Adapter(rank=8, targets="all-linear", dtype="bfloat16"),
        autocast="bfloat16",
    ),
    "qwen2_vl-full": Workload(
        config=QWEN.to_dict(), micro_batch=2, length_tokens=256, images=IMAGES
    ),
}
STRATEGIES = ("single", "ddp", "zero2", "zero3", "fsdp2")


def peaks(workload: Workload, profile: Any) -> dict[str, int]:
    """The peak under each strategy."""
    return {
        strategy: shard(
            profile, workload, Sharding(strategy=strategy, ranks=4, ranks_per_node=4)
        ).peak_bytes
        for strategy in STRATEGIES
    }


@pytest.mark.parametrize("case", CASES)
def test_extrapolated_profile_equals_the_full_depth_one(case: str) -> None:
    workload = CASES[case]
    shallow, whole = simulate(workload), simulate(workload, full_depth=True)
    assert shallow.groups == whole.groups
    assert shallow.saved_bytes == pytest.approx(whole.saved_bytes, rel=0.01)
    assert shallow.forward_flops == pytest.approx(whole.forward_flops, rel=0.01)
    assert shallow.backward_flops == pytest.approx(whole.backward_flops, rel=0.01)
    assert peaks(workload, shallow) == pytest.approx(peaks(workload, whole), rel=0.01)


FAMILIES = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision", "pixtral"),
    *("idefics3", "smolvlm", "internvl", "gemma3", "molmo2", "mllama", "mistral3", "llama"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_planned_from_its_config(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    folder = tiny_model(family)
    config = AutoConfig.from_pretrained(folder).to_dict()
    processor = AutoProcessor.from_pretrained(folder)
    images = getattr(processor, "image_processor", None)
    workload = Workload(
        config=config,
        micro_batch=2,
        length_tokens=64,
        images=None if images is None else Images(per_row=1, height=100, width=140),
        image_processor=None if images is None else images.to_dict(),
        checkpointing="non_reentrant",
    )
    profile = simulate(workload)
    assert bool(profile.image_tokens) == (images is not None)
    assert (profile.vision_flops > 0) == (images is not None)
    assert profile.forward_flops < profile.backward_flops
    assert all(peak > 0 for peak in peaks(workload, profile).values())


@pytest.mark.parametrize("name", ["google/paligemma-3b-pt-224", "Qwen/Qwen3-0.6B"])
def test_public_model_is_planned_from_the_table(name: str) -> None:
    model = published(name)
    assert model is not None
    sees = bool(model.processor)
    workload = Workload(
        config=model.config,
        micro_batch=2,
        length_tokens=400,
        images=Images(per_row=1, height=300, width=400) if sees else None,
        image_processor=model.processor or None,
    )
    profile = simulate(workload)
    assert profile.parameters == model.parameters
    assert profile.image_tokens == (512 if sees else 0)


def test_checkpointing_saves_less_and_computes_more() -> None:
    plain = CASES["qwen2_vl-full"]
    less = dataclasses.replace(plain, checkpointing="non_reentrant")
    kept, recomputed = simulate_all([plain, less], processes=2)
    assert recomputed.saved_bytes < 0.5 * kept.saved_bytes
    assert recomputed.forward_flops == kept.forward_flops
    assert recomputed.backward_flops > 1.3 * kept.backward_flops


def test_frozen_tower_keeps_nothing_of_its_own() -> None:
    plain = CASES["qwen2_vl-full"]
    frozen = dataclasses.replace(plain, frozen=("vision_tower", "projector"))
    trained, kept = simulate(plain), simulate(frozen)
    assert kept.saved_bytes < trained.saved_bytes
    assert kept.trained_parameters < trained.trained_parameters
    assert kept.parameters == trained.parameters


@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_gradients_gather_from_the_head_down_to_the_tower(strategy: Any) -> None:
    workload = CASES["qwen2_vl-full"]
    profile = simulate(workload)

    def gradients_at(name: str) -> int:
        moment = next(m for m in profile.moments if m.name == name)
        upto = profile.moments[: profile.moments.index(moment) + 1]
        forward = [m for m in upto if m.phase == "forward"][:1]
        backward = [m for m in upto if m.phase == "backward"]
        # of these the last is made the worst, whatever it is in truth
        last = dataclasses.replace(moment, with_own_gradients_bytes=10**12)
        cut = dataclasses.replace(profile, moments=(*forward, *backward[:-1], last))
        memory = shard(
            workload=workload,
            profile=cut,
            sharding=Sharding(strategy=strategy, ranks=2, ranks_per_node=2),
        )
        return memory.phases["backward"]["gradients"] // 2

    def elements(*parts: str) -> int:
        return sum(g.trained_elements for g in profile.groups if g.part in parts)

    layers, blocks = "model.language_model.layers", "model.visual.blocks"
    head = next(g.trained_elements for g in profile.groups if g.name == "lm_head")
    assert gradients_at("backward head") == 0
    assert head <= gradients_at(f"backward {layers}.8") < 1.01 * head
    assert gradients_at(f"backward {layers}.0") < elements("language_model")
    assert gradients_at(f"backward {blocks}.6") == elements("language_model", "projector")
    assert gradients_at(f"backward {blocks}.0") < elements(
        "language_model", "projector", "vision_tower"
    )


@pytest.mark.parametrize(
    ("loss", "logits"), [("chunked", 0.0), ("full", 2.0), ("full_shifted", 2.5)]
)
def test_loss_decides_on_the_logits_that_are_alive(loss: Any, logits: float) -> None:
    config = LlamaConfig(**{**TEXT, "vocab_size": 60_000, "num_hidden_layers": 3}).to_dict()
    workload = Workload(config=config, micro_batch=2, length_tokens=512, loss=loss)
    profile = simulate(workload)
    float32 = 2 * 512 * 60_000 * 4
    worst = max(m.activation_bytes for m in profile.moments)
    assert worst >= logits * float32
    if not logits:
        assert worst < float32


def test_unknown_architecture_is_told_with_what_there_is() -> None:
    workload = Workload(
        config={**CONFIG.to_dict(), "model_type": "nosuch"}, micro_batch=1, length_tokens=8
    )
    with pytest.raises(ModelError, match="nosuch"):
        simulate(workload)

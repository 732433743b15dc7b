"""Which layers LoRA adapts: the language model's, unless the vision tower is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from sailplan.errors import ModelError
from sailplan.model.load import load_model
from sailplan.model.trainable import lora_config
from sailplan.run.config import Run

ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
LINEAR = ATTENTION | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
LANGUAGE = {
    **dict.fromkeys(("qwen2_vl", "llava", "pixtral", "mllama"), "model.language_model.layers"),
    "llama": "model.layers",
}


@pytest.fixture
def load(tiny_model: Callable[[str], Path]) -> Callable[..., PreTrainedModel]:
    def build(family: str, **fields: Any) -> PreTrainedModel:
        explicit = {"model_name_or_path": str(tiny_model(family)), "use_peft": True, **fields}
        return load_model(Run(explicit=explicit))

    return build


def adapted(model: PreTrainedModel, **fields: Any) -> set[str]:
    """Returns the modules that PEFT really adapts."""
    config = lora_config(Run(explicit={"use_peft": True, **fields}), model)
    wrapped = get_peft_model(model, config).get_base_model()
    return {name for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.parametrize("quantised", [{}, {"load_in_4bit": True}, {"load_in_8bit": True}])
@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "llama"])
def test_targets_default_is_the_language_models_linear_layers(
    load: Callable[..., PreTrainedModel], family: str, quantised: dict[str, bool]
) -> None:
    names = {f"{LANGUAGE[family]}.{layer}.{name}" for layer in range(2) for name in LINEAR}

    assert adapted(load(family, **quantised)) == names


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "pixtral", "mllama", "llama"])
def test_targets_unqualified_names_stay_out_of_the_vision_tower(
    load: Callable[..., PreTrainedModel], family: str
) -> None:
    found = adapted(load(family), lora_target_modules=["q_proj", "v_proj"])

    assert len(found) >= 4
    assert all(name.startswith(LANGUAGE[family]) for name in found)
    assert {name.rpartition(".")[2] for name in found} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("wanted", [["q_proj"], "all-linear", None])
def test_targets_with_lora_vision_reach_the_tower_but_no_unused_layer(
    load: Callable[..., PreTrainedModel], wanted: Any
) -> None:
    found = adapted(load("llava"), lora_target_modules=wanted, lora_vision=True)

    tower = {name for name in found if name.startswith("model.vision_tower")}
    assert {name.split(".")[4] for name in tower} == {"0", "1"}  # Layer 2 is never used.
    assert ("model.multi_modal_projector.linear_1" in found) == (wanted != ["q_proj"])
    assert "lm_head" not in found


def test_targets_that_name_the_tower_reach_it(load: Callable[..., PreTrainedModel]) -> None:
    found = adapted(load("llava"), lora_target_modules=[r".*vision_tower.*\.q_proj"])

    assert found == {f"model.vision_tower.encoder.layers.{n}.self_attn.q_proj" for n in range(2)}


def test_targets_exact_as_names_stay_names_for_other_readers(
    load: Callable[..., PreTrainedModel],
) -> None:
    run = Run(explicit={"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]})

    text, vision = lora_config(run, load("llama")), lora_config(run, load("llava"))

    assert text is not None
    assert vision is not None
    assert text.target_modules == {"q_proj", "v_proj"}
    roots = r"(?!(?:.*\.)?(?:vision_tower|multi_modal_projector)(?:\.|$))"
    assert vision.target_modules == roots + r"(?:.*\.)?(?:q_proj|v_proj)"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("qproj", r"'qproj' matches no layer .* allowed: down_proj, .*did you mean q_proj"),
        (["q_proj", "lm_head"], r"'lm_head' is the LM head, and an adapter there would never"),
        ("fc1", r"'fc1' matches only inside model.vision_tower.*write lora_vision: true"),
        ([r".*layers\.2\.mlp\.fc1"], "architecture never uses"),
        ([r".*vision_tower.*layers\.2\.mlp\.fc1"], "architecture never uses"),
        (["(q_proj"], "is no regular expression"),
        ("self_attn", "'self_attn' matches no layer"),
    ],
)
def test_targets_that_cannot_be_trained_are_refused_by_name(
    load: Callable[..., PreTrainedModel], wanted: Any, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        adapted(load("llava"), lora_target_modules=wanted)

    assert "\n" not in str(caught.value)


def test_targets_rank_zero_is_refused(load: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(ModelError, match="lora_r is 0; allowed: 1 or more"):
        adapted(load("llama"), lora_r=0)


def test_modules_to_save_that_do_not_exist_are_refused(
    load: Callable[..., PreTrainedModel],
) -> None:
    with pytest.raises(ModelError, match="lora_modules_to_save: 'lmhead' is no module"):
        adapted(load("llama"), lora_modules_to_save=["embed_tokens", "lmhead"])

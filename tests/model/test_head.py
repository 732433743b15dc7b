"""The LM head where a label is: the same loss and gradients as everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
)

from sailplan.data.labels import UNTRAINED
from sailplan.model.head import HeadPositions, label_losses


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_loss_at_labels_alone_is_that_of_all_positions(
    tiny_model: Callable[[str], Path], lora: bool
) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    head = HeadPositions(model)
    ids = torch.randint(5, 200, (2, 9))
    labels = ids.clone()
    labels[0, :4] = labels[1, 6:] = labels[1, 0] = UNTRAINED
    following = torch.nn.functional.pad(labels, (0, 1), value=UNTRAINED)[:, 1:].flatten()
    positions = (following != UNTRAINED).nonzero().flatten()

    def gradients() -> list[torch.Tensor]:
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    whole = model(input_ids=ids, labels=labels)
    whole.loss.backward()
    expected = gradients()
    with head.at(positions):
        narrow = model(input_ids=ids, labels=labels, shift_labels=following[positions][None])
        narrow.loss.backward()

    assert narrow.logits.shape[:2] == (1, len(positions))
    torch.testing.assert_close(narrow.loss, whole.loss)
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_head_is_computed_everywhere_again_after_an_error(
    tiny_model: Callable[[str], Path],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    head = HeadPositions(model)
    ids = torch.randint(5, 200, (1, 9))

    with pytest.raises(IndexError), head.at(torch.tensor([99])):
        model(input_ids=ids)

    assert model(input_ids=ids).logits.shape[:2] == (1, 9)


WIDE = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**WIDE),
        Gemma2Config(**WIDE, head_dim=16, final_logit_softcapping=0.5),
        GraniteConfig(**WIDE, logits_scaling=8.0),
        CohereConfig(**WIDE, logit_scale=0.25),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("most_logits", [1, 3000, 2**26])
def test_losses_in_pieces_are_those_of_the_models_own_logits(
    config: PretrainedConfig, most_logits: int
) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(5, 1000, (2, 9))
    positions = torch.tensor([1, 2, 5, 9, 10, 16])
    labels = ids.flatten()[positions + 1]
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, out: sizes.append(out.numel()))
    depths: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: depths.append(1))

    with torch.no_grad():
        losses, firsts = label_losses(
            model, {"input_ids": ids}, positions, labels, most_logits=most_logits
        )
    made, computed = list(sizes), list(depths)
    with torch.no_grad():
        logits = model(input_ids=ids).logits.flatten(0, 1)[positions].float()

    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert firsts.equal(logits.argmax(-1) == labels)
    assert max(made) <= max(most_logits, 1000)
    assert sum(made) == 6 * 1000
    assert len(computed) == 1


def test_model_is_itself_again_after_losses_that_failed(
    tiny_model: Callable[[str], Path],
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    ids = torch.randint(5, 200, (1, 9))
    before = model(input_ids=ids).logits

    with pytest.raises(IndexError):
        label_losses(model, {"input_ids": ids}, torch.tensor([99]), torch.tensor([7]))

    assert model(input_ids=ids).logits.equal(before)

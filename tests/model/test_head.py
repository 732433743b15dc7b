"""The LM head where a label is: the same loss and gradients as everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from sailplan.data.labels import UNTRAINED
from sailplan.model.head import HeadPositions


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

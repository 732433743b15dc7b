from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sailplan.model.load import load_model
from sailplan.run.config import Run


def test_quantised_model_trains_on_after_an_evaluation(tiny_model: Callable[[str], Path]) -> None:
    folder = str(tiny_model("qwen2_vl"))
    flags = ["--model_name_or_path", folder, "--load_in_4bit", "true", "--use_peft", "true"]
    model = load_model(Run.from_flags(flags))
    ids = torch.arange(20, 28)[None]
    with torch.no_grad():
        before = model.eval()(ids).logits
    embedding = model.get_input_embeddings()
    inputs = embedding(ids).detach().requires_grad_()
    logits = model.train()(inputs_embeds=inputs).logits
    logits.sum().backward()
    assert torch.allclose(logits, before, atol=1e-4)
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0

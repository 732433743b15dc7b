"""Tokens that begin, end and pad a text: as base models have them, and as old ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sailplan.errors import ModelError
from sailplan.model.processor import load_processor, load_processor_and_tokens
from sailplan.run.config import Run
from tests.support.base_models import (
    OLD_TOKENIZER,
    base_model,
    base_tokenizer,
    change_config,
    old_llama,
)

LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def run_of(model: Path, **fields: Any) -> Run:
    return Run(explicit={"model_name_or_path": str(model), **fields})


def assert_refused(run: Run, *messages: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_processor_and_tokens(run)
    assert "\n" not in str(caught.value)
    for message in messages:
        assert message in str(caught.value)


def test_old_llama_empty_tokens_are_refused_with_the_fix(tmp_path: Path) -> None:
    model = old_llama(tmp_path / "llama")

    assert_refused(
        run_of(model), "eos_token and bos_token in tokenizer_config.json of ", "are empty; write "
    )
    assert_refused(run_of(model, bos_token="<s>"), "write eos_token: </s> (")


def test_old_llama_written_tokens_read_texts_as_the_model_was_trained_on(tmp_path: Path) -> None:
    model = old_llama(tmp_path / "llama")
    reference = old_llama(
        tmp_path / "fixed",
        {**OLD_TOKENIZER, **NAMED, **LLAMA},
    )
    written = {"eos_token": "</s>", "bos_token": "<s>"}

    tokenizer = load_processor(run_of(model, **written))
    expected = load_processor(run_of(reference, **written))

    text = "A chat between a user and an assistant.</s>"
    ids = tokenizer(text).input_ids
    assert ids == expected(text).input_ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.convert_ids_to_tokens(ids[1]).startswith("▁")
    assert tokenizer.is_fast
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (2, 0)


def test_ids_of_other_special_tokens_in_config_are_refused(tmp_path: Path) -> None:
    model = old_llama(tmp_path / "llama", {**NAMED, **LLAMA})

    assert_refused(
        run_of(model),
        "eos_token_id 1, which is the tokenizer's bos_token; ",
        "'</s>' with id 2; write eos_token: </s> if that is right",
    )
    assert_refused(run_of(model, eos_token="</s>"), "bos_token_id 0, which is the tokenizer's unk")
    assert load_processor(run_of(model, eos_token="</s>", bos_token="<s>")).eos_token_id == 2


@pytest.mark.parametrize("ids", [[1, 7], 300, None])
def test_ids_that_contradict_nothing_pass(tmp_path: Path, ids: Any) -> None:
    model = base_model(tmp_path / "base")
    change_config(model, eos_token_id=ids)

    assert load_processor(run_of(model)).eos_token == "</s>"


@pytest.mark.parametrize(
    ("tokens", "eos"),
    [({"unk_token": "<unk>", "eos_token": "<unk>"}, "'<unk>' for"), ({"eos_token": None}, "no")],
)
def test_eos_that_is_unk_or_none_is_refused(tmp_path: Path, tokens: dict, eos: str) -> None:
    model = base_model(tmp_path / "base")
    named = {key: value for key, value in tokens.items() if value}
    tokenizer = base_tokenizer(**named)
    if tokens["eos_token"] is None:
        tokenizer.eos_token = None
    tokenizer.save_pretrained(model)

    assert_refused(run_of(model), f"has {eos} eos_token, so nothing would end an answer")
    assert load_processor(run_of(model, eos_token="</s>")).eos_token == "</s>"


@pytest.mark.parametrize(("field", "fix"), [("bos_token", "<s>"), ("pad_token", "</s>")])
def test_bos_or_pad_that_is_unk_is_refused_unless_written(
    tmp_path: Path, field: str, fix: str
) -> None:
    model = base_model(tmp_path / "base")
    base_tokenizer(**{"unk_token": "<unk>", field: "<unk>"}).save_pretrained(model)

    assert_refused(
        run_of(model),
        f"has '<unk>' for {field}, the one for unknown words; write {field}: {fix}, or ",
    )
    for token in (fix, "<unk>"):
        trained, _ = load_processor_and_tokens(run_of(model, **{field: token}))
        assert getattr(trained, field) == token
    assert getattr(load_processor(run_of(model)), field) == "<unk>"  # which may well be asked


def test_empty_pad_is_refused_with_the_fix(tmp_path: Path) -> None:
    model = old_llama(tmp_path / "llama", {**NAMED, **LLAMA, "pad_token": ""})
    written = {"eos_token": "</s>", "bos_token": "<s>"}

    assert_refused(run_of(model, **written), "pad_token in tokenizer_config.json of ", ": </s> (")
    assert load_processor(run_of(model, **written, pad_token="</s>")).pad_token == "</s>"


def test_eos_that_is_also_unk_as_gpt2_has_it_passes(tmp_path: Path) -> None:
    end = "<|endoftext|>"
    model = base_model(tmp_path / "base", eos_token=end, bos_token=end, unk_token=end)
    change_config(model, bos_token_id=2, eos_token_id=2)

    assert load_processor(run_of(model)).pad_token == end

"""What docs/trainable.md shows is so."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.training_args import OptimizerNames

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.run.fields import field_table
from sailplan.train.optimizer_check import _OFFLOADED, OPTIM_ARGS, check_optimizer
from sailplan.train.parts import settle_parts
from tests.support.batches import training_arguments
from tests.support.markdown import blocks, prose, tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainable.md"
PARTS, LORA, OPTIMIZERS = tables(PAGE)


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def printed(heading: str) -> str:
    return "".join(b.text for b in blocks(PAGE) if b.kind == "text" and b.heading == heading)


def refusal(folder: Path, zero: dict[str, Any] | None = None, **settings: Any) -> str:
    """Returns why a run with these settings is refused; an empty text where it is not."""
    args = training_arguments(folder, **settings)
    if zero:
        config = {"zero_optimization": zero}
        args.deepspeed_plugin = type("Plugin", (), {"deepspeed_config": config})()
    try:
        check_optimizer(args)
    except RunFileError as error:
        return str(error)
    return ""


def test_log_is_that_of_the_run_below_it(tmp_path: Path) -> None:
    (text,) = [block.text for block in blocks(PAGE) if block.kind == "yaml"]
    (tmp_path / "run.yaml").write_text(text)
    run = Run.from_file(tmp_path / "run.yaml")
    config = LlavaConfig()
    config.text_config.vocab_size = 32064  # LLaVA-1.5-7B's
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    args = training_arguments(tmp_path, learning_rate=run.get("learning_rate"))

    notes = settle_parts(run, args, model)

    assert "\n".join(notes) + "\n" == printed("What is trained")


def test_tables_name_all_parts_fields_and_optimizers() -> None:
    assert [names(row[0]) for row in PARTS] == [[part] for part in field_table()["freeze"].choices]
    assert all(name in field_table() for row in LORA for name in names(row[0]))
    listed = [name for row in OPTIMIZERS for name in names(row[0])]
    assert sorted(listed) == sorted(name.value for name in OptimizerNames)


def test_arguments_of_optimizers_are_those_that_are_read() -> None:
    shown = {name: tuple(names(row[2])) for row in OPTIMIZERS for name in names(row[0])}
    assert {name: shown[name] for name in OPTIM_ARGS} == dict(OPTIM_ARGS)
    assert not any(shown[name] for name in shown.keys() - OPTIM_ARGS.keys())


@pytest.mark.parametrize("row", OPTIMIZERS, ids=lambda row: row[0])
def test_optimizer_needs_what_its_row_says(tmp_path: Path, row: list[str]) -> None:
    needs = [need for need in row[1].split(", ") if need]
    packages = [need.replace("-", "_") for need in needs if not need.startswith(("no ", "a "))]
    packages = ["optimi" if name == "torch_optimi" else name for name in packages]
    lacks = any(importlib.util.find_spec(name) is None for name in packages)
    lacks |= "a GPU" in needs and not torch.cuda.is_available()
    for name in names(row[0]):
        if "no DeepSpeed" in needs:
            assert "under DeepSpeed" in refusal(tmp_path, {"stage": 2}, optim=name)
        settings = {"optim": name, "optim_target_modules": "all-linear"}
        assert bool(refusal(tmp_path, **settings)) == lacks


def test_errors_are_printed_so(tmp_path: Path) -> None:
    cosine = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 2}}
    lines = [
        refusal(tmp_path, optim="adalomo"),
        refusal(tmp_path, optim="adamw_torch", optim_args="momentum=0.9"),
        refusal(tmp_path, **cosine),
        refusal(tmp_path, {"stage": 2}, optim="adagrad"),
    ]
    assert "".join(f"error: {line}\n" for line in lines) == printed("Optimizers")


def test_offload_takes_the_optimizers_of_the_page() -> None:
    sentence = prose(PAGE).partition("only `adamw_torch`")
    assert names(sentence[1] + sentence[2]) == list(_OFFLOADED)

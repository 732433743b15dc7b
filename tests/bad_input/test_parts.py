"""Mistakes in what is trained, and how: parts, rates, adapters, optimizers, schedules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.support import assert_one_line, files_under
from tests.support.launch import Entry

LORA = {"use_peft": True}
IN_RANKS: dict[str, tuple[dict[str, object], int, str]] = {
    # flags, exit code, message
    "part that no model has": (
        {"freeze": "vision"},
        2,
        "--freeze: freeze is 'vision'; allowed: vision_tower, projector, language_model",
    ),
    "everything frozen": (
        {"freeze": ["vision_tower", "projector", "language_model"]},
        3,
        "freeze names all that the model has: vision_tower, projector, language_model; leave out",
    ),
    "rate below zero": (
        {"vision_tower_learning_rate": -1},
        2,
        "--vision_tower_learning_rate: vision_tower_learning_rate is -1; allowed: 0 or more",
    ),
    "rate of a frozen part": (
        {"freeze": "projector", "projector_learning_rate": 1e-3},
        3,
        "projector_learning_rate: no projector trains; drop it, or let that part train",
    ),
    "rate of a part without adapters": (
        {**LORA, "vision_tower_learning_rate": 1e-3},
        3,
        "vision_tower_learning_rate: no vision_tower trains; drop it, or let that part train",
    ),
    "frozen part that LoRA was for": (
        {**LORA, "freeze": "language_model"},
        3,
        "LoRA finds no layer to adapt: freeze names language_model; write lora_vision: true",
    ),
    "rank for a layer that is none": (
        {**LORA, "lora_rank_pattern": '{"query": 4}'},
        3,
        "lora_rank_pattern: 'query' matches no adapted layer",
    ),
    "rank that is no number": (
        {**LORA, "lora_rank_pattern": '{"q_proj": "low"}'},
        3,
        "lora_rank_pattern: 'q_proj' is 'low'; allowed: a whole number, 1 or more",
    ),
    "kind of adapter that rewrites the base": (
        {**LORA, "init_lora_weights": "pissa"},
        2,
        "init_lora_weights is 'pissa'; allowed: gaussian, orthogonal",
    ),
    "optimizer whose package is missing": (
        {"optim": "galore_adamw", "optim_target_modules": "all-linear"},
        2,
        "optim galore_adamw: You need to install `galore_torch`",
    ),
    "argument that the optimizer lacks": (
        {"optim": "sgd", "optim_args": "momentun=0.9"},
        2,
        "optim_args: optim sgd has no momentun; allowed: momentum, dampening, nesterov",
    ),
    "argument that the schedule lacks": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"num_cycle": 2}'},
        2,
        "lr_scheduler_kwargs: lr_scheduler_type cosine has no num_cycle; allowed: num_cycles",
    ),
    "schedule without what it needs": (
        {"lr_scheduler_type": "cosine_with_min_lr"},
        2,
        "lr_scheduler_type cosine_with_min_lr: One of min_lr or min_lr_rate should be set",
    ),
    "schedule that no library has": (
        {"lr_scheduler_type": "cosin"},
        2,
        "lr_scheduler_type is 'cosin'; allowed: linear, cosine, ",
    ),
}


@pytest.mark.parametrize("case", IN_RANKS)
def test_mistake_in_what_is_trained_is_one_line(
    here: Path, entry: Entry, flags_of: Callable[[dict], list[str]], case: str
) -> None:
    values, code, message = IN_RANKS[case]
    before = files_under(here)
    assert_one_line(entry(flags_of(values)), code, message)
    assert files_under(here) == before


def test_part_that_a_text_model_lacks_is_one_line(
    here: Path,
    entry: Entry,
    flags_of: Callable[[dict], list[str]],
    tiny_model: Callable[[str], Path],
) -> None:
    (here / "rows.jsonl").write_text('{"text": "one row"}\n')
    flags = flags_of({"model_name_or_path": tiny_model("llama"), "freeze": "vision_tower"})
    message = "freeze: the model has no vision_tower; allowed: language_model"
    assert_one_line(entry(flags), 3, message)

"""Evaluations that cannot work: told in one line, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.support import assert_one_line, chat, files_under, write_rows
from tests.support.launch import Entry

MISTAKES: dict[str, tuple[dict[str, object], int, str]] = {
    # flags, exit code, message
    "early stopping without evaluation": (
        {"early_stopping_patience": 2},
        2,
        "early_stopping_patience without evaluation; set eval_strategy: steps, or epoch",
    ),
    "patience of none": (
        {"early_stopping_patience": 0},
        2,
        "early_stopping_patience is 0; allowed: 1 or more",
    ),
    "answers without evaluation": ({"eval_generations": 2}, 2, "eval_generations without"),
    "metric that is not measured": (
        {"eval_strategy": "epoch", "eval_size": 1, "metric_for_best_model": "bleu"},
        2,
        "metric_for_best_model is 'bleu'; allowed: loss, perplexity, mean_token_accuracy",
    ),
    "saved and evaluated at different steps": (
        {
            **{"eval_strategy": "steps", "eval_steps": 2, "eval_size": 1},
            **{"save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True},
        },
        2,
        "saving steps to be a round multiple of the evaluation steps",
    ),
    "nothing to evaluate on": (
        {"eval_strategy": "epoch"},
        2,
        "eval_strategy epoch without rows to evaluate on; set eval_size",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_evaluation_that_cannot_work_is_one_line(
    here: Path, entry: Entry, flags_of: Callable[[dict], list[str]], case: str
) -> None:
    values, code, message = MISTAKES[case]
    write_rows(here, [chat(images=["a.png"])] * 3)
    before = files_under(here)
    assert_one_line(entry(flags_of(values)), code, message)
    assert files_under(here) == before

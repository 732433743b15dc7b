"""Lines of progress."""

from __future__ import annotations

import time

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from sailplan.train.callbacks import PlainProgress


def test_evaluation_before_the_first_step_is_none_of_the_seconds_of_a_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress, args, control = PlainProgress(), TrainingArguments(), TrainerControl()
    state = TrainerState(global_step=4, max_steps=10, is_world_process_zero=True)

    progress.on_train_begin(args, state, control)
    now += 50
    progress.on_log(args, state, control, logs={"eval_loss": 2.0})
    for _ in range(2):
        progress.on_step_begin(args, state, control)
        now += 3
        state.global_step += 1
    progress.on_log(args, state, control, logs={"loss": 1.0})

    assert capsys.readouterr().out.splitlines() == [
        "step 4/10  eval_loss 2",
        "step 6/10  loss 1  3.00 s/step, 0.2 min left",
    ]

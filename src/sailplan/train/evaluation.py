"""What of an evaluation is settled before anything is loaded: the metric, when to stop early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sailplan.errors import RunFileError

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from sailplan.run.config import Run

METRICS = ("loss", "perplexity", "mean_token_accuracy")
"""What an evaluation measures, each a metric that `metric_for_best_model` may name."""

_HIGHER_IS_BETTER = ("mean_token_accuracy",)


def evaluation_arguments(run: Run) -> dict[str, Any]:
    """Returns the fields of `SFTConfig` that the run's evaluation decides.

    Raises:
        RunFileError: The metric is none that is measured, or something waits for evaluations that
            are switched off.
    """
    waiting = [
        name
        for name in ("early_stopping_patience", "eval_generations", "load_best_model_at_end")
        if run.is_set(name) and run.get(name)
    ]
    if waiting and run.get("eval_strategy") in (None, "no"):
        raise RunFileError(
            f"{waiting[0]} without evaluation", todo="set eval_strategy: steps, or epoch"
        )
    metric = run.get("metric_for_best_model")
    if metric is None and not run.get("early_stopping_patience"):
        return {"prediction_loss_only": True}
    metric = (metric or "loss").removeprefix("eval_")
    if metric not in METRICS:
        raise RunFileError(f"metric_for_best_model is {metric!r}", allowed=", ".join(METRICS))
    better = run.get("greater_is_better")
    return {
        "prediction_loss_only": True,
        "metric_for_best_model": metric,
        "greater_is_better": metric in _HIGHER_IS_BETTER if better is None else better,
    }


def early_stopping(run: Run) -> list[TrainerCallback]:
    """Returns the callback that stops a run early, where the run asks for it."""
    from transformers import EarlyStoppingCallback

    patience = run.get("early_stopping_patience")
    if not patience:
        return []
    threshold = run.get("early_stopping_threshold")
    return [EarlyStoppingCallback(patience, early_stopping_threshold=threshold)]

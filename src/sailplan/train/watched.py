"""Shows answers to held-out rows in trackers, each in its own way, through its own package.

The trackers are those that transformers' callbacks in the trainer write to. One that is not in
`_SHOWS` gets none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import (
    CometCallback,
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

NAME = "held_out_answers"
"""What trackers call the answers of one evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A held-out row, and what the model says to it now."""

    place: str
    """Where a user finds the row."""
    prompt: str
    reference: str
    """The answer in the data."""
    answer: str
    """The model's."""
    images: tuple[Path, ...]
    """Small copies of its images."""


class Trackers:
    """Shows answers in all trackers of a trainer; one that fails is left from then on.

    Args:
        handler: The trainer's, of its callbacks.
    """

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self._seen: set[str] = set()
        self._failed: set[str] = set()

    def show(self, step: int, answered: Sequence[Answered]) -> list[tuple[str, str]]:
        """Shows the answers of an evaluation, at the first one with images where they stay.

        Args:
            step: Optimizer steps that are done.
            answered: The rows.

        Returns:
            The trackers that have failed now, and why, in a line.
        """
        failures = []
        for callback in self._handler.callbacks:
            for kind, (name, shows) in _SHOWS.items():
                if not isinstance(callback, kind) or name in self._failed:
                    continue
                try:
                    shows(callback, step, answered, name not in self._seen)
                except Exception as error:  # of a package that has its own ways to fail
                    self._failed.add(name)
                    failures.append((name, f"{type(error).__name__}: {error}".partition("\n")[0]))
                self._seen.add(name)
        return failures


def _tensorboard(callback: Any, step: int, answered: Sequence[Answered], is_first: bool) -> None:
    writer = callback.tb_writer
    if writer is None:
        return
    for row in answered:
        tag = f"{NAME}/{row.place}"
        writer.add_text(tag, _as_code(row), step)
        for number, path in enumerate(row.images if is_first else (), start=1):
            name = tag if len(row.images) == 1 else f"{tag}, image {number}"
            writer.add_image(name, np.asarray(_opened(path)), step, dataformats="HWC")
    writer.flush()  # else a crash would lose the last two minutes


def _wandb(callback: Any, step: int, answered: Sequence[Answered], is_first: bool) -> None:
    wandb = callback._wandb
    if wandb is None or wandb.run is None:
        return
    columns, rows = _columns(answered, lambda path: wandb.Image(str(path)))
    table = wandb.Table(columns=["step", *columns], data=[[step, *row] for row in rows])
    pictures = {
        f"{NAME}/{row.place}": [wandb.Image(str(path)) for path in row.images]
        for row in answered
        if is_first and row.images
    }
    wandb.log({NAME: table, **pictures, "train/global_step": step})


def _trackio(callback: Any, step: int, answered: Sequence[Answered], *_: Any) -> None:
    trackio = callback._trackio
    columns, rows = _columns(answered, lambda path: trackio.Image(_opened(path)))
    table = trackio.Table(columns=columns, data=rows)
    trackio.log({NAME: table, "train/global_step": step})


def _mlflow(callback: Any, step: int, answered: Sequence[Answered], is_first: bool) -> None:
    mlflow = callback._ml_flow
    if mlflow.active_run() is None:
        return
    columns, rows = _columns(answered, lambda path: path.with_suffix(".png").name)
    table: dict[str, list[Any]] = {"step": [step] * len(rows)}
    for number, column in enumerate(columns):
        table[column] = [row[number] for row in rows]
    mlflow.log_table(table, f"{NAME}.json")  # it appends
    for path in [path for row in answered for path in row.images] if is_first else []:
        mlflow.log_image(_opened(path), f"{NAME}/{path.with_suffix('.png').name}")


def _comet(callback: Any, step: int, answered: Sequence[Answered], is_first: bool) -> None:
    experiment = callback._experiment
    if experiment is None:
        return
    for row in answered:
        experiment.log_text(_lines(row), step=step, metadata={"row": row.place})
        for path in row.images if is_first else ():
            experiment.log_image(_opened(path), name=f"{row.place} {path.stem}", step=step)


_SHOWS: Mapping[type[TrainerCallback], tuple[str, Callable[..., None]]] = {
    TensorBoardCallback: ("TensorBoard", _tensorboard),
    WandbCallback: ("W&B", _wandb),
    MLflowCallback: ("MLflow", _mlflow),
    TrackioCallback: ("Trackio", _trackio),
    CometCallback: ("Comet", _comet),
}


def _columns(
    answered: Sequence[Answered], shown: Callable[[Path], Any]
) -> tuple[list[str], list[list[Any]]]:
    """Returns the rows as a table, with a column for each image that any of them has."""
    most = max(len(row.images) for row in answered)
    names = [f"image {number}" for number in range(1, most + 1)] if most > 1 else ["image"] * most
    rows = [
        [
            row.place,
            *(shown(path) for path in row.images),
            *([None] * (most - len(row.images))),
            row.prompt,
            row.reference,
            row.answer,
        ]
        for row in answered
    ]
    return ["row", *names, "prompt", "reference", "answer"], rows


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _lines(row: Answered) -> str:
    return f"prompt: {row.prompt}\nreference: {row.reference}\nanswer: {row.answer}"


def _as_code(row: Answered) -> str:
    """Returns a row as a block that Markdown leaves as it is."""
    return "\n".join(f"    {line}" for line in _lines(row).splitlines())

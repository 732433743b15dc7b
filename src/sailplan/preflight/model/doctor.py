"""The doctor of a model: labels, image tokens, packing and names, each tried and not looked up.

A family that behaves as most do needs no line of code here. What does not hold is told with the
fact that `sailplan.model.families` would have to know.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sailplan.errors import SailplanError
from sailplan.imports import calm_libraries
from sailplan.preflight.doctor import Line, Lines
from sailplan.preflight.finding import of_error
from sailplan.preflight.model import reading, trial
from sailplan.progress import waiting
from sailplan.run.config import Run

NAMES = (
    *("model", "parts", "chat template", "labels", "image tokens", "batching", "training"),
    "merging",
)
"""Every line, in order."""

_LOOKS = (
    *(reading.told, reading.parts, reading.chat_template),
    *(reading.labels, reading.image_tokens, reading.batching),
)


def examine(run: Run) -> Iterator[Line]:
    """Tries what training rests on, and yields each line as soon as it is known.

    Args:
        run: Names the model, by `model_name_or_path`.
    """
    calm_libraries()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches for others, aloud
    lines = Lines(NAMES)
    try:
        with waiting("reading the model's config and processor"):
            found = reading.read(run)
    except SailplanError as error:
        told = of_error(error)
        yield lines.of(lambda: told)
        yield from lines.rest("the model cannot be read")
        return
    for look in _LOOKS:
        yield lines.of(partial(look, found))
    with tempfile.TemporaryDirectory(prefix="sailplan-model-") as name:
        folder = Path(name)
        environment = {**os.environ, **run.environment()}
        line = lines.of(lambda: trial.trains(found, folder, environment))
        yield line
        if line.finding.mark != "ok":
            yield from lines.rest("the small copy did not train")
            return
        yield lines.of(lambda: trial.merges(folder, environment))

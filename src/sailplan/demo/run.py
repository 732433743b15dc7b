"""The demo: draws data, builds a model, trains it twice, and measures each step."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sailplan.demo.catalogue import COLOURS, COUNTS, SHAPES, USER_PROMPT, write_catalogue
from sailplan.demo.recipe import Files, write_run_files
from sailplan.demo.score import STYLES, HeldOut, exact_match, load_held_out
from sailplan.errors import OutputError, StoppedError, TrainingError
from sailplan.hardware.detect import detect
from sailplan.launcher import local
from sailplan.launcher.command import Launch, command
from sailplan.run.config import Run

NUM_TRAIN, NUM_TEST = 2400, 256

CHANCE = 1 / (len(COLOURS) * len(SHAPES) * len(COUNTS))
"""Of guessing what is in a picture."""

LEAST_EXACT_MATCH = 0.95
MOST_SHUFFLED = 0.05
"""Well above what chance gives in 256 rows, far below what looking gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One line of the table."""

    name: str
    """What was done."""
    seconds: float
    """How long it took."""
    scores: dict[str, float]
    """Exact match by style, on the held-out rows."""
    shuffled: dict[str, float]
    """The same with the pictures shuffled among the rows."""


def run_demo(folder: Path, *, seed: int = 0) -> Path:
    """Runs the whole loop under `folder` and prints a table of what was measured.

    Returns:
        The page that shows the second step: curves, and answers side by side.

    Raises:
        OutputError: `folder` cannot be written, or is not empty.
        TrainingError: A training failed, or its aim was missed.
    """
    start = time.monotonic()
    files = prepare_demo(folder, seed=seed)
    held_out = load_held_out(Run.from_file(files.full_run))

    base = _measure("before training", files.model, held_out, since=start)
    start = time.monotonic()
    launch = _train(files.full_run)
    name = f"full, {launch.strategy} × {launch.processes}"
    full = _measure(name, files.full_output, held_out, since=start)
    start = time.monotonic()
    _train(files.qlora_run)
    qlora = _measure("then QLoRA × 1", files.qlora_output, held_out, since=start, load_in_4bit=True)
    start = time.monotonic()
    _merge(files.qlora_output, files.merged)
    merged = _measure("merged", files.merged, held_out, since=start)

    _print_table((base, full, qlora, merged))
    check_aim(full, "description")
    check_aim(qlora, "listing")
    check_aim(merged, "listing")
    return _show(files)


def prepare_demo(folder: Path, *, seed: int = 0) -> Files:
    """Makes what the demo trains under `folder`: the data, the model before training, the runs.

    Raises:
        OutputError: `folder` cannot be written, or is not empty.
    """
    files = Files(folder=_empty(folder))
    write_catalogue(files.catalogue, num_train=NUM_TRAIN, num_test=NUM_TEST, seed=seed)
    _say(f"drew {NUM_TRAIN} products, and {NUM_TEST} to test on: {files.catalogue}")
    write_run_files(files)
    num_parameters = _build_model(files, seed)
    _say(f"built a Qwen2-VL of {num_parameters:,} parameters: {files.model}")
    return files


def _empty(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from None
    if not is_empty:
        raise OutputError(f"{folder} is not empty", todo="name a new folder")
    return folder


def _build_model(files: Files, seed: int) -> int:
    from sailplan.demo.model import build_model

    lines = (files.catalogue / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [
        "\n".join([USER_PROMPT.format_map(row), row["description"], row["listing"]]) for row in rows
    ]
    return int(build_model(files.model, texts=texts, seed=seed).num_parameters())


def _train(run_file: Path) -> Launch:
    """Launches a run file as `sailplan train` does."""
    _say(f"training: sailplan train {run_file}")
    run = Run.from_file(run_file)
    environment = {**os.environ, **run.environment()}
    machine = detect(environment)
    launch = command(run, machine, port=local.meeting_port(run), environment=environment)
    _say(*launch.notes)
    local.write_files(run, launch, machine)
    code = local.carry_out(launch, environment)
    if code == StoppedError.exit_code:
        raise StoppedError("the demo was stopped; started again, it begins anew")
    if code:
        raise TrainingError(f"training by {run_file} ended with exit code {code} (see above)")
    return launch


def _merge(adapter: Path, output: Path) -> None:
    """Makes one model of an adapter and its base, as `sailplan merge` does."""
    from sailplan.merge.job import prepare
    from sailplan.merge.output import carry_out
    from sailplan.merge.verify import verify

    _say(f"merging: sailplan merge {adapter} --output {output}")
    job = prepare(adapter)
    verify(job, output, carry_out(job, output), "sample")


def _show(files: Files) -> Path:
    """Compares base, adapter and merged model, and writes the page, as users do."""
    from sailplan.evaluate.compare import compare
    from sailplan.evaluate.sides import sides_of
    from sailplan.evaluate.tasks import Request
    from sailplan.report.gather import gather
    from sailplan.report.page.render import write

    _say(f"comparing: sailplan compare {files.qlora_output} --tuned {files.qlora_output}")
    run = Run.from_file(files.qlora_run)
    tuned = [str(files.qlora_output), str(files.merged)]
    compare(run, Request(sides=sides_of(run, tuned=tuned)))
    return write(gather(files.qlora_output))


def _measure(
    name: str, model: Path, held_out: HeldOut, *, since: float, load_in_4bit: bool = False
) -> Step:
    from sailplan.evaluate.speaker import load_speaker

    seconds = time.monotonic() - since
    speaker = load_speaker(str(model), load_in_4bit=load_in_4bit, use_cpu=True)
    return Step(
        name=name,
        seconds=seconds,
        scores=exact_match(speaker, held_out, label="scoring"),
        shuffled=exact_match(speaker, held_out.shuffled(), label="scoring, pictures shuffled"),
    )


def _print_table(steps: Sequence[Step]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Exact match on {NUM_TEST} products with unseen pictures")
    table.add_column("training")
    for heading in ("description", "shuffled", "listing", "shuffled", "seconds"):
        table.add_column(heading, justify="right")
    for step in steps:
        scores = [f"{part[style]:.1%}" for style in STYLES for part in (step.scores, step.shuffled)]
        table.add_row(step.name, *scores, f"{step.seconds:.0f}")
    Console().print(table)
    print(
        "full learns to write the description, then QLoRA the listing; merged is that in one "
        "model.\nShuffled: each product has another's picture, which leaves a model that looks to "
        f"chance, {CHANCE:.1%}."
    )


def check_aim(step: Step, style: str) -> None:
    """Holds a step to its aim: to answer right, and by looking.

    Raises:
        TrainingError: It was missed.
    """
    if step.scores[style] < LEAST_EXACT_MATCH:
        raise TrainingError(
            f"{step.name}: {step.scores[style]:.1%} of the {style}s are right",
            allowed=f"{LEAST_EXACT_MATCH:.0%} or more",
        )
    if step.shuffled[style] > MOST_SHUFFLED:
        raise TrainingError(
            f"{step.name}: {step.shuffled[style]:.1%} right without the right picture",
            allowed=f"{MOST_SHUFFLED:.0%} or less",
        )


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)

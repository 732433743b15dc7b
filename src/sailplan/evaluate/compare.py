"""Has the sides of a comparison asked, each rank its share, and puts together what they said."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.errors import OutputError, TrainingError
from sailplan.evaluate.answers import answers, batches
from sailplan.evaluate.comparison import Comparison, Row, Side, write_comparison
from sailplan.evaluate.generate import Sampling
from sailplan.evaluate.journal import Journal, alone
from sailplan.evaluate.losses import row_losses
from sailplan.evaluate.scores.summary import score_row, summarise
from sailplan.evaluate.scores.texts import are_json
from sailplan.evaluate.speaker import Speaker, put_on
from sailplan.evaluate.tasks import Request, Task, tasks_of
from sailplan.model.load import load_model
from sailplan.model.precision import mixed_precision
from sailplan.pages.pictures import keep
from sailplan.progress import track
from sailplan.run.directory import RunDirectory

if TYPE_CHECKING:
    from sailplan.evaluate.scores.custom import Custom
    from sailplan.run.config import Run


def compare(
    run: Run,
    request: Request,
    *,
    custom: Sequence[Custom] = (),
    asking: Callable[[Sequence[Task], Journal], None] | None = None,
) -> Comparison:
    """Compares models on rows of a run, and writes down what it finds in the run's directory.

    Args:
        run: The run; its environment must be set.
        request: What is compared.
        custom: The user's own scores.
        asking: Has everything answered and written down; `ask` in this process where not given.

    Raises:
        SailplanError: A model, a row or a score is wrong, or the directory cannot be written.
    """
    directory = RunDirectory.of(run)
    tasks = tasks_of(run, request)
    for note in dict.fromkeys(note for task in tasks for note in task.notes):
        print(note, file=sys.stderr)
    with alone(directory.comparisons):
        journal = Journal(folder=directory.comparisons)
        journal.read()
        (asking or ask)(tasks, journal)
        try:
            images = directory.comparison_images
            found = conclude(tasks, journal, request, custom, images=images)
            write_comparison(directory.comparison_file, found)
        except OSError as error:
            got = f"cannot write {error.filename or directory.comparisons}: {error.strerror}"
            raise OutputError(got, todo="the same command goes on") from None
    return found


def ask(tasks: Sequence[Task], journal: Journal, *, rank: int = 0, num_ranks: int = 1) -> None:
    """Asks what nobody has answered yet, this rank's share of it, and writes it down.

    Args:
        tasks: What is asked.
        journal: What has been answered, read already.
        rank: Which share.
        num_ranks: Of how many.

    Raises:
        SailplanError: A model cannot be loaded or asked.
    """
    for task in tasks:
        shares = [(side, *_share(task, side, journal, rank, num_ranks)) for side in task.load.sides]
        left = [share for share in shares if share[1] or share[2]]
        if not left:
            continue
        print(f"loading {task.load.run.get('model_name_or_path')}", file=sys.stderr, flush=True)
        model = load_model(task.load.run, added_ids=task.added_ids)
        for side, losing, parts in left:
            tuned = put_on(model, Path(side.adapter)) if side.adapter else model
            speaker = Speaker.of(tuned, task.processor, chat=task.chat)
            _take_losses(task, side, speaker, losing, journal)
            _take_answers(task, side, speaker, parts, journal)
            if side.adapter:
                model = tuned.unload()
            del tuned, speaker
        del model
        _free()


def num_batches(tasks: Sequence[Task]) -> int:
    """Returns how many batches the largest task has; of more ranks some would have nothing."""
    sizes = [task.load.run.generation.batch_size for task in tasks]
    rows = [max(len(task.numbers), len(task.loss_numbers)) for task in tasks]
    return max(-(-count // size) for count, size in zip(rows, sizes, strict=True))


def conclude(
    tasks: Sequence[Task],
    journal: Journal,
    request: Request,
    custom: Sequence[Custom],
    *,
    images: Path,
) -> Comparison:
    """Returns the comparison of what was answered, and keeps small copies of the images.

    Args:
        tasks: What was asked.
        journal: What has been answered.
        request: What is compared.
        custom: The user's own scores.
        images: The folder for small copies of the images.

    Raises:
        TrainingError: Something has not been answered.
    """
    of_side = {side.name: task for task in tasks for side in task.load.sides}
    names = [side.name for side in request.sides]
    said, losses = {}, {}
    for name in names:
        keys = [row.key for row in of_side[name].answers[name]]
        losing = of_side[name].losses[name]
        if missing := journal.missing([*keys, *losing]):
            got = f"{len(missing)} of {len(keys) + len(losing)} questions to {name} are open"
            raise TrainingError(got, todo="the same command goes on with them")
        said[name] = [journal[key] for key in keys]
        losses[name] = [journal[key] for key in losing]
    first = of_side[names[0]]
    questions = [row.asked for row in first.answers[names[0]]]
    as_json = are_json([asked.answer for asked in questions])
    images.mkdir(exist_ok=True)
    row_of_loss = {int(row): index for index, row in enumerate(first.loss_numbers)}
    rows = []
    for index, asked in enumerate(questions):
        about = {"place": asked.place, "prompt": asked.prompt, "num_images": len(asked.references)}
        scores = {
            name: score_row(of[index], asked.answer, about, custom, as_json=as_json)
            for name, of in said.items()
        }
        at = row_of_loss.get(first.numbers[index])
        if at is not None:
            for name, of in losses.items():
                scores[name]["loss"] = of[at].loss_sum / max(1, of[at].num_tokens)
        rows.append(
            Row(
                place=asked.place,
                prompt=asked.prompt,
                reference=asked.answer,
                images=tuple(keep(image, images) for image in asked.images()),
                answers={name: of[index] for name, of in said.items()},
                scores=scores,
            )
        )
    return Comparison(
        sides=request.sides,
        rows=tuple(rows),
        scores=summarise(rows, names, losses),
        split=request.split,
        num_held_out=first.num_held_out,
        num_loss_rows=len(first.loss_numbers),
        generation=first.load.run.generation.model_dump(),
        made_at=time.time(),
    )


def _share(
    task: Task, side: Side, journal: Journal, rank: int, num_ranks: int
) -> tuple[list[int], list[list[Any]]]:
    """Returns what this rank still has to do for one side: rows of losses, and batches.

    Shares do not depend on what is done already, so that no row is done by two ranks which began
    at different times.
    """
    keys = task.losses[side.name]
    ordered = sorted(range(len(keys)), key=lambda index: (-task.lengths[index], index))
    losing = [index for index in ordered[rank::num_ranks] if keys[index] not in journal]
    parts = batches(task.answers[side.name], task.load.run.generation.batch_size)
    left = [[row for row in part if row.key not in journal] for part in parts[rank::num_ranks]]
    return losing, [part for part in left if part]


def _take_losses(
    task: Task, side: Side, speaker: Speaker, indices: Sequence[int], journal: Journal
) -> None:
    if not indices:
        return
    keys, size = task.losses[side.name], task.load.run.generation.batch_size
    found = row_losses(
        speaker.model,
        task.collate,
        task.loss_rows.select(indices),
        batch_size=size,
        autocast=mixed_precision(task.load.run),
    )
    batch = {}
    for position, loss in track(found, label=f"{side.name}: loss", total=len(indices)):
        batch[keys[indices[position]]] = loss
        if len(batch) == size:
            journal.add("loss", batch)
            batch = {}
    if batch:
        journal.add("loss", batch)


def _take_answers(
    task: Task, side: Side, speaker: Speaker, parts: Sequence[Sequence[Any]], journal: Journal
) -> None:
    if not parts:
        return
    settings = task.load.run.generation
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )

    def written() -> Iterator[str]:
        for found in answers(speaker, parts, sampling):
            journal.add("answer", found)
            yield from found

    for _ in track(written(), label=f"{side.name}: answers", total=sum(map(len, parts))):
        pass


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""All that is told of a run, gathered from its directory alone.

Any file may be missing, cut off, of another version, or something else: the part that it would fill
is empty then, and nothing is made up.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailplan import __version__
from sailplan.data.facts import Split
from sailplan.evaluate.comparison import Comparison
from sailplan.plan.choice.explain import change, gib
from sailplan.plan.measured import Measured
from sailplan.plan.record import Plan
from sailplan.report.curves import curves_of, marks_of
from sailplan.report.facts import facts_of
from sailplan.report.launches import attempts_of, launches_of
from sailplan.report.reading import (
    fits,
    json_of,
    mapping_of,
    objects_of,
    or_else,
    record_of,
    text_of,
    told,
)
from sailplan.report.record import Memory, Report, Said, Watched
from sailplan.run.config import Run
from sailplan.run.metrics import Series, read_series
from sailplan.run.paths import RunPaths
from sailplan.run.state import read_state
from sailplan.supervise.runs import is_run, look_at

_MOST_WATCHED = 64
"""Rows of `generations.jsonl` that are told of; a run asks a few."""


def is_there(directory: Path) -> bool:
    """Says whether a folder has something to report: a run, or a comparison before one."""
    return is_run(directory) or RunPaths(directory).comparison_file.is_file()


def gather(directory: Path, *, asked: Run | None = None) -> Report:
    """Returns what is told of a run, from its directory alone.

    Args:
        directory: The run's.
        asked: The run as its user's file has it; told of where the directory has no run file yet.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100  # a link keeps the run's name
    paths = RunPaths(directory)
    run = or_else(asked, lambda: Run.from_file(paths.run_file))
    plan = read_checked_plan(paths.plan_file)
    state, why = or_else(("unknown", ""), lambda: _standing(directory))
    series = or_else(Series(), lambda: read_series(paths.metrics_file))
    attempts = attempts_of(paths.attempts_file)
    revisions = json_of(paths.revisions_file)
    launches = launches_of(attempts, or_else(None, lambda: read_state(paths.state_file)))
    data = data_of(json_of(paths.data_file))
    return Report(
        name=directory.name,
        path=str(directory),
        made_at=time.time(),
        version=__version__,
        state=state,
        why=told(why),
        facts=or_else(
            (),
            lambda: facts_of(
                run,
                plan=plan,
                environment=mapping_of(json_of(paths.environment_file)),
                revisions=revisions if isinstance(revisions, list) else (),
                last=attempts[-1] if attempts else None,
            ),
        ),
        command=told(text_of(paths.command_file).strip()),
        curves=curves_of(series.records),
        marks=marks_of(series, attempts),
        launches=tuple(map(told, launches)),
        memory=memory_of(plan, record_of(Measured, json_of(paths.measured_file))),
        reasons=or_else((), lambda: reasons_of(plan)),
        splits=data.splits,
        data_notes=tuple(map(told, data.notes)),
        comparison=record_of(Comparison, json_of(paths.comparison_file)),
        watched=watched_of(objects_of(paths.generations_file)),
    )


def _standing(directory: Path) -> tuple[str, str]:
    found = look_at(directory)
    return found.state, found.why


def read_checked_plan(path: Path) -> Plan | None:
    """Returns a plan that was written; None where it is none of this version."""
    fields = mapping_of(json_of(path))
    known = {field.name for field in dataclasses.fields(Plan)}
    return record_of(Plan, {name: value for name, value in fields.items() if name in known})


def memory_of(plan: Plan | None, measured: Measured | None) -> Memory | None:
    """Returns what was planned of memory, and what was measured on a GPU; None without a plan.

    Args:
        plan: The run's.
        measured: What its first steps took.
    """
    if plan is None:
        return None
    memory = plan.chosen.memory
    kinds = [(kind, size) for kind, size in plan.chosen.peak.items() if kind != "context" and size]
    planned = f"planned: peak {gib(memory.peak_bytes)} active, ± {memory.band:.0%}"
    return Memory(
        device=measured.device if measured is not None else plan.card.gpu,
        parts=tuple(sorted(kinds, key=lambda part: -part[1])),
        planned_bytes=memory.peak_bytes,
        card_bytes=plan.card.card_bytes,
        active_bytes=measured.active_bytes if measured is not None else None,
        reserved_bytes=measured.reserved_bytes if measured is not None else None,
        words=measured.words() if measured is not None else planned,
    )


def reasons_of(plan: Plan | None) -> tuple[str, ...]:
    """Returns how a run is divided and why, in the plan's own lines."""
    if plan is None:
        return ()
    chosen = plan.chosen
    share = chosen.needed_bytes / chosen.card_bytes
    needs = f"{gib(chosen.needed_bytes)} of {gib(chosen.card_bytes)} per GPU ({share:.0%})"
    corrected = [f"corrected by what {plan.corrected_by} measured"] if plan.corrected_by else []
    return (
        f"{chosen.words}: {needs}",
        *plan.reasons,
        *(f"would fit: {change(one)}" for one in plan.changes),
        *corrected,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What a run's directory says of its data."""

    splits: tuple[Split, ...] = ()
    notes: tuple[str, ...] = ()


def data_of(found: Any) -> Data:
    """Returns what the JSON of a run's data says."""
    fields = mapping_of(found)
    splits, notes = fields.get("splits"), fields.get("notes")
    read = [record_of(Split, one) for one in splits] if isinstance(splits, list) else []
    return Data(
        splits=tuple(split for split in read if split is not None),
        notes=tuple(note for note in notes if isinstance(note, str))
        if isinstance(notes, list)
        else (),
    )


def watched_of(records: Iterable[Mapping[str, Any]]) -> tuple[Watched, ...]:
    """Returns the watched rows, each with its answers in the order of the steps.

    An evaluation that was done again after a rollback has answered again: its last answer counts.

    Args:
        records: One for each answer, in the order in which they were written.
    """
    folder = RunPaths(Path()).generations
    rows: dict[str, Watched] = {}
    answers: dict[str, dict[int, str]] = {}
    for record in records:
        row, images = record.get("row"), record.get("images", [])
        texts = (row, record.get("prompt"), record.get("reference"), record.get("answer"))
        if not all(isinstance(text, str) for text in texts) or not fits(int, record.get("step")):
            continue
        place, prompt, reference, answer = map(str, texts)
        if place not in rows and len(rows) == _MOST_WATCHED:
            continue
        names = [name for name in images if fits(str, name)] if isinstance(images, list) else []
        rows[place] = Watched(
            place=place,
            prompt=prompt,
            reference=reference,
            images=tuple((folder / name).as_posix() for name in names),
            said=(),
        )
        answers.setdefault(place, {})[record["step"]] = answer
    return tuple(
        dataclasses.replace(
            row,
            said=tuple(Said(step=step, text=text) for step, text in sorted(answers[place].items())),
        )
        for place, row in rows.items()
    )

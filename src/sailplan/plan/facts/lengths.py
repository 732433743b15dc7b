"""How long a run's rows are, measured on a sample with the run's own encoder, or assumed.

Everything heavy is imported where it is used: with the facts kept from an earlier plan, nothing is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.errors import DataError, ModelError, RunFileError
from sailplan.hub.repository import MAIN, Repository, datasets_cache
from sailplan.hub.revisions import cached_commit
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.facts.model import ModelFacts
from sailplan.plan.store import cached

if TYPE_CHECKING:
    from sailplan.run.config import Run

SAMPLED_ROWS = 512
"""Rows that are encoded, spread over all of them."""

ASSUMED_TOKENS = 2048
"""Of each row where the data is not at hand, an image's among them."""
ASSUMED_IMAGE = (768, 1024)
"""Height and width of that image."""
ASSUMED_TEXT_TOKENS = 512
"""Where an image alone takes about as many as `ASSUMED_TOKENS`."""

CHARACTERS_PER_TOKEN = 3.5
"""Where the data is at hand and the tokenizer is not."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

_IRRELEVANT = ("learning_rate", "output_dir", "num_train_epochs", "max_steps", "optim", "method")
_IRRELEVANT_BEGINNINGS = ("lora_", "load_in_", "bnb_", "use_", "per_device_", "gradient_", "save_")

ImageTokens = Callable[[int, int], int]
"""Height and width to the tokens of an image."""


def data_facts(run: Run, model: ModelFacts, image_tokens: ImageTokens) -> DataFacts:
    """Returns what is known of the rows of a run.

    Args:
        run: The run.
        model: Its model.
        image_tokens: Counts the tokens of an image where there is no processor to ask.

    Raises:
        DataError: The data is here and cannot be read at all.
    """
    if not _is_here(run):
        return assumed_facts(run, model, ASSUMED_TOKENS)
    key = json.dumps([_fields(run), list(_stamps(run, model)), model.name], default=str)
    return cached(DataFacts, f"rows {key}", lambda: _measured(run, model, image_tokens))


def _is_here(run: Run) -> bool:
    """Says whether rows can be read without asking the hub."""
    if run.get("dataset_streaming"):
        return False
    names = [entry["path"] for entry in run.get("datasets") or ()] or [run.get("dataset_name")]
    return all(name and (_local(name) or _prepared(run, name)) for name in names)


def _local(name: str) -> bool:
    path = Path(name).expanduser()
    return path.exists() or any(mark in name for mark in "*?[")


def _prepared(run: Run, name: str) -> bool:
    revision = run.get("dataset_revision") or MAIN
    return cached_commit(Repository(kind="dataset", name=name, revision=revision)) is not None


def _fields(run: Run) -> dict[str, Any]:
    """Returns the fields that rows and their lengths may depend on."""
    return {
        name: value
        for name, value in sorted(run.explicit.items())
        if name not in _IRRELEVANT and not name.startswith(_IRRELEVANT_BEGINNINGS)
    }


def _stamps(run: Run, model: ModelFacts) -> Iterator[tuple[str, int, int]]:
    """Yields name, size and time of the files that rows and their tokens come from."""
    names = [entry["path"] for entry in run.get("datasets") or ()] or [run.get("dataset_name")]
    roots = [Path(name).expanduser() for name in names]
    roots += [datasets_cache()] if not all(root.exists() for root in roots) else []
    roots += [Path(run.get("processor_name_or_path") or model.folder or "/nonexistent")]
    for root in roots:
        files: Iterable[Path] = sorted(root.iterdir()) if root.is_dir() else [root]
        for path in files:
            if path.exists():
                status = path.stat()
                yield str(path), status.st_size, status.st_mtime_ns


def _measured(run: Run, model: ModelFacts, image_tokens: ImageTokens) -> DataFacts:
    from sailplan.imports import quick_imports

    with quick_imports():
        from sailplan.data.formats import resolve_format
        from sailplan.data.images import image_opener
        from sailplan.data.sources import load_rows
        from sailplan.plan.facts.sampled import characters, encoded

    rows = load_rows(run)
    format, opener = resolve_format(run, rows), image_opener(run, rows)
    try:
        if _has_tokenizer(run, model):
            return _judged(run, encoded(run, rows, format, opener, SAMPLED_ROWS))
        why = f"{model.name} has no tokenizer here"
    except (ModelError, RunFileError) as error:
        why = str(error)
    facts = characters(rows, format, opener, SAMPLED_ROWS, image_tokens, CHARACTERS_PER_TOKEN)
    note = f"lengths are a guess of {CHARACTERS_PER_TOKEN:g} characters a token: {why}"
    return _judged(run, replace(facts, notes=(note, *facts.notes)))


def _has_tokenizer(run: Run, model: ModelFacts) -> bool:
    if run.get("processor_name_or_path"):
        return True
    folder = model.folder
    return folder is not None and any((folder / name).is_file() for name in _TOKENIZERS)


def _judged(run: Run, facts: DataFacts) -> DataFacts:
    """Returns the facts of the rows that are trained on: those within `max_length`."""
    limit = run.get("max_length")
    images = facts.image_tokens or (0,) * len(facts.lengths)
    kept = [pair for pair in zip(facts.lengths, images, strict=True) if pair[0] <= (limit or 1e9)]
    over = len(facts.lengths) - len(kept)
    notes = list(facts.notes)
    if facts.rows and facts.rows > facts.sampled:
        notes.append(
            f"lengths are of {facts.sampled} rows of {facts.rows}, spread over all, and micro "
            "batches are dealt of rows drawn from them: a longer one would need more memory"
        )
    if not over:
        return replace(facts, notes=tuple(notes))
    if run.get("over_length") == "truncate_text":
        cut = tuple(min(length, limit) for length in facts.lengths)
        return replace(facts, lengths=cut, notes=tuple(notes))
    if not kept:
        got = f"every sampled row is longer than max_length {limit}"
        raise DataError(got, todo="raise max_length")
    fitting, images = zip(*kept, strict=True)
    rows = facts.rows and round(facts.rows * len(fitting) / len(facts.lengths))
    notes.append(f"about {over / len(facts.lengths):.1%} of the rows are longer than {limit}")
    return replace(facts, rows=rows, lengths=fitting, image_tokens=images, notes=tuple(notes))


def assumed_facts(run: Run, model: ModelFacts, tokens: int) -> DataFacts:
    """Returns facts that are assumptions, and says them.

    Args:
        run: The run; its `max_length` counts before `tokens`.
        model: The model.
        tokens: Of each row.
    """
    sees = model.image_processor is not None or "vision_config" in model.config
    height, width = ASSUMED_IMAGE if sees else (0, 0)
    length = int(run.get("max_length") or tokens)
    how = f"every row has {length} tokens{' (max_length)' if run.get('max_length') else ''}"
    if sees:
        how += f", an image of {width}×{height} pixels among them"
    return DataFacts(
        rows=None,
        lengths=(length,),
        trained_share=0.5,
        images_per_row=int(sees),
        image_height=height,
        image_width=width,
        sampled=0,
        notes=(f"the data is not at hand; assumed: {how}, half of them trained",),
    )

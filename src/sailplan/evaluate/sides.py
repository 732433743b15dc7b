"""Which models are compared, what files they are made of, and how each is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from sailplan.errors import CheckpointError, RunFileError
from sailplan.evaluate.comparison import Side
from sailplan.evaluate.speaker import base_model
from sailplan.merge.source import Source, base_of, recognise
from sailplan.run.directory import RunDirectory

if TYPE_CHECKING:
    from sailplan.run.config import Run

BASE = "base"
"""The name of the first side."""

_QUANTISATION = {"load_in_4bit": "nf4", "load_in_8bit": "int8"}
_WEIGHTS = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model")


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Sides that answer over one loaded model, one after another."""

    run: Run
    """How the model and its processor are loaded."""
    sides: tuple[Side, ...]
    """The plain model first, where it is a side, then those with an adapter on top."""


def sides_of(
    run: Run, *, base: str | None = None, tuned: Sequence[str] = (), adapters: Sequence[str] = ()
) -> tuple[Side, ...]:
    """Returns the models that are compared, the base first.

    Args:
        run: The run.
        base: A model in place of the run's.
        tuned: Folders of tuned models, checkpoints and adapters, or their names in the run's
            directory. Where neither these nor `adapters` are given, it is what the run has saved,
            else its last whole checkpoint; a run that has saved nothing leaves the base alone.
        adapters: The same for adapters that go on top of `base`.

    Raises:
        CheckpointError: A folder holds no weights, or only ranks' shards of them.
        RunFileError: Neither run nor caller names a base.
    """
    model = base or run.get("model_name_or_path")
    if not model:
        raise RunFileError("model_name_or_path is missing", todo="write it, or name --base")
    named = [(Path(name).name or name, _saved(run, name), False) for name in tuned]
    named += [(Path(name).name or name, _saved(run, name), True) for name in adapters]
    if not named:
        own = _own(run)
        named = [] if own is None else [("tuned", own, base is not None)]
    sides = [Side(name=BASE, model=str(model), words=_quantised(run))]
    for name, source, on_base in named:
        name = _unlike(name, [side.name for side in sides])
        if source.kind == "adapter":
            under = str(model) if on_base else _under(run, source)
            words = ", ".join(filter(None, [_quantised(run), "adapter"]))
            sides.append(Side(name=name, model=under, adapter=str(source.folder), words=words))
        elif on_base:
            raise CheckpointError(f"{source.folder} is no adapter", todo="name it by --tuned")
        else:
            sides.append(Side(name=name, model=str(source.folder)))
    return tuple(sides)


def loads_of(run: Run, sides: Sequence[Side]) -> Iterator[Load]:
    """Yields what has to be loaded, in the order of the sides.

    An adapter is put onto the model that has just answered without it, and taken off again for the
    next one. One that trains biases changes the model for good, and has it to itself.
    """
    groups: dict[tuple[str, bool, str], list[Side]] = {}
    for side in sides:
        is_own = side.model == run.get("model_name_or_path")
        quantised = bool(side.adapter) or is_own or side.name == BASE
        alone = side.adapter if side.adapter and _trains_biases(Path(side.adapter)) else ""
        groups.setdefault((side.model, quantised, alone), []).append(side)
    for (model, quantised, _), group in groups.items():
        ordered = sorted(group, key=lambda side: side.adapter is not None)
        yield Load(run=_loaded_as(run, model, quantised=quantised), sides=tuple(ordered))


def fingerprint(run: Run, side: Side) -> str:
    """Returns what tells one side's weights from others: names, sizes and times of its files."""
    parts: list[Any] = [side.model, side.adapter, run.get("model_revision")]
    parts += [run.get(name) for name in (*_QUANTISATION, "bnb_4bit_quant_type", "dtype")]
    for folder in filter(None, (side.model, side.adapter)):
        files = sorted(file for kind in _WEIGHTS for file in Path(folder).expanduser().glob(kind))
        status = [(file.name, file.stat()) for file in files]
        parts.append([(name, found.st_size, found.st_mtime_ns) for name, found in status])
    return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())


def _saved(run: Run, name: str) -> Source:
    """Returns what lies at a path, or under that name in the run's directory."""
    path, inside = Path(name).expanduser(), RunDirectory.of(run).path / name
    return _whole(inside if not path.exists() and inside.exists() else path)


def _own(run: Run) -> Source | None:
    """Returns what the run has saved; None where that is nothing yet."""
    directory = RunDirectory.of(run)
    if not directory.path.is_dir():
        return None
    marks = ("config.json", "adapter_config.json")
    if not any((directory.path / mark).is_file() for mark in marks) and not directory.checkpoints():
        return None
    return _whole(directory.path)


def _whole(path: Path) -> Source:
    source, _ = recognise(path)
    if source.kind in ("zero", "dcp"):
        raise CheckpointError(
            f"{source.folder} holds ranks' shards, which answer nothing",
            todo=f"make one model of them: sailplan merge {path} --output DIR; then --tuned DIR",
        )
    return source


def _under(run: Run, adapter: Source) -> str:
    """Returns the model below an adapter: by the run's name for it where it is the same one."""
    written = run.get("model_name_or_path")
    named = base_model(adapter.home)
    if written and (named == written or _same_folder(named, written)):
        return str(written)
    return str(base_of(adapter, None, trust_remote_code=bool(run.get("trust_remote_code"))))


def _same_folder(one: str, other: str) -> bool:
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return first.is_dir() and second.is_dir() and first.resolve() == second.resolve()


def _loaded_as(run: Run, model: str, *, quantised: bool) -> Run:
    """Returns the run with which a model is loaded to be asked."""
    explicit = dict(run.explicit)
    explicit["model_name_or_path"] = model
    explicit.setdefault("dtype", "auto")
    if run.launch.cpu:
        explicit["use_cpu"] = True
    if model != run.get("model_name_or_path"):
        # It has what it was saved with: its own chat template, and no commit of the base's.
        for name in ("processor_name_or_path", "processor_revision", "model_revision"):
            explicit.pop(name, None)
    if not quantised:
        for name in _QUANTISATION:
            explicit.pop(name, None)
    return replace(run, explicit=explicit)


def _trains_biases(adapter: Path) -> bool:
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        return bool(config.get("bias", "none") != "none")
    except (OSError, ValueError, AttributeError):
        return False  # whoever loads it says what is wrong


def _quantised(run: Run) -> str:
    return next((words for name, words in _QUANTISATION.items() if run.get(name)), "")


def _unlike(name: str, taken: Sequence[str]) -> str:
    """Returns a name that no other side has."""
    names = [name, *(f"{name} ({number})" for number in range(2, len(taken) + 3))]
    return next(one for one in names if one not in taken)

"""From a file and flags to the parts of a `Run`: translated, typed, merged, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sailplan import files
from sailplan.errors import RunFileError
from sailplan.run import sanity
from sailplan.run.accelerate_flags import accelerate_flags
from sailplan.run.blocks import NESTED, GenerationBlock, LaunchBlock, build_block, kind_of
from sailplan.run.fields import Field, FieldType, field_table, package_folder
from sailplan.run.legacy import legacy_names, translate
from sailplan.run.method import AUTO, MICRO_BATCH, settle
from sailplan.run.nearest import nearest
from sailplan.run.overrides import read_flags
from sailplan.run.slurm_block import SlurmBlock
from sailplan.run.values import Entry, Raw, Scalar, coerce, shown
from sailplan.run.yaml_file import read_entries

_BLOCKS: Mapping[str, type[BaseModel]] = {
    "launch": LaunchBlock,
    "slurm": SlurmBlock,
    "generation": GenerationBlock,
}
_MAPPINGS = (*_BLOCKS, *(f"{name}.{inner}" for name in NESTED for inner in NESTED[name]))
_KEYS = ("env", "accelerate_config", *_BLOCKS)
"""Keys beside the fields."""

_OWNED_BY_SFT_CONFIG = {
    "mixed_precision": "bf16 and fp16",
    "gradient_clipping": "max_grad_norm",
}
"""Flags of accelerate whose value `SFTConfig` owns."""


_WORDS: Mapping[tuple[str, str], str | None] = {
    ("report_to", "none"): "none",
    ("resume_from_checkpoint", "true"): "true",
    ("resume_from_checkpoint", "false"): "false",
    ("resume_from_checkpoint", ""): None,
}
"""Words that have one meaning however they are written."""


@dataclass(kw_only=True, slots=True)
class _Parts:
    """What has been read so far; later settings replace earlier ones."""

    explicit: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, dict[str, tuple[Raw, str]]] = field(
        default_factory=lambda: {block: {} for block in _BLOCKS}
    )
    env: dict[str, str] = field(default_factory=dict)
    accelerate: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def split_config(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Takes `--config FILE` out of a script's flags; the last one counts.

    Raises:
        RunFileError: `--config` stands without a file.
    """
    path, rest, waiting = None, list[str](), False
    for argument in arguments:
        if waiting:
            path, waiting = Path(argument), False
        elif argument == "--config":
            waiting = True
        elif argument.startswith("--config="):
            path = Path(argument.partition("=")[2])
        else:
            rest.append(argument)
    if waiting:
        raise RunFileError("--config has no value", allowed="a run file")
    return path, rest


def assemble(path: Path | None, flags: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a `Run` from a run file and flags, which win over it.

    Raises:
        RunFileError: Anything in the file or a flag is wrong.
    """
    parts = _Parts()
    if path is not None:
        _add(parts, read_entries(path, blocks=_MAPPINGS))
    _add(parts, read_flags(flags, _field_of))
    _settle_accelerate(parts)
    parts.notes += settle(parts.explicit, parts.where)

    def get(name: str) -> Any:
        return parts.explicit.get(name, field_table()[name].default)

    sanity.check(parts.explicit, get, parts.where)
    return {
        "explicit": parts.explicit,
        "launch": build_block(LaunchBlock, parts.blocks["launch"], "launch"),
        "slurm": build_block(SlurmBlock, parts.blocks["slurm"], "slurm"),
        "generation": build_block(GenerationBlock, parts.blocks["generation"], "generation"),
        "env": parts.env,
        "accelerate": parts.accelerate,
        "notes": tuple(parts.notes),
        "source": path,
    }


def _field_of(name: str) -> Field | None:
    """Returns the field of a flag, so that its values can be told from the next flag."""
    block, _, key = name.partition(".")
    if block in _BLOCKS:
        kind = kind_of(_BLOCKS[block], key)
        return Field(name=name, owner="", type=FieldType(kinds=frozenset({kind})))
    known = field_table().get(name)
    if known is not None or name in legacy_names() or name in _KEYS:
        return known
    return accelerate_flags().get(name)


def _add(parts: _Parts, entries: Sequence[Entry]) -> None:
    """Adds the settings of one file or one command line."""
    table = field_table()
    translated = translate(entries, table)
    parts.env |= translated.env
    parts.notes += translated.notes
    for entry in translated.entries:
        if entry.name in table:
            value = _value(table[entry.name], entry)
            parts.explicit[entry.name] = _WORDS.get((entry.name, str(value).lower()), value)
            parts.where[entry.name] = entry.where
        elif entry.name == "env":
            parts.env |= _environment(entry)
        elif entry.name == "accelerate_config":
            parts.accelerate[entry.name] = _accelerate_config(entry)
        elif entry.name.partition(".")[0] in _BLOCKS:
            _add_to_block(parts, entry)
        else:
            _add_accelerate(parts, entry)


def _value(field: Field, entry: Entry) -> Any:
    is_word = entry.name == MICRO_BATCH and isinstance(entry.raw, Scalar)
    if is_word and entry.raw.text.strip().lower() == AUTO:  # type: ignore[union-attr]  # a Scalar
        return AUTO
    return coerce(field, entry.raw, entry.where)


def _environment(entry: Entry) -> dict[str, str]:
    if not isinstance(entry.raw, dict):
        raise RunFileError(f"{entry.where}: env is no mapping", allowed="NAME: value lines")
    for name, value in entry.raw.items():
        if not isinstance(value, Scalar):  # not shown: it may be a secret
            got = f"{entry.where}: env.{name} is a {type(value).__name__}"
            raise RunFileError(got, allowed="one value")
    return {name: value.text for name, value in entry.raw.items() if isinstance(value, Scalar)}


def _accelerate_config(entry: Entry) -> str:
    """Returns a preset's name, ours or TRL's, or a file's path."""
    if not isinstance(entry.raw, Scalar):
        got = f"{entry.where}: accelerate_config is {shown(entry.raw)}"
        raise RunFileError(got, allowed="a preset's name or a file")
    name = entry.raw.text
    folders = [files.folder("accelerate_configs"), package_folder("trl") / "accelerate_configs"]
    if Path(name).expanduser().is_file() or any((f / f"{name}.yaml").is_file() for f in folders):
        return name
    presets = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    got = f"{entry.where}: accelerate_config is {name!r}, neither a file nor a preset"
    raise RunFileError(got, allowed=", ".join(presets))


def _add_to_block(parts: _Parts, entry: Entry) -> None:
    block, dot, key = entry.name.partition(".")
    if dot:
        parts.blocks[block][key] = (entry.raw, entry.where)
    elif not isinstance(entry.raw, Scalar) or entry.raw.value is not None:
        raise RunFileError(f"{entry.where}: {block} is {shown(entry.raw)}", allowed="a mapping")


def _add_accelerate(parts: _Parts, entry: Entry) -> None:
    """Adds a flag of `accelerate launch`; there is no other kind of key left."""
    flags = accelerate_flags()
    name = "accelerate_config" if entry.name == "config_file" else entry.name
    if name == "accelerate_config":
        parts.accelerate[name] = _accelerate_config(entry)
    elif name in flags:
        parts.accelerate[name] = coerce(flags[name], entry.raw, entry.where)
        parts.where[name] = entry.where
    else:
        known = [*field_table(), *_KEYS, *flags, *legacy_names()]
        what = "flag" if entry.where.startswith("--") else f"key {entry.name!r}"
        raise RunFileError(f"{entry.where}: unknown {what}", todo=nearest(entry.name, known))


def _settle_accelerate(parts: _Parts) -> None:
    """Takes out the flags whose value `SFTConfig` owns, and says so where they differ from it."""
    written: Mapping[str, Any] = parts.explicit
    half = "no" if written.get("bf16") is False else "bf16"
    owned = {
        "mixed_precision": "fp16" if written.get("fp16") else half,
        "gradient_clipping": written.get("max_grad_norm", field_table()["max_grad_norm"].default),
    }
    for name, value in owned.items():
        asked = parts.accelerate.pop(name, value)
        if asked != value:
            owner = _OWNED_BY_SFT_CONFIG[name]
            parts.notes.append(
                f"{parts.where[name]}: {name} {asked} is not used: {owner} decide, here {value}"
            )

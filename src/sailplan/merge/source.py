"""What a path is: a run, a checkpoint of training, a model, an adapter; and where its base lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sailplan.checkpoint import adapter_folder, dcp, hub_folder, zero_states
from sailplan.errors import CheckpointError, SailplanError
from sailplan.hub.download import download, needed
from sailplan.hub.errors import no_answer
from sailplan.hub.repository import MAIN, Repository, is_offline
from sailplan.hub.revisions import commit_of
from sailplan.model.folder import check_folder
from sailplan.run.directory import RunDirectory

Kind = Literal["model", "zero", "dcp", "adapter"]

_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"
KINDS = (
    "a run directory, a checkpoint-N, DeepSpeed's global_stepN, an FSDP folder, a model's folder, "
    "an adapter's folder"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where weights lie, and what they are."""

    kind: Kind
    """How they are stored."""
    folder: Path
    """The folder of the files that hold them."""
    home: Path
    """The folder with what else belongs to them: config or adapter config, tokenizer, processor."""
    sharded: Source | None = None
    """The sharded state of the same checkpoint, with the float32 masters, where there is one."""

    @property
    def is_adapter(self) -> bool:
        """Whether they are an adapter's, and a base belongs to them."""
        return self.kind == "adapter" or (
            self.kind in ("zero", "dcp") and (self.home / _ADAPTER_CONFIG).is_file()
        )

    def __str__(self) -> str:
        """Returns what it is and where."""
        kinds = {"zero": "ZeRO checkpoint", "dcp": "FSDP checkpoint"}
        return f"{kinds.get(self.kind, self.kind)} {self.folder}"


def recognise(path: Path) -> tuple[Source, list[str]]:
    """Returns what lies at a path, and notes about checkpoints that were passed over.

    A run directory is its own model or adapter where training has ended, else its last whole
    checkpoint.

    Raises:
        CheckpointError: There is nothing that can be merged.
    """
    try:
        folder = path.expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "the links go in a circle"
        raise CheckpointError(f"{path} cannot be read: {reason}", allowed=KINDS) from error
    if not folder.is_dir():
        raise CheckpointError(f"{path} is a file", allowed=KINDS)
    found = _in_folder(folder)
    if found is not None:
        return found, []
    checkpoints = RunDirectory(folder).checkpoints()
    notes: list[str] = []
    for checkpoint in reversed(checkpoints):
        try:
            found = _in_folder(checkpoint)
            if found is None:
                raise CheckpointError("it holds no weights")
            _check_whole(found)
        except SailplanError as error:
            notes.append(f"{checkpoint.name} was passed over: {error.got}")
            continue
        return found, notes
    if checkpoints:
        raise CheckpointError(
            f"{path}: none of {len(checkpoints)} checkpoints is whole: {notes[0]}"
        )
    held = sorted(entry.name for entry in folder.iterdir())[:5]
    raise CheckpointError(
        f"{path} holds {', '.join(held) or 'nothing'}: no weights that can be merged",
        allowed=KINDS,
    )


def base_of(source: Source, written: str | None, *, trust_remote_code: bool = False) -> Path:
    """Returns the folder of an adapter's base model, which is fetched where it is on the hub.

    Args:
        source: The adapter.
        written: The base that the user names, if one.
        trust_remote_code: Fetch the code that comes with the model as well.

    Raises:
        CheckpointError: The adapter names no base.
        ModelError: There is no such model, or it is not here and the hub is switched off.
    """
    revision = None
    if written is None:
        path = source.home / _ADAPTER_CONFIG
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            written, revision = config["base_model_name_or_path"], config.get("revision")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} does not name a base ({error})") from error
        if not written:
            raise CheckpointError(f"{path} names no base model", todo="name it: --base")
    check_folder(written)
    folder = Path(written).expanduser()
    if folder.is_dir():
        return folder.resolve()
    repository = Repository(kind="model", name=written, revision=revision or MAIN)
    commit = commit_of(repository)
    if commit is None:
        raise no_answer(repository)
    if not is_offline():
        wanted = needed(repository, commit, code=trust_remote_code)
        download(wanted)
    return repository.snapshot(commit)


def _in_folder(folder: Path) -> Source | None:
    """Returns what a folder holds itself, or in the one below it that training has written."""
    below = _sharded(folder)
    if below is not None and below.folder == folder:
        return below
    if adapter_folder.is_adapter(folder):
        return Source(kind="adapter", folder=folder, home=folder, sharded=below)
    if hub_folder.is_model(folder):
        return Source(kind="model", folder=folder, home=folder, sharded=below)
    return below


def _sharded(folder: Path) -> Source | None:
    """Returns the sharded state in a folder, or in the newest of those below it."""
    if zero_states.is_zero(folder):
        return Source(kind="zero", folder=folder, home=_home(folder))
    if dcp.is_dcp(folder):
        return Source(kind="dcp", folder=folder, home=_home(folder))
    below = [entry for entry in folder.iterdir() if entry.is_dir()]
    steps = {
        int(entry.name.removeprefix("global_step")): entry
        for entry in below
        if entry.name.removeprefix("global_step").isdecimal() and zero_states.is_zero(entry)
    }
    if steps:
        return Source(kind="zero", folder=steps[max(steps)], home=folder)
    for entry in sorted(below):
        if entry.name.startswith("pytorch_model_fsdp") and dcp.is_dcp(entry):
            return Source(kind="dcp", folder=entry, home=folder)
    return None


def _home(folder: Path) -> Path:
    """Returns where the config is: in the folder, else in the one above it."""
    here = any((folder / name).is_file() for name in (_CONFIG, _ADAPTER_CONFIG))
    return folder if here else folder.parent


def _check_whole(source: Source) -> None:
    """Reads the heads of all files of a checkpoint.

    Raises:
        CheckpointError: One is missing, cut off or empty.
    """
    if source.kind == "zero":
        zero_states.load(source.folder)
    elif source.kind == "dcp":
        dcp.read(source.folder)
    elif source.kind == "adapter":
        adapter_folder.read(source.folder)
    else:
        hub_folder.read(source.folder)

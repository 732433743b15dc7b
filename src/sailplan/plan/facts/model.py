"""The config of a run's model: from its folder, the hub's cache, our table, or the hub.

No library is imported for it, but for the hub's own where a file must be downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.errors import ModelError
from sailplan.hub.repository import MAIN, Repository, is_offline
from sailplan.hub.revisions import cached_commit
from sailplan.model.folder import check_folder
from sailplan.model.published import names, published

if TYPE_CHECKING:
    from sailplan.run.config import Run

_CONFIG = "config.json"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What is known of a model without its weights."""

    name: str
    """As the run file has it."""
    config: Mapping[str, Any]
    """What `config.json` says."""
    image_processor: Mapping[str, Any] | None
    """What the image processor's own file says; None where there is none."""
    folder: Path | None
    """Where its files lie here, its tokenizer's among them perhaps; None where they do not."""
    source: str
    """Where all this is from, for the user."""


def model_facts(run: Run) -> ModelFacts:
    """Finds the config of a run's model.

    Raises:
        ModelError: It is nowhere to be found, or is none.
        RunFileError: No model is named.
    """
    run.require("model_name_or_path")
    name = str(run.get("model_name_or_path"))
    check_folder(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _of_folder(name, folder, f"{folder}")
    repository = Repository(kind="model", name=name, revision=run.get("model_revision") or MAIN)
    commit = cached_commit(repository)
    if commit and (repository.snapshot(commit) / _CONFIG).is_file():
        return _of_folder(name, repository.snapshot(commit), "the hub's cache")
    known = published(name)
    if known is not None:
        return ModelFacts(
            name=name,
            config=known.config,
            image_processor=known.processor or None,
            folder=None,
            source="sailplan's table of public models",
        )
    if is_offline():
        raise ModelError(
            f"{name} is not in the hub's cache, and the hub is switched off",
            allowed=f"a folder, a cached model, or one of {', '.join(names())}",
            todo="unset HF_HUB_OFFLINE, or copy its config.json into a folder and name that",
        )
    return _of_hub(name, repository)


def _of_folder(name: str, folder: Path, source: str) -> ModelFacts:
    config = _read(folder / _CONFIG)
    if "model_type" not in config:
        raise ModelError(
            f"{folder / _CONFIG} has no model_type", todo="take the config.json of the base model"
        )
    found = [_read(folder / file) for file in _PROCESSORS if (folder / file).is_file()]
    # Newer files of processors hold the image processor's settings as a part.
    settings = [part.get("image_processor", part) for part in found]
    images = next((part for part in settings if "image_processor_type" in part), None)
    return ModelFacts(
        name=name, config=config, image_processor=images, folder=folder, source=source
    )


def _of_hub(name: str, repository: Repository) -> ModelFacts:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    from sailplan.hub.errors import explain, no_answer

    folder = Path()
    for file in (_CONFIG, *_PROCESSORS):
        try:
            path = hf_hub_download(name, file, revision=repository.revision)
        except EntryNotFoundError as error:
            if file == _CONFIG:
                got = f"{name} has no {_CONFIG} on the hub"
                raise ModelError(got, todo="name the base model") from error
            continue
        except Exception as error:
            raise explain(error, repository) or no_answer(repository) from error
        folder = Path(path).parent
    return _of_folder(name, folder, "the hub")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", todo="download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object", todo="download it again")
    return content

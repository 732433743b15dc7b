"""What can be told in milliseconds, before any process is started. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from sailplan.errors import DataError, ModelError
from sailplan.run.config import Run


def check(run: Run) -> None:
    """Refuses a run whose local model or data is not there.

    A name that may be a hub repository is left to the ranks.

    Raises:
        RunFileError: No model is named.
        ModelError: The model is a local path without a model.
        DataError: The data is a local path that does not exist.
    """
    run.require("model_name_or_path")
    _check_model(str(run.get("model_name_or_path")))
    data = run.get("dataset_name")
    if data and is_local(data) and not Path(data).expanduser().exists():
        raise DataError(
            f"dataset_name {data} does not exist", todo="give a file, a folder or a hub name"
        )


def _check_model(name: str) -> None:
    path = Path(name).expanduser()
    if not path.exists() and is_local(name):
        raise ModelError(
            f"model_name_or_path {name} does not exist", todo="give a folder or a hub name"
        )
    if path.is_dir() and any(path.iterdir()) and not _has_config(path):
        raise ModelError(
            f"model_name_or_path {name} holds no config.json", todo="give a model's folder"
        )
    if path.is_dir() and not any(path.iterdir()):
        raise ModelError(f"model_name_or_path {name} is an empty folder")


def is_local(name: str) -> bool:
    """Says whether a name can only be a path: a hub name is at most `owner/name`."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or os.sep == name[-1:]


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))

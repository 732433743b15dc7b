"""Where the model is, and what transformers is told to fetch it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.errors import ModelError
from sailplan.model.folder import check_folder, explain

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from sailplan.run.config import Run


def load_config(run: Run) -> PretrainedConfig:
    """Returns the model's config.

    Raises:
        ModelError: There is no such model, or its config cannot be read.
    """
    from transformers import AutoConfig

    name = model_name(run)
    try:
        return AutoConfig.from_pretrained(name, **source_options(run))
    except Exception as error:
        raise explain(error, name, "config") from error


def model_name(run: Run) -> str:
    """Returns the folder or hub name of the model.

    Raises:
        ModelError: None is written, or the folder holds no model.
    """
    name = run.get("model_name_or_path")
    if not name:
        raise ModelError("model_name_or_path is not written", todo="name a folder or a hub model")
    check_folder(name)
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else str(name)


def source_options(run: Run) -> dict[str, Any]:
    """Returns the revision, and whether code that comes with the model may run."""
    return {
        "revision": run.get("model_revision"),
        "trust_remote_code": bool(run.get("trust_remote_code")),
    }

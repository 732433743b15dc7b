"""A run as it is written to disk: launchable again, and without a secret in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from sailplan.run.secrets import is_secret

_HARMLESS_VARIABLES = {
    "TENSORBOARD_LOGGING_DIR",
    "WANDB_PROJECT",
    "WANDB_WATCH",
    "WANDB_LOG_MODEL",
}
"""Variables that old names became: settings, not secrets."""

_PATHS = (
    "output_dir",
    "model_name_or_path",
    "processor_name_or_path",
    "dataset_name",
    "image_root",
    "alpaca_template",
    "chat_template_path",
    "resume_from_checkpoint",
    "deepspeed",
    "fsdp_config",
    "accelerator_config",
    "accelerate_config",
)
_DATASET_PATHS = ("path", "data_dir", "data_files")


def fields(explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the written fields without secrets, local paths absolute."""
    clean = {name: _absolute(name, value) for name, value in _without_secrets(explicit).items()}
    if "datasets" in clean:
        clean["datasets"] = [
            {key: _local(value) if key in _DATASET_PATHS else value for key, value in entry.items()}
            for entry in clean["datasets"]
        ]
    return clean


def accelerate(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the launch flags without secrets, a preset's file absolute."""
    return {name: _absolute(name, value) for name, value in _without_secrets(flags).items()}


def environment(env: Mapping[str, str]) -> dict[str, Any]:
    """Returns the `env:` key of the variables that cannot be secrets; of no others."""
    kept = {name: value for name, value in env.items() if name in _HARMLESS_VARIABLES}
    return {"env": _without_secrets(kept)} if kept else {}


def blocks(*models: BaseModel) -> dict[str, Any]:
    """Returns the blocks, what was written of them."""
    written = {
        type(model).__name__.removesuffix("Block").lower(): model.model_dump(exclude_unset=True)
        for model in models
    }
    return {name: block for name, block in written.items() if block}


def left_out(explicit: Mapping[str, Any], env: Mapping[str, str]) -> list[str]:
    """Returns the names of what is not written because it is, or may be, a secret."""
    secrets = [name for name, value in explicit.items() if is_secret(name, value)]
    return [*secrets, *(f"env.{name}" for name in env if name not in _HARMLESS_VARIABLES)]


def text(values: Mapping[str, Any], missing: list[str]) -> str:
    """Returns a run file's text."""
    lines = ["# Written by sailplan: the run as resolved. It can be launched again from this file."]
    if missing:
        lines.append(f"# Not written, because secret: {', '.join(missing)}.")
    return "\n".join(lines) + "\n" + (_dump(values) if values else "")


def with_fields(text: str, values: Mapping[str, Any]) -> str:
    """Returns a run file's text with some fields set; the comments at its head stay."""
    head = [line for line in text.splitlines() if line.startswith("#")]
    written = {**(yaml.safe_load(text) or {}), **values}
    return "\n".join(head) + "\n" + _dump(written)


def _dump(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)


def _without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _clean(value) for name, value in values.items() if not is_secret(name, value)}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_secrets(value)
    if isinstance(value, list):
        return [_clean(item) for item in value if not is_secret("", item)]
    return value


def _absolute(name: str, value: Any) -> Any:
    if name == "output_dir" and isinstance(value, str):
        return str(Path(value).expanduser().absolute())
    return _local(value) if name in _PATHS else value


def _local(value: Any) -> Any:
    """Returns a path that exists here as an absolute one, and anything else as it is."""
    if isinstance(value, list):
        return [_local(item) for item in value]
    if isinstance(value, dict):
        return {key: _local(item) for key, item in value.items()}
    if isinstance(value, str) and value and Path(value).expanduser().exists():
        return str(Path(value).expanduser().absolute())
    return value

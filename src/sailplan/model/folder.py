"""Turns what is wrong with a model's folder or hub name into one line that says what to do."""

from __future__ import annotations

import os
from pathlib import Path

from sailplan.errors import ModelError

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_LFS_POINTER = b"version https://git-lfs"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def check_folder(name: str) -> None:
    """Checks that `name` is a model's folder, or can only be a name on the hub.

    Raises:
        ModelError: It is a path without a folder behind it, or a folder without a model.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise ModelError(f"{name} is a file", allowed="a model folder or a name on the hub")
    if not path.is_dir():
        # A hub name is NAME or OWNER/NAME.
        if name.startswith((".", "~", "/")) or name.count("/") > 1 or name.endswith("/"):
            raise ModelError(
                f"there is no model folder {name}",
                todo="correct model_name_or_path (relative paths start at the working directory)",
            )
        return
    if (path / _CONFIG).is_file():
        return
    if (path / _ADAPTER).is_file():
        raise ModelError(
            f"{name} holds an adapter, not a model",
            todo=f"name its base model (base_model_name_or_path in {_ADAPTER})",
        )
    found = sorted(item.name for item in path.iterdir())[:5]
    raise ModelError(
        f"model folder {name} has no {_CONFIG}",
        allowed="a folder written by save_pretrained, or a name on the hub",
        todo=f"it holds {', '.join(found)}" if found else "it is empty",
    )


def explain(error: Exception, name: str, what: str) -> ModelError:
    """Returns the user's error for one that transformers raised while loading.

    Args:
        error: What was raised.
        name: The run's `model_name_or_path`.
        what: What was being loaded: `config`, `processor` or `weights`.
    """
    if isinstance(error, ModelError):
        return error
    if not Path(name).expanduser().is_dir():
        if any(os.environ.get(variable, "0").lower() in ("1", "true") for variable in _OFFLINE):
            return ModelError(
                f"{name} is no folder here and not in the local cache, and the hub is switched "
                "off (HF_HUB_OFFLINE)",
                todo="give the path of a folder, or download the model first where there is a "
                "network: hf download " + name,
            )
        return ModelError(
            f"the {what} of {name} could not be loaded: {_first_line(error)}",
            todo="check the name, the network, and hf auth login where the model is gated",
        )
    broken = _broken_file(Path(name).expanduser())
    if broken:
        return ModelError(broken, todo="download the model again")
    if what == "weights" and "ignore_mismatched_sizes" in str(error):
        return ModelError(
            f"{name}: the weights do not have the shapes that its {_CONFIG} describes (listed "
            "above)",
            todo="download the model again, or correct its config.json",
        )
    todo = ""
    if "trust_remote_code" in str(error):
        todo = "write trust_remote_code: true if you trust the code in that repository"
    return ModelError(f"the {what} of {name} could not be loaded: {_first_line(error)}", todo=todo)


def _broken_file(folder: Path) -> str | None:
    """Returns what is wrong with the first file of `folder` that cannot be read."""
    import json

    from safetensors import SafetensorError, safe_open

    for path in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return f"{path} is a Git-LFS pointer, not the file itself (git lfs pull gets it)"
        try:
            if path.suffix == ".json":
                content = json.loads(path.read_text(encoding="utf-8"))
                shards = set(content.get("weight_map", {}).values()) if content else set()
                missing = sorted(shard for shard in shards if not (folder / shard).is_file())
                if missing:
                    return f"{folder} lacks {missing[0]}, which {path.name} lists"
            else:
                with safe_open(path, framework="numpy"):
                    pass
        except (ValueError, AttributeError):
            return f"{path} is not valid JSON"
        except SafetensorError as error:
            return f"{path} is truncated or corrupt ({error})"
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0].strip() or type(error).__name__

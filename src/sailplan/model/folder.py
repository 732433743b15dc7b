"""Turns what is wrong with a model's folder or hub name into one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sailplan.checkpoint import torch_zip
from sailplan.errors import CheckpointError, ModelError
from sailplan.hub import errors as hub_errors
from sailplan.hub.repository import Repository

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_TOKENIZER = "tokenizer.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; `.index.json` behind each names its shards."""
_KINDS = ("*.safetensors", "*.bin")
_UNPACK_GGUF = (
    "unpack it into a folder: transformers' from_pretrained(folder, gguf_file=file), then "
    "save_pretrained (docs/base-models.md)"
)
_LFS_POINTER = b"version https://git-lfs"


def check_path(name: str) -> None:
    """Checks that `name` is a folder, or can only be a name on the hub.

    Raises:
        ModelError: It is a path without a folder behind it.
    """
    path = Path(name).expanduser()
    if path.is_file():
        todo = _UNPACK_GGUF if path.suffix == ".gguf" else ""
        raise ModelError(
            f"{name} is a file", allowed="a model folder or a name on the hub", todo=todo
        )
    # A hub name is NAME or OWNER/NAME.
    is_path = name.startswith((".", "~", "/")) or name.count("/") > 1 or name.endswith("/")
    if is_path and not path.is_dir():
        raise ModelError(
            f"there is no model folder {name}",
            todo="correct the path (a relative one starts at the working directory)",
        )


def check_folder(name: str) -> None:
    """Checks that `name` is a model's folder, or can only be a name on the hub.

    Raises:
        ModelError: It is a path without a folder behind it, or a folder without a model that
            training reads.
    """
    check_path(name)
    path = Path(name).expanduser()
    if not path.is_dir():
        return
    if list(path.glob("*.gguf")) and not any(list(path.glob(kind)) for kind in _KINDS):
        raise ModelError(f"model folder {name} holds its weights as GGUF", todo=_UNPACK_GGUF)
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


def check_files(name: str) -> None:
    """Checks the files of a model's folder without loading it, of weights the headers alone.

    Raises:
        ModelError: One of them is a Git-LFS pointer, cut off, or missing.
    """
    folder = Path(name).expanduser()
    texts = [folder / name for name in (_CONFIG, _TOKENIZER)]
    broken = _broken_file(path for path in texts if path.is_file()) or _broken_weights(folder)
    if broken:
        raise ModelError(broken, todo="download the model again")


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
        repository = Repository(kind="model", name=name)
        known = hub_errors.explain(error, repository)
        if isinstance(known, ModelError):
            return known
    folder = Path(name).expanduser()
    broken = _broken_file(sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))))
    broken = broken or _broken_weights(folder)
    if broken:
        return ModelError(broken, todo="download the model again")
    if what == "weights" and "Weights only load failed" in str(error):
        return ModelError(
            f"a .bin file of {name} holds more than weights: loading it would run code, which was "
            "not done",
            todo="take the model's safetensors files",
        )
    if what == "weights" and "ignore_mismatched_sizes" in str(error):
        return ModelError(
            f"{name}: the weights do not have the shapes that its {_CONFIG} describes (listed "
            "above)",
            todo="download the model again, or correct its config.json",
        )
    todo = ""
    if "attn_implementation" in str(error) or "lashAttention" in str(error):
        todo = "write attn_implementation: auto to take what this machine has"
    elif "trust_remote_code" in str(error):
        todo = "write trust_remote_code: true if you trust the code in that repository"
    return ModelError(f"the {what} of {name} could not be loaded: {_first_line(error)}", todo=todo)


def _broken_weights(folder: Path) -> str | None:
    """Returns what is wrong with the files that the weights would be read from."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _broken_file([folder / name])
        if index.is_file():
            return _broken_file([index]) or _broken_file(folder / shard for shard in _shards(index))
    return None


def _broken_file(paths: Iterable[Path]) -> str | None:
    """Returns what is wrong with the first of a model's files that cannot be read."""
    from safetensors import SafetensorError, safe_open

    for path in paths:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return f"{path} is a Git-LFS pointer, not the file itself (git lfs pull gets it)"
        try:
            if path.suffix == ".json":
                missing = [name for name in _shards(path) if not (path.parent / name).is_file()]
                if missing:
                    return f"{path.parent} lacks {missing[0]}, which {path.name} lists"
            elif path.suffix == ".bin":
                torch_zip.read(path)
            else:
                with safe_open(path, framework="numpy"):
                    pass
        except ValueError:
            return f"{path} is not valid JSON"
        except CheckpointError as error:
            return error.got if "get it again" in error.todo else str(error)
        except SafetensorError as error:
            return f"{path} is truncated or corrupt ({error})"
    return None


def _shards(path: Path) -> list[str]:
    """Returns the files that a JSON file lists as holding weights; none where it is no index.

    Raises:
        ValueError: It is not JSON.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    return sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    if lines[0].rstrip().endswith(":"):  # a list follows
        return " ".join(lines)
    return lines[0].strip() or type(error).__name__

"""Reads the weights of a folder in Hugging Face's layout: whole or sharded, safetensors or .bin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sailplan.checkpoint import safetensors, torch_zip
from sailplan.checkpoint.stored import StoredTensor
from sailplan.errors import CheckpointError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_FILES = (WHOLE, "pytorch_model.bin")
_INDEXES = (INDEX, "pytorch_model.bin.index.json")


def is_model(folder: Path) -> bool:
    """Says whether a folder holds a model's weights."""
    return any((folder / name).is_file() for name in (*_FILES, *_INDEXES))


def read(folder: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a folder by name; safetensors are taken before .bin files.

    Raises:
        CheckpointError: There are none, a shard is missing or broken, or the index does not tell
            what the shards hold.
    """
    for whole, index in zip(_FILES, _INDEXES, strict=True):
        if (folder / whole).is_file():
            return tensors_of(folder / whole)
        if (folder / index).is_file():
            return _sharded(folder, folder / index)
    raise CheckpointError(f"{folder} holds no weights", allowed=", ".join((*_FILES, *_INDEXES)))


def tensors_of(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one file by name.

    Raises:
        CheckpointError: It is missing, broken, or a .bin file that holds something else.
    """
    if path.suffix == ".safetensors":
        return safetensors.read(path)
    content = torch_zip.read(path)
    if not isinstance(content, Mapping) or not all(
        isinstance(tensor, StoredTensor) for tensor in content.values()
    ):
        raise CheckpointError(f"{path} is no mapping of names to tensors")
    return dict(content)


def _sharded(folder: Path, index: Path) -> dict[str, StoredTensor]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
        if any(Path(file).name != file for file in files):
            raise ValueError("a shard lies elsewhere")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index ({error})", todo="get it again") from error
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            todo="get the missing files",
        )
    tensors = {file: tensors_of(folder / file) for file in files}
    for name, file in weight_map.items():
        if name not in tensors[file]:
            raise CheckpointError(f"{index} lists {name} in {file}, which lacks it")
    return {name: tensors[file][name] for name, file in weight_map.items()}

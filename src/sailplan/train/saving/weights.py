"""Looks at saved weights: all there, none empty, all finite, and no longer what they were.

It reads the files themselves, a few megabytes at a time and without torch, so that it can run
beside training.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash

from sailplan.checkpoint import hub_folder
from sailplan.checkpoint.stored import StoredTensor
from sailplan.errors import CheckpointError

ADAPTER = "adapter_model.safetensors"

_PIECE_BYTES = 4 << 20
_EXPONENTS = {
    "float64": (np.uint64, 0x7FF0_0000_0000_0000),
    "float32": (np.uint32, 0x7F80_0000),
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
}
"""The bits that are all set where a number is not finite, by dtype."""

Digests = Mapping[str, str]


def saved_weights(folder: Path) -> dict[str, StoredTensor] | None:
    """Returns the tensors of a saved adapter or model; None where there are only ranks' shards.

    Raises:
        CheckpointError: A file is missing or broken.
    """
    if (folder / ADAPTER).is_file():
        return hub_folder.tensors_of(folder / ADAPTER)
    return hub_folder.read(folder) if hub_folder.is_model(folder) else None


def check_values(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Returns a checksum of each tensor, and refuses what is empty or not finite.

    Raises:
        CheckpointError: A tensor is empty or not finite, or there are none.
    """
    empty = sorted(name for name, tensor in tensors.items() if tensor.numel == 0)
    if empty or not tensors:
        raise CheckpointError(f"{len(empty)} tensors are empty, such as {(empty or ['all'])[0]}")
    digests = {}
    for name, tensor in sorted(tensors.items(), key=lambda one: (str(one[1].file), one[1].offset)):
        digest = xxhash.xxh3_64()
        for piece in _pieces(tensor):
            digest.update(piece)
            if tensor.dtype in _EXPONENTS:
                kind, exponent = _EXPONENTS[tensor.dtype]
                numbers = np.frombuffer(piece, dtype=kind)
                if bool(((numbers & kind(exponent)) == kind(exponent)).any()):
                    raise CheckpointError(f"{name} in {tensor.file} is not finite")
        digests[name] = digest.hexdigest()
    return digests


def check_complete(there: Digests, expected: Collection[str]) -> None:
    """Refuses weights that lack a name.

    Raises:
        CheckpointError: They do.
    """
    missing = sorted(set(expected) - set(there))
    if missing:
        raise CheckpointError(f"{len(missing)} tensors are missing, such as {missing[0]}")


def check_model_names(folder: Path) -> None:
    """Refuses a model that lacks tensors or has foreign ones, by loading it without weights.

    Raises:
        CheckpointError: It does.
    """
    import transformers

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = getattr(transformers, (config.get("architectures") or [""])[0], None)
    if architecture is None:  # remote code: its class is not known here
        return
    load = architecture.from_pretrained
    try:
        with _whole():
            _, info = load(folder, device_map="meta", output_loading_info=True)
    except RuntimeError as error:  # of shapes, which transformers lists above
        raise CheckpointError(f"{folder} does not load: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(map(str, info[kind]))
            raise CheckpointError(f"{folder}: {len(names)} {kind}, such as {names[0]}")


@contextmanager
def _whole() -> Iterator[None]:
    """Has models loaded whole meanwhile, where the run's own is loaded in shards."""
    from transformers.integrations import deepspeed

    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


def _pieces(tensor: StoredTensor) -> Iterator[memoryview]:
    """Yields the bytes of a tensor that lies in one piece, and of another none."""
    if not tensor.is_contiguous:
        return
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        left = tensor.num_bytes
        buffer = bytearray(min(left, _PIECE_BYTES))
        while left > 0:
            view = memoryview(buffer)[: min(left, len(buffer))]
            if file.readinto(view) != len(view):
                raise CheckpointError(f"{tensor.file} is cut off")
            yield view
            left -= len(view)

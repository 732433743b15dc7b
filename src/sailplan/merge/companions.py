"""What travels with the weights so that a folder loads as it is: config, tokenizer, processor."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sailplan.errors import CheckpointError
from sailplan.merge.tensor_plan import TensorPlan

CONFIG = "config.json"
_TOKENIZER = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json", "*.tiktoken"),
    "additional_chat_templates/*.jinja",
)
"""Taken together from one folder: those of two tokenizers do not mix."""
_OTHERS = (
    *("generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("video_preprocessor_config.json", "LICENSE*"),
)
"""Each taken from the first folder that has it."""
_NO_CODE_OF_THE_MODEL = "zero_to_fp32.py"
"""DeepSpeed leaves it in its checkpoints."""


def companions(
    homes: Sequence[Path],
    plans: Iterable[TensorPlan],
    *,
    architecture: str,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Returns the files that stand beside the weights, by their paths in the output.

    Args:
        homes: Folders that are searched, in order; the last one has the config.
        plans: The weights that are written, whose dtype and ties the config tells.
        architecture: The name of the model's class.
        changes: What else is set in the config, and in the part of it that has such a field.

    Raises:
        CheckpointError: The config cannot be read.
    """
    config = _read_config(homes[-1] / CONFIG)
    found: dict[str, bytes] = {}
    others = (*_OTHERS, "*.py") if "auto_map" in config else _OTHERS
    own = next((home for home in homes if (home / _TOKENIZER[0]).is_file()), None)
    groups = [(_TOKENIZER, [own] if own else []), (others, homes)]
    for patterns, folders in groups:
        for folder in folders:
            for pattern in patterns:
                for path in sorted(folder.glob(pattern)):
                    if path.is_file() and path.name != _NO_CODE_OF_THE_MODEL:
                        found.setdefault(path.relative_to(folder).as_posix(), path.read_bytes())
    _tell_truth(config, list(plans), architecture)
    for name, value in (changes or {}).items():
        _set(config, name, value)
    found[CONFIG] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return found


def _set(config: dict[str, Any], name: str, value: object) -> None:
    """Sets a field where it stands: in the config, in its part about text, or in both."""
    parts = [part for key, part in config.items() if key == "text_config" and name in part]
    for part in parts:
        part[name] = value
    if name in config or not parts:
        config[name] = value


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    return config


def _tell_truth(config: dict[str, Any], plans: Sequence[TensorPlan], architecture: str) -> None:
    """Sets the fields that say how the weights are stored."""
    bytes_of = Counter[str]()
    for plan in plans:
        if "float" in plan.dtype:
            bytes_of[plan.dtype] += plan.num_bytes
    dtype = bytes_of.most_common(1)[0][0] if bytes_of else "float32"
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        if part is config or {"dtype", "torch_dtype"} & part.keys():
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
    if "auto_map" not in config:
        config["architectures"] = [architecture]
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)

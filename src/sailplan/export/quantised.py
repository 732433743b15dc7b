"""A model whose weights bitsandbytes has quantised, as a folder that loads as it is."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from sailplan.errors import OutputError
from sailplan.merge.companions import companions
from sailplan.merge.stream import sync_folder
from sailplan.model.folder import check_folder, explain
from sailplan.model.skeleton import skeleton

Format = Literal["bnb-4bit", "bnb-8bit"]


def export_quantised(
    model: Path, output: Path, kind: Format, *, dtype: str | None = None
) -> list[Path]:
    """Quantises a model with bitsandbytes and writes it; `from_pretrained` loads the folder.

    transformers does both, so the model is in memory, quantised, while it is written: some 5 GB for
    7 billion parameters in 4 bits, 8 GB in 8 bits, and one shard of the 16-bit weights.

    Args:
        model: A Hugging Face folder, such as one that was merged.
        output: The folder, which must not exist or be empty.
        kind: `bnb-4bit` is nf4 with double quantisation, `bnb-8bit` is LLM.int8().
        dtype: What is not quantised is kept in, and computed in; by default as stored.

    Raises:
        ModelError: There is no model, or it cannot be quantised.
        OutputError: The folder cannot be written, or is not empty.
    """
    import torch
    from transformers import BitsAndBytesConfig

    check_folder(str(model))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output} is not empty", todo="choose another folder")
    made = skeleton(model)
    stored = made.config.dtype or torch.float32
    compute: torch.dtype = getattr(torch, dtype) if dtype else stored
    settings = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
        if kind == "bnb-4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    try:
        loaded = type(made).from_pretrained(model, quantization_config=settings, dtype=compute)
    except Exception as error:
        raise explain(error, str(model), "weights") from error
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from error
    try:
        loaded.save_pretrained(aside)
        for name, content in companions([model], (), architecture=type(made).__name__).items():
            if not (aside / name).exists():  # the config is the library's, with its settings
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(content)
        aside.chmod(0o755)
        if output.exists():
            output.rmdir()
        aside.replace(output)
        sync_folder(output.parent)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return sorted(output.iterdir())

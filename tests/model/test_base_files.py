"""Weights in files of every kind: what is wrong with them is told from the files alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sailplan.errors import ModelError
from sailplan.model.folder import check_files
from sailplan.model.load import load_model
from sailplan.run.config import Run
from tests.support.base_models import as_bin, base_model, change_config, old_llama

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


def run_of(model: Path, **fields: Any) -> Run:
    return Run(explicit={"model_name_or_path": str(model), **fields})


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SECOND = "pytorch_model-00002-of-00002.bin"
DAMAGE: dict[str, tuple[int, Callable[[Path], Any], str]] = {
    "cut off": (1, lambda model: cut(model / "pytorch_model.bin"), "pytorch_model.bin: File is"),
    "pointer": (
        1,
        lambda model: (model / "pytorch_model.bin").write_text(POINTER),
        "pytorch_model.bin is a Git-LFS pointer",
    ),
    "page": (
        1,
        lambda model: (model / "pytorch_model.bin").write_text("<!DOCTYPE html>"),
        "pytorch_model.bin is no file that torch.save wrote; download the model again",
    ),
    "missing shard": (
        2,
        lambda model: (model / SECOND).unlink(),
        f"lacks {SECOND}, which pytorch_model.bin.index.json lists",
    ),
    "shard cut off": (2, lambda model: cut(model / SECOND), f"{SECOND}: File is not a zip file"),
    "code": (
        1,
        lambda model: torch.save(
            {"model.norm.weight": Evil(model / "trace")}, model / "pytorch_model.bin"
        ),
        "which a checkpoint has no reason to call; nothing was run",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("look", [check_files, lambda name: load_model(run_of(Path(name)))])
def test_bin_files_that_are_wrong_are_told_in_one_line(
    tmp_path: Path, case: str, look: Callable[[str], Any]
) -> None:
    shards, damage, message = DAMAGE[case]
    model = base_model(tmp_path / "base")
    as_bin(model, shards=shards)
    check_files(str(model))
    damage(model)

    with pytest.raises(ModelError) as caught:
        look(str(model))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (model / "trace").exists()


def test_bin_file_from_before_torch_wrote_zips_loads(tmp_path: Path) -> None:
    model = base_model(tmp_path / "base")
    expected = load_model(run_of(model)).state_dict()
    as_bin(model)
    path = model / "pytorch_model.bin"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)

    check_files(str(model))
    loaded = load_model(run_of(model)).state_dict()

    assert all(loaded[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("saved", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_auto_dtype_is_the_configs_under_its_old_name_too(
    tmp_path: Path, saved: str | None, expected: torch.dtype
) -> None:
    model = base_model(tmp_path / "base")
    change_config(model, dtype=None, torch_dtype=saved)

    assert load_model(run_of(model, dtype="auto")).dtype == expected


def test_old_llama_pads_no_row_of_its_embeddings_away(tmp_path: Path) -> None:
    folder = old_llama(tmp_path / "llama")  # its pad_token_id is -1
    change_config(folder, dtype=None)
    model = load_model(run_of(folder, dtype="auto"))

    assert model.dtype == torch.float16
    assert model.get_input_embeddings().padding_idx is None
    assert model.config.pad_token_id is None

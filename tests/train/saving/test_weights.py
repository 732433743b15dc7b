"""Saved weights that are incomplete, empty or not finite are refused; where, is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sailplan.checkpoint.hub_folder import tensors_of
from sailplan.errors import CheckpointError
from sailplan.train.saving.weights import check_complete, check_values, saved_weights

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_number_that_is_not_finite_is_named(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    tensors = {"a": torch.ones(5, dtype=dtype), "b": torch.ones(3, 7, dtype=dtype)}
    tensors["b"][2, 6] = value
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"b in .*w\.safetensors is not finite"):
        check_values(tensors_of(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_largest_finite_numbers_pass(tmp_path: Path, dtype: torch.dtype) -> None:
    most = torch.finfo(dtype)
    save_file(
        {"a": torch.tensor([most.max, most.min, most.tiny, 0.0], dtype=dtype)}, tmp_path / "w"
    )
    (tmp_path / "w").rename(tmp_path / "w.safetensors")
    assert set(check_values(tensors_of(tmp_path / "w.safetensors"))) == {"a"}


def test_tensor_of_several_pieces_is_read_whole(tmp_path: Path) -> None:
    large = torch.zeros(3 << 20)
    save_file({"large": large}, tmp_path / "w.safetensors")
    before = check_values(tensors_of(tmp_path / "w.safetensors"))
    large[-1] = 1.0
    save_file({"large": large}, tmp_path / "w.safetensors")
    after = check_values(tensors_of(tmp_path / "w.safetensors"))
    large[-1] = float("nan")
    save_file({"large": large}, tmp_path / "w.safetensors")
    assert before != after
    with pytest.raises(CheckpointError, match="not finite"):
        check_values(tensors_of(tmp_path / "w.safetensors"))


def test_empty_tensor_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(0), "b": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="1 tensors are empty, such as a"):
        check_values(tensors_of(tmp_path / "w.safetensors"))


def test_missing_name_is_told() -> None:
    with pytest.raises(CheckpointError, match="1 tensors are missing, such as b"):
        check_complete({"a": "0"}, ["a", "b"])


def test_folder_of_shards_alone_has_no_weights_to_look_at(tmp_path: Path) -> None:
    assert saved_weights(tmp_path) is None

"""Broken inputs of a merge: each fault has its own line, and no input is touched."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from benchmarks import layouts
from sailplan.errors import CheckpointError, SailplanError
from sailplan.merge.job import prepare
from sailplan.merge.output import carry_out
from tests.merge.small import SMALL, digests, published


@pytest.fixture
def zero(tmp_path: Path) -> Path:
    """A ZeRO-3 checkpoint of four ranks."""
    return layouts.zero3(tmp_path / "in", SMALL)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A published model in several files."""
    return published(tmp_path / "in" / "model")


def rank_file(folder: Path, rank: int) -> Path:
    name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    return folder / "global_step1" / name


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    states = torch.load(path, weights_only=False)
    change(states)
    torch.save(states, path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


class Evil:
    """Leaves a file in the folder where the tests run, if it is ever unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARK}",)


MARK = f"sailplan-ran-code-{os.getpid()}"


def flip_length_in_zip(path: Path) -> None:
    """Flips a bit of what says where the largest storage begins."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 28] ^= 0x10
    path.write_bytes(content)


ZERO_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda f: truncate(rank_file(f, 2)), "truncated or corrupt"),
    "flipped byte of a head": (lambda f: flip_length_in_zip(rank_file(f, 1)), "has a broken head"),
    "missing rank": (lambda f: rank_file(f, 1).unlink(), "3 .*optim_states.* of 4 ranks"),
    "another step": (
        lambda f: rewrite(
            f / "global_step1" / "zero_pp_rank_3_mp_rank_00_model_states.pt",
            lambda states: states.update(global_steps=2),
        ),
        "is of step 2, .* of step 1",
    ),
    "another world size": (
        lambda f: rewrite(
            rank_file(f, 3),
            lambda states: states["optimizer_state_dict"].update(partition_count=5),
        ),
        "on 5 ranks",
    ),
    "empty group": (
        lambda f: rewrite(
            rank_file(f, 0),
            lambda states: states["optimizer_state_dict"].update(fp32_flat_groups=[torch.empty(0)]),
        ),
        "group 0 is empty",
    ),
    "code in a pickle": (
        lambda f: rewrite(rank_file(f, 0), lambda states: states.update(evil=Evil())),
        "system, which a checkpoint has no reason to call; nothing was run",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; copy"),
}


@pytest.mark.parametrize("fault", ZERO_FAULTS)
def test_broken_checkpoint_has_its_own_error(tmp_path: Path, zero: Path, fault: str) -> None:
    break_it, message = ZERO_FAULTS[fault]
    break_it(zero)
    before = digests(zero)

    with pytest.raises(SailplanError, match=message) as raised:
        carry_out(prepare(zero), tmp_path / "out")

    assert "\n" not in str(raised.value)
    assert digests(zero) == before
    assert not (tmp_path / "out").exists()
    assert not Path(MARK).exists()


def test_files_without_zip_are_merged(tmp_path: Path, zero: Path) -> None:
    carry_out(prepare(zero), tmp_path / "zip")
    for path in (zero / "global_step1").iterdir():
        states = torch.load(path, weights_only=False)
        torch.save(states, path, _use_new_zipfile_serialization=False)

    carry_out(prepare(zero), tmp_path / "legacy")

    assert digests(tmp_path / "legacy") == digests(tmp_path / "zip")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40] ^= 0x01
    path.write_bytes(content)


MODEL_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda f: truncate(sorted(f.glob("model-*"))[1]), "has .* bytes, its header"),
    "flipped byte of a header": (
        lambda f: flip(sorted(f.glob("model-*"))[0]),
        r"model-00001-of-\d+\.safetensors has a broken header",
    ),
    "missing file": (lambda f: sorted(f.glob("model-*"))[2].unlink(), "lacks model-00003"),
    "another config": (
        lambda f: LlamaConfig(**{**SMALL.to_dict(), "hidden_size": 64}).save_pretrained(f),
        "config.json says",
    ),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_broken_model_has_its_own_error(tmp_path: Path, model: Path, fault: str) -> None:
    break_it, message = MODEL_FAULTS[fault]
    break_it(model)
    before = digests(model)

    with pytest.raises(SailplanError, match=message):
        carry_out(prepare(model), tmp_path / "out")

    assert digests(model) == before
    assert not (tmp_path / "out").exists()


def test_bin_file_that_runs_code_runs_none(tmp_path: Path) -> None:
    SMALL.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"no file that torch\.save wrote"):
        prepare(tmp_path / "in")
    torch.save({"a": torch.ones(1), "b": Evil()}, tmp_path / "in" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="nothing was run"):
        prepare(tmp_path / "in")
    assert not Path(MARK).exists()


def test_values_that_are_not_finite_are_refused(tmp_path: Path, model: Path) -> None:
    first = sorted(model.glob("model-*"))[0]
    tensors = load_file(first)
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, first)
    with pytest.raises(CheckpointError, match=f"{name} would hold values that are not finite"):
        carry_out(prepare(model), tmp_path / "out")

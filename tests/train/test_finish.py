"""What a run leaves is looked at before it ends; shards come with the command that merges them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from sailplan.errors import TrainingError
from sailplan.files import preset
from sailplan.train.finish import check_saved
from tests.support import patience
from tests.support.launch import ENTRY, flags, free_port
from tests.support.rows import chat_rows


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(tiny_model("qwen2_vl"), tmp_path / "out"))


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replaces a tensor of the saved weights; None takes it out."""
    tensors = load_file(folder / "model.safetensors")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_whole_model_and_adapter_are_told(saved: Path, tmp_path: Path) -> None:
    assert check_saved(saved) == f"saved the model to {saved}"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file({"a.lora_A.weight": torch.ones(2, 3)}, adapter / "adapter_model.safetensors")
    assert check_saved(adapter) == f"saved the adapter to {adapter}"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((64,), torch.nan), "model.norm.weight in .* is not finite"),
        (torch.full((64,), torch.inf), "is not finite"),
        (torch.empty(0), "1 tensors are empty, such as .*model.norm.weight"),
        (torch.ones(63), "does not load: "),
        (None, "1 missing_keys, such as .*norm.weight"),
    ],
    ids=["nan", "inf", "empty", "another shape", "missing"],
)
def test_broken_weights_are_an_error(
    saved: Path, tensor: torch.Tensor | None, message: str
) -> None:
    name = next(
        n for n in load_file(saved / "model.safetensors") if n.endswith("model.norm.weight")
    )
    change(saved, name, tensor)
    with pytest.raises(TrainingError, match=f"what was saved is broken: .*({message})"):
        check_saved(saved)


def test_foreign_tensor_is_an_error(saved: Path) -> None:
    change(saved, "model.another.weight", torch.ones(3))
    with pytest.raises(TrainingError, match=r"1 unexpected_keys, such as .*another\.weight"):
        check_saved(saved)


def test_empty_adapter_is_an_error(tmp_path: Path) -> None:
    save_file({"a.lora_B.weight": torch.empty(0)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match=r"1 tensors are empty, such as a\.lora_B\.weight"):
        check_saved(tmp_path)


def test_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no weights"):
        check_saved(tmp_path)


def test_shards_of_zero3_become_a_model_by_the_printed_command(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    """A preset that gathers nothing on saving, as where the host has no room for the whole."""
    text = preset("deepspeed_zero3").read_text()
    assert "zero3_save_16bit_model: true" in text
    (tmp_path / "zero3.yaml").write_text(
        text.replace("zero3_save_16bit_model: true", "zero3_save_16bit_model: false")
    )
    values = {
        "model_name_or_path": tiny_model("qwen2_vl"),
        "dataset_name": chat_rows(tmp_path / "data", 4),
        "output_dir": tmp_path / "out",
        "max_steps": 1,
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
    }
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(tmp_path / "zero3.yaml"), "--num_processes", "2"]
    command += ["--main_process_port", str(free_port()), "-m", ENTRY, *flags(values)]
    done = patience.run(command, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]

    printed = re.search(r"which takes little memory: sailplan (.*)", done.stdout)
    assert printed
    merge = [sys.executable, "-m", "sailplan", *shlex.split(printed[1])]
    subprocess.run(merge, check=True, capture_output=True, timeout=120)

    tuned = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    base = load_file(tiny_model("qwen2_vl") / "model.safetensors")
    assert tuned.keys() == base.keys()
    assert any(not tuned[name].equal(base[name]) for name in base)
    _, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out" / "merged", output_loading_info=True
    )
    assert not info["missing_keys"]

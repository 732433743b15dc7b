"""`sailplan merge`, `recover-adapter` and `export` as a user calls them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlamaConfig

from benchmarks import layouts
from tests.support.compared import here


def sailplan(*arguments: object) -> tuple[int, str, str]:
    return here(*map(str, arguments))


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    """A trained adapter of the tiny Qwen2-VL, which names its base."""
    base = AutoModelForImageTextToText.from_pretrained(tiny_model("qwen2_vl"))
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_merge_tells_what_came_out(tmp_path: Path, adapter: Path) -> None:
    command = [sys.executable, "-m", "sailplan", "merge", str(adapter), "--verify", "full"]
    command += ["--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    out = done.stdout

    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for line in (
        rf"^adapter {adapter}$",
        r"tensors +58 in 1 files",
        r"read +8\d\d\.\d kB",
        r"written +828\.4 kB, .*/s",
        r"verified .* 2 of 2 targets changed, 58 tensors recomputed bit for bit",
        r"peak memory +\d",
        r"seconds +[\d.]+ writing, [\d.]+ in all",
        rf"^merged into {tmp_path / 'out'}$",
    ):
        assert re.search(line, out, re.MULTILINE), (line, out)
    _, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_bar_on_a_terminal_tells_bytes_a_second_and_the_time_left(
    tmp_path: Path, adapter: Path
) -> None:
    """As a user sees it: standard error is a terminal, of which all that was drawn is read."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    program = (
        "import sys, time; from sailplan.merge import stream; real = stream._put\n"
        "def slow(*arguments): time.sleep(0.05); real(*arguments)\n"
        "stream._put = slow; sys.argv[0] = 'sailplan'\n"
        "from sailplan.__main__ import main; main()"
    )
    arguments = ["merge", adapter, "--output", tmp_path / "out", "--workers", "1"]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # what a terminal's end answers when nobody writes
            while part := os.read(ours, 4096):
                drawn += part
        assert process.stdout is not None
        assert "merged into" in process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert b"writing" in drawn
    assert re.search(rb"[\d.]+/[\d.]+ (kB|MB)", drawn)
    assert re.search(rb"[\d.]+ [kMG]B/s", drawn)
    assert re.search(rb"\d:\d\d:\d\d", drawn)


def test_adapter_that_does_nothing_is_an_error(tmp_path: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({n: torch.zeros_like(t) for n, t in load_file(path).items()}, path)
    code, _, err = sailplan("merge", adapter, "-o", tmp_path / "out")
    assert code == 9
    assert re.fullmatch(r"error: the adapter changes none of its 2 weights: .*\n", err)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dtype", "int8"], 2, "error: --dtype int8; allowed: auto, float32, bfloat16, float16"),
        (["--max-shard-size", "much"], 2, "error: --max-shard-size much; allowed: a size such as"),
        (["--base", "/no/such"], 3, "error: there is no model folder /no/such"),
        (["--adapter", "."], 9, "is an adapter itself; allowed: --adapter on top of a whole model"),
    ],
)
def test_mistake_ends_in_one_line(
    tmp_path: Path, adapter: Path, arguments: list[str], code: int, message: str
) -> None:
    found, _, err = sailplan("merge", adapter, "--output", tmp_path / "out", *arguments)
    assert found == code
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def llama_13b(folder: Path) -> Path:
    """The 13B of the article in float16; its 26 GB are a hole in the file."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        tie_word_embeddings=False,
        dtype="float16",
        architectures=["LlamaForCausalLM"],
    )
    return layouts.hollow_base(folder, config, "float16")


@pytest.mark.parametrize(("size", "files"), [("400MB", 82), ("2GB", 14)])
def test_dry_run_plans_the_articles_shards(tmp_path: Path, size: str, files: int) -> None:
    model = llama_13b(tmp_path / "model")
    code, out, err = sailplan(
        "merge", model, "--output", tmp_path / "out", "--max-shard-size", size, "--dry-run"
    )
    assert code == 0, err
    assert f"model-00001-of-{files:05d}.safetensors" in out
    assert f"{files} files, 363 tensors, and config.json" in out
    assert f"… {files - 12} more" in out
    assert "would write 26.0 GB" in out
    assert not (tmp_path / "out").exists()


def test_export_writes_each_format(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    model = tiny_model("llama")
    for kind, name in (
        ("hf", "model.safetensors.index.json"),
        ("meta", "consolidated.00.pth"),
        ("bnb-4bit", "model.safetensors"),
    ):
        arguments = ["--max-shard-size", "100kB"] if kind == "hf" else []
        output = tmp_path / kind
        code, out, err = sailplan("export", model, "--format", kind, "--output", output, *arguments)
        assert code == 0, err
        assert (output / name).is_file()
        assert str(output) in out
    code, _, err = sailplan("export", model, "--format", "gguf", "--output", tmp_path / "x")
    assert code == 2
    assert err == "error: --format gguf; allowed: hf, meta, bnb-4bit, bnb-8bit\n"


def test_adapter_whose_file_is_empty_is_recovered_from_what_fsdp_saved(
    tmp_path: Path, adapter: Path, tiny_model: Callable[[str], Path]
) -> None:
    """Merged, it is what the adapter was before its file was lost."""
    saved = adapter / "adapter_model.safetensors"
    state = {
        re.sub(r"(lora_[AB])", r"\1.default", f"model.{name}"): tensor
        for name, tensor in load_file(saved).items()
    }
    checkpoint = Path(shutil.copytree(adapter, tmp_path / "lost" / "checkpoint-5"))
    folder = checkpoint / "pytorch_model_fsdp_0"
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    save_file({}, checkpoint / "adapter_model.safetensors")

    code, _, err = sailplan("merge", checkpoint, "-o", tmp_path / "out")
    assert code == 9
    assert f"sailplan recover-adapter {checkpoint}" in err
    code, out, err = sailplan("recover-adapter", checkpoint, "--output", tmp_path / "again")
    assert code == 0, err
    assert out.endswith(f"recovered into {tmp_path / 'again'}\n")

    found = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert found.keys() == load_file(saved).keys()
    assert all(found[name].equal(tensor) for name, tensor in load_file(saved).items())
    base = AutoModelForImageTextToText.from_pretrained(tiny_model("qwen2_vl"))
    PeftModel.from_pretrained(base, tmp_path / "again")


def test_recovering_needs_a_sharded_checkpoint(tmp_path: Path, adapter: Path) -> None:
    code, _, err = sailplan("recover-adapter", adapter, "--output", tmp_path / "out")
    assert code == 9
    assert "has no sharded checkpoint beside it" in err


def test_run_directory_falls_back_to_its_last_whole_checkpoint(
    tmp_path: Path, adapter: Path
) -> None:
    for step in (10, 9, 100):
        shutil.copytree(adapter, tmp_path / "all" / f"checkpoint-{step}")
    broken = tmp_path / "all" / "checkpoint-100" / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    code, out, err = sailplan("merge", tmp_path / "all", "-o", tmp_path / "out", "--dry-run")
    assert code == 0, err
    assert f"adapter {tmp_path / 'all' / 'checkpoint-10'}\n" in out
    assert "note: checkpoint-100 was passed over: " in out

"""What goes wrong on the way home: each fault has its own line, and no input is touched."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import layouts
from sailplan.errors import CheckpointError, OutputError, SailplanError
from sailplan.merge import write
from sailplan.merge.job import Options, prepare
from sailplan.merge.output import carry_out
from sailplan.merge.verify import verify

SMALL = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    tie_word_embeddings=False,
    architectures=["LlamaForCausalLM"],
)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): xxhash.xxh3_128_hexdigest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def zero(tmp_path: Path) -> Path:
    """A ZeRO-3 checkpoint of four ranks."""
    return layouts.zero3(tmp_path / "in", SMALL)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A published model in several files."""
    made = AutoModelForCausalLM.from_config(SMALL)
    made.save_pretrained(tmp_path / "in" / "model", max_shard_size="20KB")
    return tmp_path / "in" / "model"


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
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARK}",)


MARK = Path("/tmp/sailplan-merge-ran-code")

ZERO_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda f: truncate(rank_file(f, 2)), "truncated or corrupt"),
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
    assert not MARK.exists()


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
        "broken|does not|no",
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
    assert not MARK.exists()


def test_values_that_are_not_finite_are_refused(tmp_path: Path, model: Path) -> None:
    first = sorted(model.glob("model-*"))[0]
    from safetensors.torch import load_file

    tensors = load_file(first)
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, first)
    with pytest.raises(CheckpointError, match=f"{name} would hold values that are not finite"):
        carry_out(prepare(model), tmp_path / "out")


class TestOutput:
    def test_input_folder_is_refused(self, model: Path) -> None:
        before = digests(model)
        with pytest.raises(OutputError, match="is an input; choose another"):
            carry_out(prepare(model), model, force=True)
        assert digests(model) == before

    def test_circle_of_links_is_refused(self, tmp_path: Path, model: Path) -> None:
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(OutputError, match=r"cannot write .*(circle|levels of symbolic links)"):
            carry_out(prepare(model), tmp_path / "a")
        with pytest.raises(CheckpointError, match=r"(circle|levels of symbolic links)"):
            prepare(tmp_path / "a")

    def test_file_is_refused(self, tmp_path: Path, model: Path) -> None:
        (tmp_path / "out").write_text("mine")
        with pytest.raises(OutputError, match="out is a file"):
            carry_out(prepare(model), tmp_path / "out")
        assert (tmp_path / "out").read_text() == "mine"

    def test_another_model_is_kept_until_it_is_forced(self, tmp_path: Path, model: Path) -> None:
        carry_out(prepare(model, Options(max_shard_bytes=20_000)), tmp_path / "out")
        before = digests(tmp_path / "out")
        with pytest.raises(OutputError, match=r"holds a model already; .* --force"):
            carry_out(prepare(model), tmp_path / "out")
        assert digests(tmp_path / "out") == before

        job = prepare(model)
        verify(job, tmp_path / "out", carry_out(job, tmp_path / "out", force=True), "full")

        assert {p.name for p in (tmp_path / "out").iterdir()} == {
            *("model.safetensors", "config.json", "generation_config.json")
        }

    def test_other_options_do_not_go_on_with_a_killed_merge(
        self, tmp_path: Path, model: Path
    ) -> None:
        job = prepare(model, Options(max_shard_bytes=20_000))
        with pytest.raises(KeyboardInterrupt):
            carry_out(job, tmp_path / "out", on_bytes=_stop_after(30_000))
        with pytest.raises(OutputError, match="holds another merge that was not finished"):
            carry_out(prepare(model, Options(max_shard_bytes=30_000)), tmp_path / "out")
        carry_out(job, tmp_path / "out")
        carry_out(job, tmp_path / "undisturbed")
        assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")


def _stop_after(num_bytes: int) -> Callable[[int], None]:
    left = num_bytes

    def stop(count: int) -> None:
        nonlocal left
        left -= count
        if left < 0:
            raise KeyboardInterrupt

    return stop


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_fills_up_is_told_and_the_merge_goes_on(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = LlamaConfig(**{**SMALL.to_dict(), "intermediate_size": 1000})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "model")
    job = prepare(tmp_path / "model", Options(max_shard_bytes=200_000))
    with pytest.raises(OutputError, match=r"has room for 0\.00 GiB"):
        carry_out(job, small_disk / "out")
    # Another program fills the disk after the room was looked at.
    monkeypatch.setattr(write, "_check_room", lambda *_: None)
    with pytest.raises(OutputError, match="No space left on device; make room and run the same"):
        carry_out(job, small_disk / "out")
    there = {path.name for path in (small_disk / "out").iterdir()}
    assert "model.safetensors.index.json" not in there
    assert any(name.startswith("model-00001-of") for name in there)

    remount = ["mount", "-o", "remount,size=4m", str(small_disk)]
    subprocess.run(remount, check=True, capture_output=True)
    carry_out(job, small_disk / "out")

    carry_out(job, tmp_path / "undisturbed")
    assert digests(small_disk / "out") == digests(tmp_path / "undisturbed")


KILLED = """
import os, random, shutil, signal, sys
from pathlib import Path
import torch
from sailplan.merge import stream
from sailplan.merge.job import Options, prepare
from sailplan.merge.output import carry_out

stream.CHUNK_BYTES = 2000
torch.set_num_threads(1)
out = Path(sys.argv[2])
job = prepare(Path(sys.argv[1]), Options(max_shard_bytes=20_000))
real, writes, last = os.pwrite, [0], [-1]

def pwrite(*arguments):
    if writes[0] == last[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    writes[0] += 1
    return real(*arguments)

os.pwrite = pwrite
carry_out(job, out)
total = writes[0]
chance = random.Random(0)
for _ in range(50):
    shutil.rmtree(out)
    writes[0], last[0] = 0, chance.randrange(1, total)
    for _ in range(2):  # killed, then resumed
        child = os.fork()
        if not child:
            carry_out(job, out)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        index = (out / "model.safetensors.index.json").exists()
        print(last[0], os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, int(index), flush=True)
        if last[0] < 0:
            break
        last[0] = -1
    digest = b"".join(path.read_bytes() for path in sorted(out.iterdir()))
    print("bytes", hash(digest), len(list(out.iterdir())), flush=True)
"""


def test_fifty_kills_are_each_resumed_to_the_same_bytes(tmp_path: Path, zero: Path) -> None:
    carry_out(prepare(zero, Options(max_shard_bytes=20_000)), tmp_path / "undisturbed")
    expected = b"".join(path.read_bytes() for path in sorted((tmp_path / "undisturbed").iterdir()))
    code = f"{KILLED}\nprint('bytes', hash(Path(sys.argv[3]).read_bytes()), 0)"
    (tmp_path / "expected").write_bytes(expected)
    inputs = digests(zero)

    command = [sys.executable, "-c", code, str(zero), str(tmp_path / "out")]
    command.append(str(tmp_path / "expected"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    contents = {line[1] for line in lines if line[0] == "bytes"}
    assert len(contents) == 1
    runs = [line for line in lines if line[0] != "bytes"]
    killed = [line for line in runs if line[1] == str(int(signal.SIGKILL))]
    # Behind the first byte, and before the index has its name.
    assert len([line for line in killed if int(line[0]) >= 1 and line[2] == "0"]) == 50
    assert len([line for line in runs if line[1:] == ["0", "1"]]) == 50
    assert digests(zero) == inputs


LIMITED = """
import resource, sys
from pathlib import Path
import transformers.models.llama.modeling_llama
from sailplan.merge import names, output
from sailplan.merge.job import Options, prepare
import torch

held = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
limit = held + 512 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    bytearray(600 * 2**20)
except MemoryError:
    print("limited")
job = prepare(Path(sys.argv[1]), Options(dtype="bfloat16"))
output.carry_out(job, Path(sys.argv[2]), check_finite=True)
print(job.read_bytes)
"""


def test_half_a_gigabyte_suffices_for_four_times_as_much(tmp_path: Path) -> None:
    """A model of 2.1 GB in float32, which takes no room on the disk: all of it is a hole."""
    config = layouts.config(0.53e9)
    config.dtype = "float32"
    config.save_pretrained(tmp_path / "in")
    from sailplan.checkpoint.safetensors import layout

    shapes = {name: ("float32", shape) for name, shape in layouts.shapes(config).items()}
    head, begins = layout(shapes)
    last = max(begins, key=lambda name: begins[name])
    with (tmp_path / "in" / "model.safetensors").open("wb") as file:
        file.write(head)
        numel = torch.Size(shapes[last][1]).numel()
        file.truncate(begins[last] + 4 * numel)

    command = [sys.executable, "-c", LIMITED, str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr[-2000:]
    limited, read_bytes = done.stdout.split()
    assert limited == "limited"
    assert int(read_bytes) > 4 * 512 * 2**20 * 0.98
    shutil.rmtree(tmp_path / "out")

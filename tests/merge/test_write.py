"""Plans become files: byte for byte those of save_pretrained, whatever is killed on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sailplan.checkpoint import hub_folder
from sailplan.checkpoint.stored import Pieces, Row, StoredTensor
from sailplan.errors import CheckpointError, OutputError
from sailplan.merge import stream
from sailplan.merge.journal import NAME
from sailplan.merge.tensor_plan import Shard, TensorPlan, prove, prove_used_up, shard
from sailplan.merge.write import verify, write


def plan(name: str, tensor: StoredTensor, dtype: str | None = None) -> TensorPlan:
    segments = tuple(Row([tensor]).take(0, tensor.numel))
    source = Pieces(shape=tensor.shape, segments=segments)
    return TensorPlan(name=name, dtype=dtype or tensor.dtype, source=source)


def shards_of(model: Path, max_bytes: int, dtype: str | None = None) -> list[Shard]:
    """The plan that copies a folder's weights."""
    found = hub_folder.read(model)
    plans = [plan(name, found[name], dtype) for name in sorted(found)]
    prove(plans)
    return shard(plans, max_bytes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if "model" in path.name}


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("llama")


@pytest.mark.parametrize("max_bytes", [50_000, 150_000, 10**9])
def test_files_are_those_of_save_pretrained_byte_for_byte(
    tmp_path: Path, model: Path, max_bytes: int
) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.save_pretrained(tmp_path / "theirs", max_shard_size=max_bytes)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / "theirs" / name).unlink()

    shards = shards_of(model, max_bytes)
    digests = write(shards, tmp_path / "ours")
    verify(shards, tmp_path / "ours", digests)

    ours, theirs = contents(tmp_path / "ours"), contents(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        if name.endswith(".safetensors"):
            assert ours[name] == theirs[name], name
    assert not [path for path in (tmp_path / "ours").iterdir() if path.name.startswith(".")]


def test_weights_are_cast_as_torch_casts_them(tmp_path: Path, model: Path) -> None:
    write(shards_of(model, 10**9, "bfloat16"), tmp_path / "out")

    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert tensor.equal(load_file(model / "model.safetensors")[name].bfloat16())


def test_size_of_chunks_does_not_change_a_byte(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(shards_of(model, 150_000), tmp_path / "large")
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1000)
    write(shards_of(model, 150_000), tmp_path / "small", workers=4)
    assert contents(tmp_path / "large") == contents(tmp_path / "small")


@pytest.fixture
def undisturbed(tmp_path: Path, model: Path) -> dict[str, bytes]:
    write(shards_of(model, 50_000), tmp_path / "undisturbed")
    return contents(tmp_path / "undisturbed")


class PowerLost(BaseException):
    """What ends a merge in these tests."""


def stop_after(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """Ends a merge behind that many files, as where the machine loses power."""
    left = [files]

    def write_shard(*arguments: Any, **options: Any) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise PowerLost
        return stream.write_shard(*arguments, **options)

    monkeypatch.setattr("sailplan.merge.write.write_shard", write_shard)


def test_finished_files_are_kept_unless_they_changed(
    tmp_path: Path, model: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(PowerLost):
            write(shards_of(model, 50_000), out)
    whole = sorted(path for path in out.glob("model-*"))
    assert len(whole) == 3
    kept = whole[0].stat().st_mtime_ns
    with whole[1].open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")

    write(shards_of(model, 50_000), out)

    assert contents(out) == undisturbed
    assert whole[0].stat().st_mtime_ns == kept


def test_merge_of_other_inputs_or_options_is_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(PowerLost):
            write(shards_of(model, 50_000), out)

    for shards, options in (
        (shards_of(model, 60_000), {}),
        (shards_of(model, 50_000, "bfloat16"), {}),
        (shards_of(model, 50_000), {"base_precision": "16bit"}),
    ):
        with pytest.raises(OutputError, match="holds another merge that was not finished"):
            write(shards, out, options=options)
    (out / NAME).write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        write(shards_of(model, 50_000), out)


def test_output_folder_that_is_an_input_is_refused(tmp_path: Path, model: Path) -> None:
    before = (model / "model.safetensors").read_bytes()
    (tmp_path / "link").symlink_to(model)
    for folder in (model, tmp_path / "link"):
        with pytest.raises(OutputError, match=r"holds model\.safetensors, which is an input"):
            write(shards_of(model, 50_000), folder)
    assert (model / "model.safetensors").read_bytes() == before


def test_plan_that_is_not_whole_is_not_proven(tmp_path: Path, model: Path) -> None:
    found = hub_folder.read(model)
    (name, tensor), *_ = found.items()
    good = plan(name, tensor)
    with pytest.raises(CheckpointError, match=f"two tensors would be called {name}"):
        prove([good, good])
    short = Pieces(shape=tensor.shape, segments=good.source.segments[:0])
    with pytest.raises(CheckpointError, match=r"takes \d+ elements, 0 are there"):
        prove([TensorPlan(name=name, dtype="float32", source=short)])
    with pytest.raises(CheckpointError, match="1 of the adapter's tensors match nothing"):
        prove_used_up([good], ["lora_A.weight"])
    cut_off = tmp_path / "model.safetensors"
    cut_off.write_bytes((model / "model.safetensors").read_bytes()[:-9])
    last = max(found.values(), key=lambda tensor: tensor.offset)
    moved = StoredTensor(
        file=cut_off, offset=last.offset, dtype=last.dtype, shape=last.shape, stride=last.stride
    )
    with pytest.raises(CheckpointError, match="within a tensor"):
        prove([plan("last", moved)])


def test_file_that_reads_back_otherwise_is_told(tmp_path: Path, model: Path) -> None:
    shards = shards_of(model, 10**9)
    digests = write(shards, tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(CheckpointError, match="reads back otherwise"):
        verify(shards, tmp_path, digests)


def test_sizes_of_the_articles_shards() -> None:
    """LLaMA-13B in fp16: the article's 82 files at 400MB, and 14 at 2GB."""
    hidden, inner, layers, words = 5120, 13824, 40, 32000
    shapes = {"model.embed_tokens.weight": (words, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"}
        shapes |= {f"{at}mlp.{x}_proj.weight": (inner, hidden) for x in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{at}{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (words, hidden)}
    plans = [
        TensorPlan(name=name, dtype="float16", source=Pieces(shape=shape, segments=()))
        for name, shape in shapes.items()
    ]

    assert len(shard(plans, 400 * 10**6)) == 82
    assert len(shard(plans, 2 * 10**9)) == 14
    assert sum(part.num_bytes for part in shard(plans, 10**9)) == 2 * 13_015_864_320


def test_importing_the_merge_loads_no_training_library() -> None:
    code = (
        "import sys; from sailplan.merge import write; "
        "print({'deepspeed', 'trl', 'peft', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """128 MiB of weights are written with less than 64 MiB of this process's own memory."""
    code = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from sailplan.checkpoint import safetensors
from sailplan.merge.tensor_plan import shard
from sailplan.merge.write import write
from tests.merge.test_write import plan
folder = Path(sys.argv[1])
if sys.argv[2] == "make":
    save_file({f"w{n}": torch.ones(4096, 2048) for n in range(4)}, folder / "in.safetensors")
else:
    def anonymous():
        return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024
    found = safetensors.read(folder / "in.safetensors")
    before, peak = anonymous(), [0.0]
    def look(_):
        peak[0] = max(peak[0], anonymous())
    write(shard([plan(n, t, "bfloat16") for n, t in found.items()], 10**9), folder / "out",
          on_bytes=look)
    print(peak[0] - before)
"""
    for phase in ("make", "merge"):
        command = [sys.executable, "-c", code, str(tmp_path), phase]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 64

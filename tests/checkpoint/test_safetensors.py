"""safetensors files: ours are the library's byte for byte, and broken ones are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sailplan.checkpoint import hub_folder, safetensors
from sailplan.errors import CheckpointError
from tests.checkpoint.reading import values

TENSORS = {
    "b.weight": torch.arange(12.0).view(3, 4),
    "a.weight": torch.arange(6.0).view(2, 3).bfloat16(),
    "scalar": torch.tensor(2.5),
    "count": torch.tensor([1, 2, 3]),
    "empty": torch.empty(0, 4),
    "flags": torch.tensor([True, False]),
    "ü": torch.ones(2, dtype=torch.float16),
}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a file as `layout` lays it out."""
    described = {
        n: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in tensors.items()
    }
    head, begins = safetensors.layout(described)
    content = bytearray(head)
    for name, begin in sorted(begins.items(), key=lambda item: item[1]):
        assert begin == len(content)
        content += tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    path.write_bytes(content)


def test_tensors_of_the_librarys_file_lie_where_they_are_said_to(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})

    found = safetensors.read(tmp_path / "x.safetensors")

    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert values(found[name]).equal(tensor), name


def test_our_file_is_the_librarys_byte_for_byte(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"format": "pt"})
    write(tmp_path / "ours.safetensors", TENSORS)

    assert (tmp_path / "ours.safetensors").read_bytes() == (
        tmp_path / "theirs.safetensors"
    ).read_bytes()
    assert load_file(tmp_path / "ours.safetensors").keys() == TENSORS.keys()


@pytest.mark.parametrize("part", [0, 5, 8, 60, 0.5, 0.99])
def test_cut_off_file_is_refused(tmp_path: Path, part: float) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes(content[: part if part >= 1 or part == 0 else int(len(content) * part)])

    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        safetensors.read(path)


def test_every_flipped_byte_of_the_header_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.arange(3.0)}, path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    accepted = 0
    for position in range(8 + length):
        broken = bytearray(content)
        broken[position] ^= 1
        path.write_bytes(broken)
        try:
            found = safetensors.read(path)
        except CheckpointError:
            continue
        accepted += 1
        # A letter of a name or of nothing may change; sizes and places may not.
        assert [t.num_bytes for t in found.values()] == [16, 12]
    assert accepted < 12


def test_header_that_tells_of_another_shape_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))

    with pytest.raises(CheckpointError, match=r"a tensor of shape \(3,\) in 8 bytes"):
        safetensors.read(path)


@pytest.mark.parametrize("shard_size", ["50GB", "20KB"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_folder_of_a_model_is_read_whole(
    tmp_path: Path, tiny_model, shard_size: str, kind: str
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    if kind == "safetensors":
        model.save_pretrained(tmp_path, max_shard_size=shard_size)
    else:
        state, names = model.state_dict(), list(model.state_dict())
        halves = [names] if shard_size == "50GB" else [names[::2], names[1::2]]
        for number, half in enumerate(halves):
            file = f"pytorch_model-{number}.bin" if len(halves) > 1 else "pytorch_model.bin"
            torch.save({name: state[name] for name in half}, tmp_path / file)
        weight_map = {n: f"pytorch_model-{i}.bin" for i, half in enumerate(halves) for n in half}
        if len(halves) > 1:
            index = tmp_path / "pytorch_model.bin.index.json"
            index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    found = hub_folder.read(tmp_path)

    assert hub_folder.is_model(tmp_path)
    assert found.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert values(found[name]).equal(tensor), name


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        hub_folder.read(tmp_path)
    assert not hub_folder.is_model(tmp_path)
    index = tmp_path / hub_folder.INDEX
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"lacks one\.safetensors and 1 more"):
        hub_folder.read(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"c": torch.ones(2)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"lists b in two\.safetensors, which lacks it"):
        hub_folder.read(tmp_path)
    for text in ("[]", "{", '{"weight_map": {"a": "../one.safetensors"}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="is no index"):
            hub_folder.read(tmp_path)

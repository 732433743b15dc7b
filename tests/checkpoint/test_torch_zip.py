"""Files of torch.save are read as data: every tensor at its place, and nothing is ever run."""

from __future__ import annotations

import collections
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sailplan.checkpoint.inert import Inert
from sailplan.checkpoint.stored import ITEM_BYTES
from sailplan.checkpoint.torch_zip import read
from sailplan.errors import CheckpointError
from tests.checkpoint.reading import values


def same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.dtype == other.dtype and torch.equal(
        tensor.contiguous().view(torch.uint8), other.detach().contiguous().view(torch.uint8)
    )


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def write(content: Any) -> Path:
        path = tmp_path / "file.pt"
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return write


@pytest.mark.parametrize("dtype", sorted(set(ITEM_BYTES) - {"bool", "complex64"}))
def test_tensor_of_every_dtype_lies_where_it_is_said_to(save: Any, dtype: str) -> None:
    tensor = torch.arange(1, 25).reshape(4, 6).to(getattr(torch, dtype))

    found = read(save({"tensor": tensor}))["tensor"]

    assert (found.dtype, found.shape, found.is_contiguous) == (dtype, (4, 6), True)
    assert found.num_bytes == tensor.numel() * tensor.element_size()
    assert same(values(found), tensor)


def test_views_parameters_and_odd_shapes_are_read_in_place(save: Any) -> None:
    base = torch.arange(60, dtype=torch.float32)
    tensors = {
        "whole": base,
        "part": base[7:19],
        "rows": base.view(6, 10)[2:5],
        "transposed": base.view(6, 10).t(),
        "parameter": torch.nn.Parameter(base.view(4, 15).bfloat16()),
        "nothing": torch.empty(0, 3),
        "one": torch.tensor(3.5),
        "flags": torch.tensor([True, False]),
    }

    found = read(save(tensors))

    assert {name for name, tensor in found.items() if not tensor.is_contiguous} == {"transposed"}
    assert found["part"].file == found["whole"].file
    assert found["part"].offset == found["whole"].offset + 28
    for name, tensor in tensors.items():
        assert values(found[name]).equal(tensor.detach()), name


def test_other_objects_are_kept_as_data(save: Any) -> None:
    content = {
        "order": collections.OrderedDict([("b", torch.Size([2, 3])), ("a", 1)]),
        "counts": collections.defaultdict(list, {"x": [1]}),
        "path": Path("some/where"),
        "settings": SimpleNamespace(rate=0.5),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "group": [{"lr": 1e-4, "params": [0, 1]}],
        "none": None,
    }

    found = read(save(content))

    assert list(found["order"].items()) == [("b", (2, 3)), ("a", 1)]
    assert found["dtype"] == "bfloat16"
    assert found["group"] == content["group"]
    assert found["none"] is None
    assert isinstance(found["settings"], Inert)
    assert found["settings"].state == {"rate": 0.5}
    assert found["settings"].qualified_name == "types.SimpleNamespace"
    assert found["counts"]["x"] == [1]


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (lambda trace: Evil(os.system, f"touch {trace}"), "posix.system"),
        (lambda trace: Evil(eval, f"open({str(trace)!r}, 'w')"), "builtins.eval"),
        (lambda trace: Evil(getattr, "text", "upper"), "builtins.getattr"),
        (lambda trace: Evil(open, str(trace), "w"), "open"),
        (lambda trace: Evil(__import__, "antigravity"), "builtins.__import__"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_pickle_that_would_run_code_is_refused_by_name_and_runs_none(
    save: Any, tmp_path: Path, evil: Any, name: str
) -> None:
    trace = tmp_path / "trace"
    path = save({"module": {"weight": torch.ones(3)}, "extra": evil(trace)})

    with pytest.raises(CheckpointError, match="nothing was run") as caught:
        read(path)

    assert name in str(caught.value)
    assert not trace.exists()


def test_call_of_a_trusted_packages_function_is_not_made(tmp_path: Path, save: Any) -> None:
    trace = tmp_path / "trace"
    path = save({"x": Evil(torch.save, 1, str(trace))})

    assert read(path)["x"].args == (1, str(trace))
    assert not trace.exists()


def test_old_opcodes_that_name_classes_are_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file/data.pkl", b"(S'true'\nios\nsystem\n.")

    with pytest.raises(CheckpointError, match=r"names os\.system"):
        read(path)


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_file_is_one_line(save: Any, part: float) -> None:
    path = save({"a": torch.arange(5000.0), "b": torch.arange(300)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])

    with pytest.raises(CheckpointError, match="get it again") as caught:
        read(path)

    assert "\n" not in str(caught.value)


def test_every_flipped_byte_outside_of_the_values_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"a": torch.arange(70.0), "b": torch.arange(9)}, path)
    content = path.read_bytes()
    whole = read(path)
    own = {n for t in whole.values() for n in range(t.offset, t.offset + t.num_bytes)}
    refused = 0
    for position in sorted(set(range(len(content))) - own):
        broken = bytearray(content)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        try:
            found = read(path)
        except CheckpointError:
            refused += 1
            continue
        # Padding may change, and what an archive does not need; no place and no shape may.
        assert found == whole, position
    assert refused > 300


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"not a checkpoint", b"\x80\x02}q\x00.", b"PK\x03\x04" * 9]
)
def test_file_of_something_else_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"file\.pt"):
        read(path)


def test_missing_file_and_compressed_archive_are_refused(tmp_path: Path, save: Any) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read(tmp_path / "none.pt")
    torch.save({"a": torch.ones(3)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    with pytest.raises(CheckpointError, match="is compressed"):
        read(tmp_path / "small.pt")


def test_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0)}, tmp_path / "file.pt")
    with zipfile.ZipFile(tmp_path / "file.pt") as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        for name, content in parts.items():
            # The shape (6,) becomes (200,); the storage keeps its six elements.
            changed = (
                content.replace(b"K\x06\x85", b"K\xc8\x85") if name.endswith("pkl") else content
            )
            archive.writestr(name, changed)

    with pytest.raises(CheckpointError, match="reaches beyond its storage of 24 bytes"):
        read(tmp_path / "file.pt")


def test_member_of_an_enumeration_is_read_as_older_pythons_write_it(save: Any) -> None:
    from transformers.trainer_utils import IntervalStrategy

    # Python before 3.11.4 pickles a member as this call.
    found = read(save({"when": Evil(getattr, IntervalStrategy, "STEPS")}))["when"]

    assert found.qualified_name == "transformers.trainer_utils.IntervalStrategy"
    assert found.args == ("STEPS",)

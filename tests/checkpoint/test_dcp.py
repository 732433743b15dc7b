"""Checkpoints that accelerate wrote under FSDP are read in place; broken ones are refused."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sailplan.checkpoint import dcp
from sailplan.errors import CheckpointError
from tests.checkpoint.reading import joined
from tests.support.launch import free_port

SCRIPT = Path(__file__).with_name("fsdp_ranks.py")


@pytest.fixture(
    scope="module", params=[(2, "bfloat16"), pytest.param((3, "float32"), marks=pytest.mark.slow)]
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What that many ranks wrote in that dtype."""
    world_size, dtype = request.param
    folder = tmp_path_factory.mktemp("fsdp")
    command = [sys.executable, "-m", "torch.distributed.run", "--master_port", str(free_port())]
    command += ["--nproc_per_node", str(world_size), str(SCRIPT), str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_weights_lie_where_they_are_said_to(written: Path) -> None:
    expected = torch.load(written / "expected.pt")

    found = dcp.read(written / "pytorch_model_fsdp_0").tensors

    assert found.keys() == expected.keys()
    assert found["count"].shape == ()
    for name, pieces in found.items():
        assert joined(pieces).equal(expected[name]), name


def test_weights_equal_those_of_accelerate_where_it_keeps_them(
    written: Path, tmp_path: Path
) -> None:
    from accelerate.utils import merge_fsdp_weights

    merge_fsdp_weights(str(written / "pytorch_model_fsdp_0"), str(tmp_path), False)
    peer = torch.load(tmp_path / "pytorch_model.bin")

    found = dcp.read(written / "pytorch_model_fsdp_0").tensors
    assert found.keys() == peer.keys()
    for name, pieces in found.items():
        assert joined(pieces).equal(peer[name]), name


def test_parts_that_are_columns_are_put_together(written: Path) -> None:
    if not (written / "columns").is_dir():
        pytest.skip("two ranks alone write columns")
    columns = dcp.read(written / "columns").tensors["columns"]
    assert len(columns.segments) == 10
    assert joined(columns).equal(torch.arange(30.0).view(5, 6))


def test_optimizer_is_no_model(written: Path) -> None:
    with pytest.raises(CheckpointError, match="optimizer_0 holds no model"):
        dcp.read(written / "optimizer_0")


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(written / "pytorch_model_fsdp_0", tmp_path / "model"))


def test_missing_file_is_refused(copy: Path) -> None:
    (copy / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"lacks __1_0\.distcp; copy the missing files"):
        dcp.read(copy)


def test_truncated_file_is_refused(copy: Path) -> None:
    path = copy / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp is cut off"):
        dcp.read(copy)


def test_broken_metadata_are_refused(copy: Path) -> None:
    (copy / ".metadata").write_bytes((copy / ".metadata").read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"\.metadata holds a broken pickle"):
        dcp.read(copy)
    (copy / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="is no metadata of torch"):
        dcp.read(copy)
    (copy / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        dcp.read(copy)


MARK = f"sailplan-dcp-ran-{os.getpid()}"


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARK}",)


def test_metadata_that_try_to_run_code_run_none(copy: Path) -> None:
    (copy / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"system, which a checkpoint has no reason to call"):
        dcp.read(copy)
    assert not Path(MARK).exists()


def _rewrite(copy: Path, change: Callable[[SimpleNamespace], None]) -> None:
    metadata = pickle.loads((copy / ".metadata").read_bytes())
    change(metadata)
    (copy / ".metadata").write_bytes(pickle.dumps(metadata))


def test_part_that_is_missing_is_refused(copy: Path) -> None:
    def drop(metadata: SimpleNamespace) -> None:
        index = next(i for i in metadata.storage_data if i.fqn == "model.middle.weight")
        del metadata.storage_data[index]

    _rewrite(copy, drop)
    with pytest.raises(CheckpointError, match=r"a part is missing in model\.middle\.weight"):
        dcp.read(copy)


def test_part_that_lies_outside_is_refused(copy: Path) -> None:
    def shrink(metadata: SimpleNamespace) -> None:
        metadata.state_dict_metadata["model.middle.weight"].size = torch.Size([2, 7])

    _rewrite(copy, shrink)
    with pytest.raises(CheckpointError, match=r"lies outside of \(2, 7\)|overlap"):
        dcp.read(copy)


def test_path_that_leads_out_of_the_folder_is_refused(copy: Path) -> None:
    def leave(metadata: SimpleNamespace) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = "../model/" + place.relative_path

    _rewrite(copy, leave)
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        dcp.read(copy)


def test_reading_imports_no_torch(copy: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sailplan.checkpoint import dcp; "
        f"dcp.read(Path({str(copy)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr

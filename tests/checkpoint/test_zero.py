"""Checkpoints that real DeepSpeed wrote are read in place, and broken ones are refused by name."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sailplan.checkpoint import zero, zero_states
from sailplan.errors import CheckpointError
from tests.checkpoint.reading import joined

SCRIPT = Path(__file__).with_name("zero_ranks.py")
CASES = (
    *("zero1", "zero2", "zero3", "zero1_fp32", "zero2_two_groups", "zero3_two_groups"),
    *("zero3_subgroups", "zero2_offload", "zero3_offload", "zero1_bf16_optimizer"),
    *("zero2_legacy", "zero3_legacy"),
)
NOT_BY_DEEPSPEED = {
    "zero1": "drops frozen parameters",
    "zero1_fp32": "drops frozen parameters",
    "zero1_bf16_optimizer": "finds no zero_stage",
    "zero2_legacy": "maps files that are no zip archives",
    "zero3_legacy": "maps files that are no zip archives",
}
"""What DeepSpeed's own zero_to_fp32 does not manage (deepspeed 0.19.8)."""


@pytest.fixture
def written(zero_checkpoints: Path) -> Path:
    assert {path.name for path in zero_checkpoints.iterdir()} == set(CASES)
    return zero_checkpoints


@pytest.mark.parametrize("case", CASES)
def test_weights_lie_where_they_are_said_to(written: Path, case: str) -> None:
    expected = torch.load(written / case / "expected.pt")

    found = zero.read(written / case / "global_step2")

    assert found.stage == int(case[4])
    assert found.aliases == {"head.weight": "embed.weight"}
    assert found.trained.keys() | found.kept.keys() == expected.keys() - {"head.weight"}
    assert {name.split(".")[0] for name in found.kept} == {"frozen", "mean"}
    for name, pieces in {**found.trained, **found.kept}.items():
        assert joined(pieces).equal(expected[name]), name


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_BY_DEEPSPEED])
def test_weights_equal_those_of_zero_to_fp32(written: Path, case: str) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    peer = get_fp32_state_dict_from_zero_checkpoint(str(written / case), tag="global_step2")

    found = zero.read(written / case / "global_step2")
    ours = {**found.trained, **found.kept}
    assert peer.keys() == ours.keys() | found.aliases.keys()
    for name, pieces in ours.items():
        assert joined(pieces).equal(peer[name]), name


@pytest.mark.parametrize("case", NOT_BY_DEEPSPEED)
def test_what_zero_to_fp32_does_not_manage_it_still_does_not(written: Path, case: str) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    peer: dict[str, torch.Tensor] = {}
    with contextlib.suppress(ValueError, RuntimeError):
        peer = get_fp32_state_dict_from_zero_checkpoint(str(written / case), tag="global_step2")
    assert "frozen.weight" not in peer


@pytest.mark.parametrize("case", ["zero1", "zero2", "zero2_two_groups", "zero1_bf16_optimizer"])
def test_working_weights_are_the_masters_rounded(written: Path, case: str) -> None:
    found = zero.read(written / case / "global_step2")

    assert found.working.keys() == found.trained.keys()
    for name, pieces in found.working.items():
        assert joined(pieces).equal(joined(found.trained[name]).bfloat16()), name


def test_zero3_has_no_whole_working_weights(written: Path) -> None:
    assert not zero.read(written / "zero3" / "global_step2").working


def test_masters_in_bf16_are_read_as_such(written: Path, copy: Path) -> None:
    """As `bf16_master_weights_and_grads` saves them, under the name of float32 groups."""
    for rank in range(len(list(copy.glob("*_optim_states.pt")))):
        states = torch.load(rank_file(copy, rank), weights_only=False)
        groups = states["optimizer_state_dict"]["fp32_flat_groups"]
        groups[:] = [group.bfloat16() for group in groups]
        torch.save(states, rank_file(copy, rank))
    expected = torch.load(written / "zero3" / "expected.pt")

    for name, pieces in zero.read(copy).trained.items():
        assert joined(pieces).equal(expected[name].bfloat16()), name


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A ZeRO-3 checkpoint that a test may break."""
    return Path(shutil.copytree(written / "zero3" / "global_step2", tmp_path / "global_step2"))


def rank_file(folder: Path, rank: int) -> Path:
    return folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def test_missing_rank_is_refused(copy: Path) -> None:
    rank_file(copy, 1).unlink()
    with pytest.raises(CheckpointError, match=r"holds \d \*_optim_states\.pt of \d ranks"):
        zero.read(copy)


def test_missing_model_states_are_refused(copy: Path) -> None:
    (copy / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"holds \d \*_model_states\.pt of \d ranks"):
        zero.read(copy)


def test_rank_of_another_step_is_refused(copy: Path, written: Path) -> None:
    shutil.copy(rank_file(written / "zero3" / "global_step1", 1), copy)
    with pytest.raises(CheckpointError, match=r"rank_1_mp_rank_00_optim_states\.pt is of step 1, "):
        zero.read(copy)


def test_rank_of_another_stage_is_refused(copy: Path, written: Path) -> None:
    shutil.copy(rank_file(written / "zero2" / "global_step2", 1), copy)
    with pytest.raises(CheckpointError, match=r"is of ZeRO-2 on \d ranks, .* of ZeRO-3"):
        zero.read(copy)


def test_rank_of_another_world_size_is_refused(copy: Path) -> None:
    states = torch.load(rank_file(copy, 1), weights_only=False)
    states["optimizer_state_dict"]["partition_count"] = 7
    torch.save(states, rank_file(copy, 1))
    with pytest.raises(CheckpointError, match=r"is of ZeRO-3 on 7 ranks, .* of ZeRO-3 on [2-4]"):
        zero.read(copy)


def test_empty_group_is_refused(copy: Path) -> None:
    states = torch.load(rank_file(copy, 1), weights_only=False)
    states["optimizer_state_dict"]["fp32_flat_groups"][0] = torch.empty(0)
    torch.save(states, rank_file(copy, 1))
    with pytest.raises(CheckpointError, match="group 0 is empty, as where weights are offloaded"):
        zero.read(copy)


def test_group_that_is_too_short_is_refused(copy: Path) -> None:
    states = torch.load(rank_file(copy, 1), weights_only=False)
    groups = states["optimizer_state_dict"]["fp32_flat_groups"]
    groups[0] = groups[0][:-1].clone()
    torch.save(states, rank_file(copy, 1))
    with pytest.raises(CheckpointError, match="take the one before it"):
        zero.read(copy)


def test_truncated_rank_is_refused(copy: Path) -> None:
    content = rank_file(copy, 1).read_bytes()
    rank_file(copy, 1).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="the file is truncated or corrupt"):
        zero.read(copy)


def test_folder_of_something_else_is_no_zero_checkpoint(tmp_path: Path, copy: Path) -> None:
    assert zero_states.is_zero(copy)
    assert not zero_states.is_zero(tmp_path)
    assert not zero_states.is_zero(tmp_path / "none")
    with pytest.raises(CheckpointError, match="it is no ZeRO checkpoint"):
        zero.read(tmp_path)


def test_reading_imports_neither_torch_nor_deepspeed(copy: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sailplan.checkpoint import zero; "
        f"zero.read(Path({str(copy)!r})); print({{'torch', 'deepspeed'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr

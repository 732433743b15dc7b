"""ZeRO checkpoints that real DeepSpeed wrote, in the form that any number of ranks loads."""

from __future__ import annotations

import contextlib
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from sailplan.errors import CheckpointError
from sailplan.train import universal

CASES = (
    *("zero1", "zero2", "zero3", "zero1_fp32", "zero2_two_groups", "zero3_two_groups"),
    *("zero3_subgroups", "zero2_offload", "zero3_offload", "zero1_bf16_optimizer"),
    *("zero2_legacy", "zero3_legacy"),
)


def by_deepspeed(folder: Path, target: Path) -> Path:
    """Converts with DeepSpeed's own tool, and returns the tensors' folder."""
    from deepspeed.checkpoint.ds_to_universal import main

    settings = Namespace(
        input_folder=str(folder),
        output_folder=str(target / folder.name),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    target.mkdir()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(settings)
    return target / folder.name / "zero"


def tensor_of(file: Path) -> torch.Tensor:
    saved: Any = torch.load(file)
    return (saved["param"] if isinstance(saved, dict) else saved).flatten()


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_equals_that_of_ds_to_universal(
    zero_checkpoints: Path, tmp_path: Path, case: str
) -> None:
    folder = zero_checkpoints / case / "global_step2"
    peer = by_deepspeed(folder, tmp_path / "peer")
    told: list[int] = []

    plan = universal.read(folder)
    universal.write(plan, tmp_path / "ours", told.append)

    assert sum(told) == plan.num_bytes
    states = {"fp32.pt", "exp_avg.pt", "exp_avg_sq.pt"}
    ours = {file for file in (tmp_path / "ours/zero").rglob("*.pt") if file.name in states}
    assert len(ours) == 3 * len(plan.tensors["fp32"])
    for file in ours:
        expected = tensor_of(peer / file.relative_to(tmp_path / "ours/zero"))
        assert tensor_of(file).equal(expected), file
    groups = universal.hyperparameters(tmp_path / "ours")
    assert len(groups) == 1 + ("two_groups" in case)
    assert all("params" not in group for group in groups)


@pytest.mark.parametrize("case", ["zero2", "zero3"])
def test_steps_of_the_optimizer_are_written_in_their_own_form(
    zero_checkpoints: Path, case: str
) -> None:
    step = universal.read(zero_checkpoints / case / "global_step2").step
    assert isinstance(step, torch.Tensor)
    assert step == 2


def test_group_that_leaves_a_rank_without_any_is_refused(zero_checkpoints: Path) -> None:
    plan = universal.read(zero_checkpoints / "zero2_two_groups" / "global_step2")
    universal.check_shares(plan, 2)
    with pytest.raises(CheckpointError, match="leaves some of 64 ranks without any"):
        universal.check_shares(plan, 64)

"""Packed rows under torch's own FSDP2, one rank's without any image: the step of one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed.fsdp_ranks import RATE, samples
from tests.support import patience
from tests.support.launch import free_port
from tests.support.packed import Setting, num_trained

SCRIPT = Path(__file__).with_name("fsdp_ranks.py")
FAMILIES = ("qwen2_vl", "llava")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """What two ranks wrote after a step of each family."""
    out = tmp_path_factory.mktemp("fsdp")
    command = [sys.executable, "-m", "torch.distributed.run", "--master_port", str(free_port())]
    command += ["--nproc_per_node", "2", str(SCRIPT), str(out)]
    command += [str(tiny_model(family)) for family in FAMILIES]
    done = patience.run(command, timeout=240, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_step_with_images_on_one_rank_alone_is_that_of_one_process(
    trained: Path, tiny_model: Callable[[str], Path], family: str
) -> None:
    setting = Setting.load(tiny_model(family))
    model, (with_images, without) = setting.model, samples(setting)
    assert all(row["images"] for row in with_images)
    assert not any(row["images"] for row in without)
    rows = [*with_images, *without]
    count = num_trained(rows)
    alone = setting.collate(packs=False)
    losses = [model(**alone([row]), use_cache=False, num_items_in_batch=count).loss for row in rows]
    loss = torch.stack(losses).sum()
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    found = torch.load(trained / f"{family}.pt")

    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (found["gradients"][name] - gradient).norm()
        assert difference <= 1e-5 * max(gradient.norm(), 1e-3), name
    for name, parameter in model.named_parameters():
        moved = parameter.detach() - RATE * expected.get(name, torch.zeros(()))
        torch.testing.assert_close(found["weights"][name], moved)

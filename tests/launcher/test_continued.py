"""What a launch on other ranks takes over from the checkpoints of its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.launcher.command import command
from sailplan.launcher.continued import continued
from sailplan.launcher.preset import named_preset
from sailplan.run.directory import RunDirectory
from tests.launcher.support import machine, run
from tests.support.saved import saved


def test_run_without_checkpoints_is_launched_as_it_is(tmp_path: Path) -> None:
    wanted = run(tmp_path, "--launch.processes", "4")
    assert continued(wanted, machine(cores=16)) == (wanted, ())


@pytest.mark.parametrize(
    ("strategy", "ranks", "expected"),
    [
        ("zero3", 1, "zero3"),
        ("zero2", 4, "zero2"),
        ("ddp", 1, "single"),
        ("single", 4, "ddp"),
    ],
)
def test_strategy_that_is_open_is_that_of_the_checkpoint(
    tmp_path: Path, strategy: str, ranks: int, expected: str
) -> None:
    wanted = run(tmp_path, "--launch.processes", str(ranks))
    saved(wanted, strategy=strategy)
    going_on, notes = continued(wanted, machine(cores=16))
    assert notes[0] == f"strategy {expected}: the run goes on as it was saved"
    launch = command(going_on, machine(cores=16), port=29511, environment={})
    assert (launch.strategy, launch.processes) == (expected, ranks)


def test_strategy_with_offload_is_known_from_the_last_launch(tmp_path: Path) -> None:
    wanted = run(tmp_path, "--launch.processes", "4")
    saved(wanted)
    file = RunDirectory.of(wanted).accelerate_file
    file.write_text(named_preset("zero3_offload").text)
    assert continued(wanted, machine(cores=16))[0].launch.strategy == "zero3_offload"


def test_strategy_that_is_written_stays(tmp_path: Path) -> None:
    wanted = run(tmp_path, "--launch.processes", "4", "--launch.strategy", "zero1")
    saved(wanted)
    assert continued(wanted, machine(cores=16))[0].launch.strategy == "zero1"


def test_launch_on_other_ranks_keeps_the_batch_of_the_newest_checkpoint(tmp_path: Path) -> None:
    wanted = run(tmp_path, "--launch.processes", "4", "--per_device_train_batch_size", "4")
    saved(wanted)
    (RunDirectory.of(wanted).checkpoint(6)).mkdir()  # was not finished
    going_on, notes = continued(wanted, machine(cores=16))
    assert notes[1] == "global batch 8 kept: micro batch 2 × 4 ranks × accumulation 1"
    launch = command(going_on, machine(cores=16), port=29511, environment={})
    text = launch.files[RunDirectory.of(wanted).train_file]
    assert "per_device_train_batch_size: 2" in text


def test_launch_that_begins_anew_takes_nothing_over(tmp_path: Path) -> None:
    wanted = run(tmp_path, "--launch.processes", "4", "--resume_from_checkpoint", "false")
    saved(wanted)
    assert continued(wanted, machine(cores=16)) == (wanted, ())

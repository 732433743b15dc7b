"""The `SFTConfig` of a run: what is refused, what is set, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.train.arguments import training_arguments


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("tensorbord", "report_to is 'tensorbord'; allowed: none, all, .*tensorboard"),
        ("neptune", "report_to is neptune, which is not installed; install it"),
    ],
)
def test_arguments_with_a_tracker_that_is_not_there_are_refused(tracker: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        training_arguments(Run.from_flags(["--use_cpu", "--report_to", tracker]))


@pytest.mark.parametrize("tracker", ["none", "all", "tensorboard"])
def test_arguments_with_a_tracker_that_is_there_take_it(tracker: str) -> None:
    args, _ = training_arguments(Run.from_flags(["--use_cpu", "--report_to", tracker]))
    assert ("tensorboard" in args.report_to) is (tracker != "none")


def test_arguments_with_a_kernel_package_that_is_not_there_are_refused() -> None:
    with pytest.raises(RunFileError, match="use_liger_kernel without the package; drop it, or pip"):
        training_arguments(Run.from_flags(["--use_cpu", "--use_liger_kernel"]))


def test_arguments_leave_the_data_to_sailplan_and_say_what_is_not_done(tmp_path: Path) -> None:
    flags = [
        "--output_dir",
        str(tmp_path / "out"),
        "--use_cpu",
        "--eval_packing",
        "--max_length",
        "64",
    ]
    args, notes = training_arguments(Run.from_flags([*flags, "--shuffle_dataset"]))
    assert (args.packing, args.max_length, args.assistant_only_loss) == (False, None, False)
    assert args.dataset_kwargs == {"skip_prepare_dataset": True}
    assert any(note.startswith("eval_packing: does nothing") for note in notes)
    assert not any(note.startswith("packing") for note in notes)
    assert any(note.startswith("shuffle_dataset: does nothing") for note in notes)


def test_arguments_keep_what_the_user_writes_of_the_trainer(tmp_path: Path) -> None:
    flags = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--pad_to_multiple_of", "8"]
    args, notes = training_arguments(Run.from_flags([*flags, "--report_to", "none", "--no_bf16"]))
    assert args.pad_to_multiple_of == 8
    assert args.report_to == []
    assert not args.bf16
    assert notes == []


REENTRANT = ("--gradient_checkpointing_kwargs", '{"use_reentrant": true}')


@pytest.mark.parametrize(
    ("flags", "searches"),
    [
        (REENTRANT, False),
        (("--gradient_checkpointing_kwargs", '{"use_reentrant": false}'), None),
        ((*REENTRANT, "--ddp_find_unused_parameters", "true"), True),
        ((*REENTRANT, "--no_gradient_checkpointing"), None),
    ],
)
def test_arguments_keep_ddp_from_searching_under_reentrant_checkpointing(
    tmp_path: Path, flags: tuple[str, ...], searches: bool | None
) -> None:
    args, _ = training_arguments(
        Run.from_flags(["--output_dir", str(tmp_path / "out"), "--use_cpu", *flags])
    )
    assert args.ddp_find_unused_parameters is searches

"""The `SFTConfig` of a run: what is refused before anything is loaded."""

from __future__ import annotations

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

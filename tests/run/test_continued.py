"""A run that goes on with other ranks has optimizer steps of as many samples as before."""

from __future__ import annotations

import pytest

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.run.continued import with_batch_of

MICRO, ACCUMULATION = "--per_device_train_batch_size", "--gradient_accumulation_steps"


def batch(run: Run, ranks: int) -> tuple[int, int]:
    """The micro batch and the accumulation on so many ranks."""
    settled = run.for_world_size(ranks)
    micro: int = settled.get("per_device_train_batch_size")
    steps: int = settled.get("gradient_accumulation_steps")
    return micro, steps


@pytest.mark.parametrize(
    ("ranks", "micro", "accumulation", "expected"),
    [
        (1, 2, 2, (2, 4)),  # half the ranks, twice the accumulation
        (4, 2, 2, (2, 1)),
        (8, 2, 2, (1, 1)),  # the micro batch of 2 would be too many
        (1, 3, 1, (2, 4)),  # 3 does not divide 8
        (1, 16, 1, (8, 1)),
        (2, 4, 3, (4, 1)),
    ],
)
def test_batch_is_kept_on_other_ranks(
    ranks: int, micro: int, accumulation: int, expected: tuple[int, int]
) -> None:
    run = Run.read_flags([MICRO, str(micro), ACCUMULATION, str(accumulation)])
    kept, (note,) = with_batch_of(run, global_batch=8, saved_by=3, world_size=ranks)
    assert batch(kept, ranks) == expected
    got, steps = expected
    of = "1 rank" if ranks == 1 else f"{ranks} ranks"
    assert note == f"global batch 8 kept: micro batch {got} × {of} × accumulation {steps}"


def test_batch_that_is_the_same_is_not_spoken_of() -> None:
    run = Run.read_flags([MICRO, "2", ACCUMULATION, "2"])
    assert with_batch_of(run, global_batch=8, saved_by=4, world_size=2) == (run, ())
    again, (_,) = with_batch_of(run, global_batch=8, saved_by=2, world_size=4)
    assert with_batch_of(again, global_batch=8, saved_by=2, world_size=4) == (again, ())


def test_batch_of_the_run_file_keeps_with_a_smaller_micro_batch() -> None:
    run = Run.read_flags([MICRO, "4", "--global_batch_size", "8"])
    kept, (note,) = with_batch_of(run, global_batch=8, saved_by=2, world_size=4)
    assert batch(kept, 4) == (2, 1)
    assert "micro batch 2 × 4 ranks × accumulation 1" in note
    kept, _ = with_batch_of(run, global_batch=8, saved_by=2, world_size=1)
    assert batch(kept, 1) == (4, 2)


def test_batch_that_is_written_anew_wins_and_is_told() -> None:
    run = Run.read_flags([MICRO, "2", "--global_batch_size", "16"])
    kept, (note,) = with_batch_of(run, global_batch=8, saved_by=2, world_size=4)
    assert batch(kept, 4) == (2, 2)
    assert note == "the global batch changes from 8 to 16, as the run file says"


def test_accumulation_that_is_written_anew_wins_on_as_many_ranks() -> None:
    run = Run.read_flags([MICRO, "2", ACCUMULATION, "4"])
    kept, (note,) = with_batch_of(run, global_batch=8, saved_by=2, world_size=2)
    assert batch(kept, 2) == (2, 4)
    assert note == "the global batch changes from 8 to 16, as the run file says"


def test_batch_that_the_ranks_cannot_share_names_those_that_can() -> None:
    run = Run.read_flags([MICRO, "2"])
    with pytest.raises(RunFileError, match="8, which 3 ranks cannot share") as error:
        with_batch_of(run, global_batch=8, saved_by=4, world_size=3)
    assert "allowed: 1, 2, 4, 8 ranks; start as many" in str(error.value)


def test_batch_that_the_plan_divides_is_left_to_it() -> None:
    run = Run.read_flags([MICRO, "auto", "--global_batch_size", "8"])
    assert with_batch_of(run, global_batch=8, saved_by=2, world_size=4) == (run, ())

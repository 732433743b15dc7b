"""Plans corrected by what a run measured: said, and only where it is of the same kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sailplan.errors import OutputError, RunFileError
from sailplan.plan.measured import Measured, corrections_of, read_measured
from sailplan.plan.record import Plan
from sailplan.run.directory import RunDirectory
from tests.plan.made import planner


def write(folder: Path, plan: Plan, *, memory: float = 1.2, time: float = 1.5) -> Measured:
    """Writes a run directory in which so much more was measured than planned."""
    chosen = plan.chosen
    found = Measured(
        device="NVIDIA H100 80GB HBM3",
        steps=10,
        step_s=chosen.time.step_s * time,
        planned_step_s=chosen.time.step_s,
        active_bytes=int(chosen.memory.peak_bytes * memory),
        reserved_bytes=int(chosen.memory.peak_bytes * memory * 1.1),
        planned_bytes=chosen.memory.peak_bytes,
        comparable=True,
    )
    folder.mkdir(exist_ok=True)
    directory = RunDirectory(folder)
    directory.plan_file.write_text(plan.text())
    directory.measured_file.write_text(found.text())
    return found


def test_plan_is_corrected_and_says_so(tmp_path: Path) -> None:
    made = planner(tmp_path)
    plan = made.plan()
    found = write(tmp_path / "old", plan)
    assert read_measured(RunDirectory(tmp_path / "old"))[1] == found
    corrections = corrections_of(tmp_path / "old", made.run, made.card)
    assert (corrections.memory, corrections.time) == pytest.approx((1.2, 1.5))
    again = replace(made, corrections=corrections).plan()
    same = next(one for one in again.candidates if one.words == plan.chosen.words)
    assert same.memory.peak_bytes == pytest.approx(1.2 * plan.chosen.memory.peak_bytes, rel=1e-3)
    assert same.time.step_s == pytest.approx(1.5 * plan.chosen.time.step_s)
    assert same.memory.band < plan.chosen.memory.band
    assert again.corrected_by == str(tmp_path / "old")
    assert "corrected by a measured run: × 1.20" in same.memory.known


def test_measurement_of_a_corrected_plan_adds_up(tmp_path: Path) -> None:
    made = planner(tmp_path)
    write(tmp_path / "old", made.plan())
    first = corrections_of(tmp_path / "old", made.run, made.card)
    write(tmp_path / "new", replace(made, corrections=first).plan(), memory=1.1, time=0.5)
    second = corrections_of(tmp_path / "new", made.run, made.card)
    assert (second.memory, second.time) == pytest.approx((1.32, 0.75))


def test_measurement_of_something_else_is_refused(tmp_path: Path) -> None:
    made = planner(tmp_path)
    write(tmp_path / "old", made.plan())
    other = planner(tmp_path, "--model_name_or_path", "c/d")
    with pytest.raises(RunFileError, match="measured a/b; leave --measured out"):
        corrections_of(tmp_path / "old", other.run, made.card)
    with pytest.raises(RunFileError, match="measured NVIDIA H100 80GB HBM3, not L4"):
        corrections_of(tmp_path / "old", made.run, planner(tmp_path, gpu="L4").card)
    with pytest.raises(OutputError, match=r"holds no measured\.json"):
        corrections_of(tmp_path, made.run, made.card)


def test_words_show_the_pair(tmp_path: Path) -> None:
    found = write(tmp_path / "old", planner(tmp_path).plan())
    assert "GiB active, " in found.words()
    assert "(planned " in found.words()
    rate_only = replace(found, device="cpu", active_bytes=None, reserved_bytes=None)
    assert rate_only.words().endswith("; memory is not compared on cpu")
    assert rate_only.memory_ratio is None


def test_waiting_for_data_is_said_and_corrects_no_plan(tmp_path: Path) -> None:
    found = write(tmp_path / "old", planner(tmp_path).plan())
    waited = replace(found, waiting_share=0.4)
    assert waited.words().endswith(" s), 40% of it waiting for data")
    assert waited.time_ratio == pytest.approx(0.6 * found.time_ratio)
    assert "waiting" not in replace(found, waiting_share=0.04).words()

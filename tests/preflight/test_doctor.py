"""The doctor as a whole: a machine in order, what it prints, and the run's strategy on a toy."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sailplan.preflight.cluster.doctor import NAMES
from sailplan.preflight.doctor import CHECKS, examine
from sailplan.preflight.finding import Check, Finding, Subject
from sailplan.preflight.model.doctor import NAMES as OF_MODEL
from sailplan.preflight.smoke import smoke
from tests.cli.test_main import sailplan
from tests.preflight.machines import doctor, run_file, run_of
from tests.support.markdown import tables

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_doctor_of_a_run_proves_its_strategy_through_its_own_launch(tmp_path: Path) -> None:
    zero = ["--launch.cpu", "true", "--launch.processes", "2", "--launch.strategy", "zero3"]
    code, found = doctor(str(run_file(tmp_path)), *zero)
    assert code == 0, found
    assert list(found) == [check.name for check in CHECKS]
    assert found["division"].text == "zero3: 2 processes on the CPU"
    assert found["bitsandbytes works"].text == "not needed: the run does not quantise"
    assert "compiled in" in found["DeepSpeed compiles"].text or (
        "from an earlier start" in found["DeepSpeed compiles"].text
    )
    assert found["smoke test"].text.startswith("zero3 × 2 over gloo: started in ")
    assert "first sum right in " in found["smoke test"].text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl", "run.yaml"]


def test_smoke_test_of_two_processes_sums_and_trains(tmp_path: Path) -> None:
    flags = ["--launch.cpu", "true", "--launch.processes", "2", "--launch.strategy", "ddp"]
    found = smoke(Subject.of(run_of(tmp_path, *flags)))
    assert found.mark == "ok", found
    assert found.text.startswith("ddp × 2 over gloo: started in ")


def test_smoke_test_of_ranks_that_do_not_meet_says_where_it_stopped(tmp_path: Path) -> None:
    flags = ["--launch.cpu", "true", "--launch.processes", "2", "--launch.strategy", "ddp"]
    subject = Subject.of(run_of(tmp_path, *flags))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "nowhere0"}
    found = smoke(replace(subject, environment=environment))
    assert found.mark == "failed"
    assert found.text.startswith("it stopped while meeting the other ranks: ")
    assert "nowhere0" in found.text
    assert found.detail


@pytest.mark.slow
def test_smoke_test_that_hangs_ends_with_all_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sailplan.preflight.smoke.TIMEOUT_S", 3.0)
    flags = ["--launch.cpu", "true", "--launch.processes", "2", "--launch.strategy", "ddp"]
    subject = Subject.of(run_of(tmp_path, *flags))
    environment = {**os.environ, "SMOKE_TEST_OF": str(tmp_path)}
    found = smoke(replace(subject, environment=environment))
    assert found.mark == "failed"
    assert found.text.endswith("it did not answer in time")
    assert not [process for process in psutil.process_iter() if belongs(process, tmp_path)]


def belongs(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("SMOKE_TEST_OF") == str(folder)
    except psutil.Error:
        return False


def test_doctor_prints_a_line_a_check_with_what_to_do() -> None:
    code, out, err = sailplan("doctor", "--quick")
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if line[:2] in ("✓ ", "✗ ", "– ")]
    assert [line[2:].split("  ")[0] for line in lines] == [check.name for check in CHECKS]
    assert "– smoke test          left out by --quick" in lines
    assert out.splitlines()[-1].startswith("nothing is wrong; ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.yaml"], 2, "there is no run file 'nowhere.yaml'"),
        (["{run}", "--learning_rat", "1"], 2, "did you mean learning_rate?"),
        (["--learning_rate", "1"], 2, "name the run file first"),
    ],
)
def test_mistake_in_the_call_ends_in_one_line(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    path = run_file(tmp_path)
    got, _, err = sailplan("doctor", *(text.format(run=path) for text in arguments))
    assert got == code
    assert message in err
    assert len(err.splitlines()) == 1


def test_every_check_is_in_a_table_of_the_page() -> None:
    of_machine, of_cluster, of_model = (
        [name for row in table for name in row[0].split(", ")]
        for table in tables(DOCS / "doctor.md")
    )
    assert of_machine == [check.name for check in CHECKS]
    assert of_cluster == list(NAMES)
    assert of_model == list(OF_MODEL)


def test_check_that_cannot_look_is_a_finding_and_not_the_end() -> None:
    def look(_: Subject) -> Finding:
        Path("/nowhere/file").read_text()
        raise AssertionError

    [line] = examine(Subject.of(None), [Check(name="files", examine=look)])
    assert line.finding.mark == "failed"
    assert "No such file or directory (/nowhere/file)" in line.finding.text


def test_preflight_is_left_out_where_it_is_asked(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    flags = ["--model_name_or_path", f"{tmp_path}/none", "--launch.cpu", "true", "--dry-run"]
    assert sailplan("train", str(path), *flags)[0] == 3
    assert sailplan("train", str(path), *flags, "--no-preflight")[0] == 0

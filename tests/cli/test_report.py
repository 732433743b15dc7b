"""`sailplan report`: the page of a run, its curves as a picture, its numbers as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sailplan.evaluate.comparison import write_comparison
from sailplan.run.paths import RunPaths
from tests.cli.test_main import sailplan
from tests.report.test_gather import COMPARISON
from tests.support.runs import copy_of
from tests.test_architecture import HEAVY


@pytest.fixture
def paths(trained_run: Path, tmp_path: Path) -> RunPaths:
    return copy_of(trained_run, tmp_path / "runs" / "my-run")


def test_report_writes_the_page_beside_the_run_and_prints_where(paths: RunPaths) -> None:
    assert sailplan("report", str(paths.path)) == (0, f"{paths.report_file}\n", "")
    page = paths.report_file.read_text()
    assert page.startswith("<!doctype html>")
    assert page.count('<svg class="chart"') == 7
    assert "my-run" in page


def test_report_writes_page_picture_and_numbers_where_they_are_wanted(
    paths: RunPaths, tmp_path: Path
) -> None:
    page, png, numbers = (tmp_path / "out" / f"a b.{end}" for end in ("html", "png", "json"))
    files = ("--output", str(page), "--png", str(png), "--json", str(numbers))
    code, out, err = sailplan("report", str(paths.path), *files)
    assert (code, err) == (0, "")
    assert out.splitlines() == [str(png), str(numbers), str(page)]
    assert not paths.report_file.exists()
    with Image.open(png) as image:
        assert image.width == 2400
    assert json.loads(numbers.read_text())["state"] == "finished"
    assert sorted(file.name for file in page.parent.iterdir()) == [
        "a b.html",
        "a b.json",
        "a b.png",
    ]


def test_printed_json_is_alone_on_standard_output(paths: RunPaths) -> None:
    code, out, err = sailplan("report", str(paths.path), "--json", "-")
    assert json.loads(out)["name"] == "my-run"
    assert (code, err) == (0, f"{paths.report_file}\n")


def test_run_is_found_by_its_file_and_by_its_name(
    paths: RunPaths, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sailplan("report", "my-run")[:2] == (0, "runs/my-run/report.html\n")
    output = tmp_path / "page.html"
    file = str(trained_run / "run.yaml")
    assert sailplan("report", file, "--output", str(output))[0] == 0
    assert output.is_file()


def test_base_alone_is_reported_before_any_training(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "out")
    paths.comparisons.mkdir(parents=True)
    write_comparison(paths.comparison_file, COMPARISON)
    file = tmp_path / "run.yaml"
    file.write_text(f"model_name_or_path: a/b\ndataset_name: c/d\noutput_dir: {paths.path}\n")
    assert sailplan("report", str(file)) == (0, f"{paths.report_file}\n", "")
    page = paths.report_file.read_text()
    assert "a boat" in page
    assert "a/b" in page


def test_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    assert sailplan("report", str(tmp_path)) == (
        2,
        "",
        f"error: {tmp_path} holds no run.yaml; name a run file\n",
    )


def test_run_that_has_not_begun_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model_name_or_path: a/b\ndataset_name: c/d\noutput_dir: {tmp_path}/out\n")
    code, out, err = sailplan("report", str(file))
    assert (code, out, err.count("\n")) == (7, "", 1)
    assert f"there is nothing to report in {tmp_path}/out yet" in err


def test_page_that_cannot_be_written_is_one_line(paths: RunPaths, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option in ("--output", "--png", "--json"):
        code, _, err = sailplan("report", str(paths.path), option, str(tmp_path / "file" / "x"))
        assert code == 7
        assert err.startswith(f"error: cannot write {tmp_path}/file/x: ")
        assert err.count("\n") == 1


def test_broken_files_leave_parts_empty_and_the_page_is_written(paths: RunPaths) -> None:
    for file in paths.path.iterdir():
        if file.is_file():
            file.write_bytes(b'{"step": 3, \xff' * 50)
    assert sailplan("report", str(paths.path))[0] == 0
    assert "<svg" in paths.report_file.read_text()


def test_report_imports_nothing_heavy(paths: RunPaths) -> None:
    program = (
        "import json, sys\n"
        "from sailplan.cli.main import app\n"
        "app(['report', sys.argv[2]], standalone_mode=False)\n"
        "print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))"
    )
    command = [sys.executable, "-c", program, json.dumps([*HEAVY, "matplotlib"]), str(paths.path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [str(paths.report_file), "[]"]

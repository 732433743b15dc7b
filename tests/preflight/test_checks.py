"""What is told before anything is started: local models and data that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.errors import DataError, ModelError, RunFileError
from sailplan.preflight.checks import check, is_local
from sailplan.run.config import Run


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("gpt2", False),
        ("Qwen/Qwen2-VL-7B-Instruct", False),
        ("/models/qwen", True),
        ("./qwen", True),
        ("../qwen", True),
        ("~/qwen", True),
        ("runs/old/merged", True),
        ("qwen/", True),
    ],
)
def test_name_that_can_only_be_a_path_is_told_from_a_hub_name(name: str, local: bool) -> None:
    assert is_local(name) is local


def test_check_of_hub_names_leaves_them_to_the_ranks() -> None:
    check(Run.from_flags(["--model_name_or_path", "owner/model", "--dataset_name", "owner/data"]))


def test_check_without_model_is_refused() -> None:
    with pytest.raises(RunFileError, match="model_name_or_path is missing"):
        check(Run.from_flags(["--dataset_name", "owner/data"]))


@pytest.mark.parametrize(
    ("files", "message"), [((), "is an empty folder"), (("a.txt",), "holds no config.json")]
)
def test_check_of_a_folder_without_model_is_refused(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=message):
        check(Run.from_flags(["--model_name_or_path", str(tmp_path)]))


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_check_of_a_model_folder_passes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    check(Run.from_flags(["--model_name_or_path", str(tmp_path)]))


def test_check_of_missing_data_is_refused(tmp_path: Path) -> None:
    flags = ["--model_name_or_path", "owner/model", "--dataset_name", f"{tmp_path}/no.json"]
    with pytest.raises(DataError, match=r"no\.json does not exist"):
        check(Run.from_flags(flags))

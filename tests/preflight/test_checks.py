"""What is told before anything is started: what is wrong with local models, data and folders."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from sailplan.errors import DataError, ModelError, RunFileError, SailplanError
from sailplan.preflight.checks import check
from sailplan.run.config import Run

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
PAGE = b"<!doctype html>\n<html></html>"
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
INDEX = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).encode()


def checked(
    *flags: str, model: Path | str = "owner/model", data: Path | str = "owner/data"
) -> None:
    check(Run.from_flags(["--model_name_or_path", str(model), "--dataset_name", str(data), *flags]))


def folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def test_check_of_hub_names_leaves_them_to_the_ranks() -> None:
    checked()
    checked("--processor_name_or_path", "owner/other", "--datasets", "owner/data")


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        (["--dataset_name", "owner/data"], "model_name_or_path is missing"),
        (["--model_name_or_path", "owner/model"], "dataset_name is missing"),
    ],
)
def test_check_without_model_or_data_is_refused(flags: list[str], missing: str) -> None:
    with pytest.raises(RunFileError, match=missing):
        check(Run.from_flags(flags))


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b"{}"},
        {"config.json": b"{}", "model.safetensors": WEIGHTS, "notes.json": b"not JSON"},
        {
            "config.json": b"{}",
            "model.safetensors.index.json": INDEX,
            "1.safetensors": WEIGHTS,
            "2.safetensors": WEIGHTS,
            "consolidated.safetensors": POINTER,  # of no use to transformers
        },
        {"config.json": b"{}", "model.safetensors": WEIGHTS, "model.gguf": b"GGUF"},
    ],
)
def test_check_of_a_model_folder_passes(tmp_path: Path, files: dict[str, bytes]) -> None:
    checked(model=folder(tmp_path / "model", files))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json; .*it is empty"),
        ({"a.txt": b""}, "has no config.json; .*it holds a.txt"),
        ({"model.gguf": b"GGUF"}, "holds its weights as GGUF; unpack it into a folder: transf"),
        ({"config.json": b"{}", "model.gguf": b"GGUF"}, "holds its weights as GGUF; unpack it"),
        ({"adapter_config.json": b"{}"}, "holds an adapter, not a model"),
        ({"config.json": POINTER}, "config.json is a Git-LFS pointer"),
        ({"config.json": b"{"}, "config.json is not valid JSON"),
        ({"config.json": b"{}", "tokenizer.json": POINTER}, "tokenizer.json is a Git-LFS pointer"),
        ({"config.json": b"{}", "model.safetensors": POINTER}, "model.safetensors is a Git-LFS"),
        (
            {"config.json": b"{}", "model.safetensors": WEIGHTS[:-1]},
            "model.safetensors is truncated or corrupt",
        ),
        (
            {
                "config.json": b"{}",
                "model.safetensors.index.json": INDEX,
                "1.safetensors": WEIGHTS,
            },
            "lacks 2.safetensors, which model.safetensors.index.json lists",
        ),
    ],
)
def test_check_of_a_broken_model_folder_is_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        checked(model=folder(tmp_path / "model", files))


@pytest.mark.parametrize(
    ("name", "todo"),
    [("model.gguf", "; unpack it into a folder: transf.*base-models.md"), ("a", "$")],
)
def test_check_of_a_file_in_place_of_a_model_is_refused(
    tmp_path: Path, name: str, todo: str
) -> None:
    file = folder(tmp_path / "model", {name: b"GGUF"}) / name
    with pytest.raises(ModelError, match=f"is a file; allowed: a model folder or a.* hub{todo}"):
        checked(model=file)


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--processor_name_or_path"])
def test_check_of_a_missing_model_or_processor_is_refused(tmp_path: Path, flag: str) -> None:
    with pytest.raises(ModelError, match=f"there is no model folder {tmp_path}/none; correct"):
        checked(flag, f"{tmp_path}/none")


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "", "is an empty folder"),
        ({}, "a.json", r"there is no .*a\.json; check the path"),
        ({"a.json": b""}, "a.json", "a.json is empty; get the file again"),
        ({"a.json": PAGE}, "a.json", "a.json is a web page, not data"),
        ({"a.parquet": POINTER}, "a.parquet", "a.parquet is a Git-LFS pointer"),
        ({"a.parquet": b"PAR1", "b.parquet": POINTER}, "", "b.parquet is a Git-LFS pointer"),
        ({"a.xlsx": b"PK"}, "a.xlsx", "a.xlsx is no data file; allowed: .json"),
    ],
)
def test_check_of_what_is_no_data_is_refused(
    tmp_path: Path, files: dict[str, bytes], name: str, message: str
) -> None:
    data = folder(tmp_path / "data", files) / name
    with pytest.raises(DataError, match=message):
        checked(data=data)
    with pytest.raises(DataError, match=message):
        check(Run.from_flags(["--model_name_or_path", "owner/model", "--datasets", str(data)]))


def test_check_of_data_that_only_the_ranks_can_judge_passes(tmp_path: Path) -> None:
    checked(data=folder(tmp_path / "data", {"a.json": b"[", "image.png": b""}))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--image_root", "image_root .*/none is no folder"),
        ("--resume_from_checkpoint", "there is no folder .*/none"),
    ],
)
def test_check_of_a_missing_folder_is_refused(tmp_path: Path, flag: str, message: str) -> None:
    with pytest.raises(SailplanError, match=message):
        checked(flag, f"{tmp_path}/none")

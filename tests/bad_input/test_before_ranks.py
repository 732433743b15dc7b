"""Mistakes that `sailplan train` tells before any rank starts, each in a process of its own."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from tests.bad_input.support import (
    PAGE,
    POINTER,
    RUN,
    assert_one_line,
    files_under,
    train,
)
from tests.cli.test_main import sailplan
from tests.launcher.support import machine
from tests.support.launch import End

BEFORE_RANKS: dict[str, tuple[dict[str, bytes], list[str], int, str]] = {
    # what is written besides, the arguments, exit code, message
    "unknown key": (
        {"my.yaml": b"seed: 1\nlearning_rat: 1e-4\n"},
        ["my.yaml"],
        2,
        "my.yaml:2: unknown key 'learning_rat'; did you mean learning_rate?",
    ),
    "unknown flag": (
        {},
        [RUN, "--lora_rr", "8"],
        2,
        "--lora_rr: unknown flag; did you mean lora_r?",
    ),
    "wrong type": (
        {"my.yaml": b"max_steps: many\n"},
        ["my.yaml"],
        2,
        "my.yaml:1: max_steps is 'many'; allowed: a whole number",
    ),
    "flag without value": (
        {},
        [RUN, "--learning_rate"],
        2,
        "--learning_rate has no value; allowed: a number",
    ),
    "value without flag": (
        {},
        [RUN, "learning_rate", "1"],
        2,
        "unexpected argument 'learning_rate'; flags are written --name value",
    ),
    "negative learning rate": (
        {},
        [RUN, "--learning_rate", "-1e-4"],
        2,
        "--learning_rate: learning_rate is -0.0001; allowed: 0 or more",
    ),
    "4-bit with full fine-tuning": (
        {},
        [RUN, "--load_in_4bit"],
        2,
        "load_in_4bit with full fine-tuning: quantised weights cannot be trained; write use_peft",
    ),
    "no YAML": ({"my.yaml": b"seed: [1\n"}, ["my.yaml"], 2, "my.yaml:2: not YAML, "),
    "no text": ({"my.yaml": b"\x80\x02\xff"}, ["my.yaml"], 2, "my.yaml is not UTF-8 text"),
    "web page as run file": (
        {"my.yaml": PAGE},
        ["my.yaml"],
        2,
        "my.yaml holds a text, not settings; allowed: `name: value` lines",
    ),
    "directory as run file": ({}, ["model"], 2, "model holds no run.yaml; name a run file"),
    "no run file": ({}, ["none.yaml"], 2, "there is no run file 'none.yaml'"),
    "no model named": (
        {"my.yaml": b"dataset_name: rows.jsonl\n"},
        ["my.yaml"],
        2,
        "my.yaml: model_name_or_path is missing; ",
    ),
    "no data named": (
        {"my.yaml": b"model_name_or_path: ./model\n"},
        ["my.yaml"],
        2,
        "my.yaml: dataset_name is missing; ",
    ),
    "empty output_dir": ({}, [RUN, "--output_dir="], 2, "output_dir is empty; allowed: a folder"),
    "missing image_root": ({}, [RUN, "--image_root", "x"], 2, "image_root x is no folder"),
    "missing checkpoint": (
        {},
        [RUN, "--resume_from_checkpoint", "true"],
        2,
        "out holds no checkpoint",
    ),
    "missing model": (
        {},
        [RUN, "--model_name_or_path", "./none"],
        3,
        "there is no model folder ./none; correct the path",
    ),
    "empty config of a model": (
        {"model/config.json": b""},
        [RUN],
        3,
        "model/config.json is not valid JSON; download the model again",
    ),
    "pointer saved as weights": (
        {"model/model.safetensors": POINTER},
        [RUN],
        3,
        "model/model.safetensors is a Git-LFS pointer, not the file itself",
    ),
    "weights cut off": (
        {"model/model.safetensors": struct.pack("<Q", 100) + b"{"},
        [RUN],
        3,
        "model/model.safetensors is truncated or corrupt",
    ),
    "missing data": (
        {},
        [RUN, "--dataset_name", "none.jsonl"],
        4,
        "there is no none.jsonl; check the path",
    ),
    "empty data": ({"rows.jsonl": b""}, [RUN], 4, "rows.jsonl is empty; get the file again"),
    "web page saved as data": (
        {"rows.jsonl": PAGE},
        [RUN],
        4,
        "rows.jsonl is a web page, not data; download the file itself",
    ),
    "pointer saved as data": (
        {"rows.parquet": POINTER},
        [RUN, "--dataset_name", "rows.parquet"],
        4,
        "rows.parquet is a Git-LFS pointer, not the file itself; run `git lfs pull`",
    ),
    "no data file": (
        {"rows.xlsx": b"PK"},
        [RUN, "--dataset_name", "rows.xlsx"],
        4,
        "rows.xlsx is no data file; allowed: .json",
    ),
    "taken port": (
        {},
        [RUN, "--main_process_port", "{port}"],
        6,
        "main_process_port {port} cannot be used (Address already in use); drop it",
    ),
    "output_dir not writable": (
        {},
        [RUN, "--output_dir", "/proc/sailplan"],
        7,
        "cannot write output_dir /proc/sailplan: ",
    ),
    "file as output_dir": (
        {},
        [RUN, "--output_dir", "rows.jsonl"],
        7,
        "rows.jsonl is a file; allowed: a directory",
    ),
    "output_dir of another run": (
        {
            "out/run.yaml": b"model_name_or_path: a/b\ndataset_name: c/d\n",
            "out/model.safetensors": b"weights",
        },
        [RUN],
        7,
        "out holds another run: model_name_or_path is a/b there, ",
    ),
    "output_dir with a model": (
        {"out/config.json": b"{}"},
        [RUN],
        7,
        "out holds config.json, but no run.yaml; choose another output_dir",
    ),
}


@pytest.mark.parametrize("case", BEFORE_RANKS)
def test_mistake_seen_before_ranks_start_is_one_line(here: Path, case: str) -> None:
    written, arguments, code, message = BEFORE_RANKS[case]
    for name, content in written.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content)
    before = files_under(here)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        end = train(*(argument.replace("{port}", port) for argument in arguments))
    assert_one_line(end, code, message.replace("{port}", port))
    assert files_under(here) == before


def test_more_processes_than_gpus_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sailplan.hardware.detect.detect", lambda _: machine(gpus=2))
    before = files_under(here)
    end = End(*sailplan("train", RUN, "--launch.gpus_per_node", "8"))
    assert_one_line(
        end, 5, "8 processes are asked for, and there are 2 GPUs here (NVIDIA L4; listed by the"
    )
    assert "allowed: 1 to 2; write launch.gpus_per_node: 2, or launch.cpu: true" in end.err
    assert files_under(here) == before


def test_more_processes_than_cores_is_a_warning(here: Path) -> None:
    end = train(RUN, "--launch.processes", "9999", "--launch.cpu", "true", "--dry-run")
    assert end.code == 0
    assert "warning: 9999 processes share " in end.err

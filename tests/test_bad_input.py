"""Each mistake that a user can make, end to end: one line, its exit code, and nothing left behind.

What can be told before any rank starts is told by `sailplan train` in a process of its own. What
only ranks can find goes through the entry script in one long-lived process, and through two true
launches.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from tests.cli.test_main import sailplan
from tests.launcher.support import machine
from tests.support.launch import flags

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


class End(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


Train = Callable[..., End]


def files_under(folder: Path) -> dict[str, bytes | None]:
    """Every file under a folder with its content, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_one_line(end: End, code: int, message: str) -> None:
    """One line on standard error that names the mistake, and the exit code of its class."""
    assert end.err.count("\n") == 1, end.err
    assert end.err.startswith("error: ")
    assert message in end.err
    assert "Traceback" not in end.out + end.err
    assert end.code == code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a model's folder, two rows with images, and a run file that is right."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    write_rows(tmp_path, [chat(images=["a.png"]), chat(images=["a.png"])])
    Image.effect_noise((60, 60), 40).save(tmp_path / "a.png")
    (tmp_path / "run.yaml").write_text(
        "model_name_or_path: ./model\ndataset_name: rows.jsonl\noutput_dir: out\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chat(question: str = "Which?", answer: str | None = "Red.", **columns: object) -> dict:
    """A row in TRL's messages format."""
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return {"messages": turns, **columns}


def write_rows(folder: Path, rows: list[dict]) -> None:
    """Writes the rows that the run file names."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(*arguments: str, timeout: float = 60) -> End:
    """Runs `sailplan train run.yaml` as a user does."""
    command = [sys.executable, "-m", "sailplan", "train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    return End(done.returncode, done.stdout, done.stderr)


RUN = "run.yaml"
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


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[list[str]], End]]:
    """Runs the entry script with the flags that it is given, in a process that all cases share."""
    command = [sys.executable, "-m", "tests.support.cases"]
    cache = str(tmp_path_factory.mktemp("cache"))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_DATASETS_CACHE": cache},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        written, read = process.stdin, process.stdout

        def run(arguments: list[str]) -> End:
            written.write(json.dumps(arguments) + "\n")
            written.flush()
            return End(**json.loads(read.readline()))

        yield run
        written.close()


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises that size, over a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


GOOD = chat(images=["a.png"])
IN_RANKS: dict[str, tuple[list[dict], dict[str, bytes], dict[str, object], int, str]] = {
    # the rows, other files, flags, exit code, message
    "data without rows": (
        [],
        {"rows.json": b"[]"},
        {"dataset_name": "rows.json"},
        4,
        "rows.json has no rows",
    ),
    "data of column names alone": (
        [],
        {"rows.csv": b"prompt,completion\n"},
        {"dataset_name": "rows.csv"},
        4,
        "rows.csv has no rows",
    ),
    "broken JSON": (
        [],
        {"rows.jsonl": b'{"messages": []}\n{"messages": [}\n'},
        {},
        4,
        "rows.jsonl, line 2, column 15: Expecting value",
    ),
    "broken parquet": (
        [],
        {"rows.parquet": b"PAR1" + bytes(20)},
        {"dataset_name": "rows.parquet"},
        4,
        "rows.parquet: Parquet magic bytes not found in footer",
    ),
    "unrecognised columns": (
        [{"question": "Which?", "reply": "Red."}],
        {},
        {},
        4,
        "the columns fit no format; columns seen: 'question', 'reply'; allowed: messages: ",
    ),
    "sample without assistant turn": (
        [GOOD, chat(answer=None, images=["a.png"])],
        {},
        {},
        4,
        "train row 1 (from 0): there is no assistant turn to train on; add an answer",
    ),
    "more placeholders than images": (
        [chat("<image> or <image>?", images=["a.png"])],
        {},
        {},
        4,
        "train row 0 (from 0): 2 image placeholders for 1 image; allowed: one placeholder for each",
    ),
    "more images than placeholders": (
        [chat("<image> which?", images=["a.png", "a.png"])],
        {},
        {},
        4,
        "train row 0 (from 0): 1 image placeholder for 2 images; allowed: one placeholder for each",
    ),
    "placeholder for an image that is null": (
        [chat("<image> which?", image="a.png"), chat([{"type": "image"}], image=None)],
        {},
        {},
        4,
        "train row 1 (from 0): 1 image placeholder for 0 images",
    ),
    "missing image": (
        [GOOD, chat(images=["b.png"])],
        {},
        {},
        4,
        "train row 1 (from 0): image 'b.png' is missing; looked for it in ",
    ),
    "corrupt image": (
        [chat(images=["b.png"])],
        {"b.png": b"\x89PNG\r\n\x1a\n" + b"rubbish" * 9},
        {},
        4,
        "train row 0 (from 0): image 'b.png' is corrupt or not an image; get the file again",
    ),
    "web page saved as image": (
        [chat(images=["b.png"])],
        {"b.png": PAGE},
        {},
        4,
        "train row 0 (from 0): image 'b.png' is a web page, not data",
    ),
    "pointer saved as image": (
        [chat(images=["b.png"])],
        {"b.png": POINTER},
        {},
        4,
        "train row 0 (from 0): image 'b.png' is a Git-LFS pointer, not the file itself",
    ),
    "image outside of image_root": (
        [chat(images=["../a.png"])],
        {"images/b.png": png(60, 60)},
        {"image_root": "images"},
        4,
        "train row 0 (from 0): image '../a.png' lies outside image_root; allowed: files under ",
    ),
    "decompression bomb": (
        [chat(images=["b.png"])],
        {"b.png": png(30_000, 30_000)},
        {},
        4,
        "train row 0 (from 0): image 'b.png' has too many pixels; allowed: at most 134,217,728",
    ),
    "remote image without permission": (
        [chat(images=["https://example.org/a.png"])],
        {},
        {},
        4,
        "image https://example.org/a.png is remote, on a host that is not allowed; ",
    ),
    "remote image that does not come": (
        [chat(images=["http://127.0.0.1:1/a.png"])],
        {},
        {"allowed_image_hosts": "127.0.0.1:1"},
        4,
        "image http://127.0.0.1:1/a.png could not be fetched: [Errno 111] Connection refused",
    ),
    "longer than max_length": (
        [GOOD],
        {},
        {"max_length": 5},
        4,
        "1 of 1 train rows are longer than 5 tokens (max_length), ",
    ),
    "model that is nowhere": (
        [GOOD],
        {},
        {"model_name_or_path": "owner/none"},
        3,
        "owner/none is no folder here and not in the local cache, and the hub is switched off",
    ),
    "LoRA target that matches nothing": (
        [GOOD],
        {},
        {"use_peft": True, "lora_target_modules": "query"},
        3,
        "lora_target_modules: 'query' matches no layer of the model; allowed: down_proj, ",
    ),
    "output_dir of another run": (
        [GOOD],
        {"out/run.yaml": b"model_name_or_path: a/b\ndataset_name: c/d\n"},
        {},
        7,
        "out holds another run: model_name_or_path is a/b there, ",
    ),
}


@pytest.fixture
def flags_of(here: Path, tiny_model: Callable[[str], Path]) -> Callable[[dict], list[str]]:
    """Gives the flags of a small run in the user's folder, with these on top."""

    def make(values: dict) -> list[str]:
        run = {
            "model_name_or_path": tiny_model("qwen2_vl"),
            "dataset_name": "rows.jsonl",
            "output_dir": here / "out",
            "max_steps": 1,
            "report_to": "none",
            "use_cpu": True,
        } | values
        for name in ("dataset_name", "image_root"):
            if name in run:
                run[name] = here / run[name]
        return flags(run)

    return make


@pytest.mark.parametrize("case", IN_RANKS)
def test_mistake_seen_by_ranks_is_one_line(
    here: Path,
    entry: Callable[[list[str]], End],
    flags_of: Callable[[dict], list[str]],
    case: str,
) -> None:
    rows, written, values, code, message = IN_RANKS[case]
    write_rows(here, rows)
    for name, content in written.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content)
    before = files_under(here)
    assert_one_line(entry(flags_of(values)), code, message)
    assert files_under(here) == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_truncated_image_ends_training_in_one_line(
    here: Path,
    entry: Callable[[list[str]], End],
    flags_of: Callable[[dict], list[str]],
    num_workers: int,
) -> None:
    truncate(here / "a.png")
    write_rows(here, [GOOD])
    end = entry(flags_of({"dataloader_num_workers": num_workers}))
    assert_one_line(end, 4, "error: train row 0 (from 0): image 'a.png' is corrupt or cut off: ")
    # It had begun to train.
    assert {path.name for path in (here / "out").iterdir()} == {
        *("run.yaml", "train.yaml", "metrics.jsonl")
    }


def truncate(image: Path) -> None:
    """Cuts a file in half."""
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])


def test_empty_images_among_rows_are_no_mistake(
    here: Path, entry: Callable[[list[str]], End], flags_of: Callable[[dict], list[str]]
) -> None:
    write_rows(here, [GOOD, chat(images=None), chat(images=[None]), chat(images=[])])
    end = entry(flags_of({"per_device_train_batch_size": 4, "save_strategy": "no"}))
    assert (end.code, end.err) == (0, "")


def test_launch_of_one_rank_that_fails_leaves_the_earlier_run_as_it_was(
    here: Path, flags_of: Callable[[dict], list[str]]
) -> None:
    write_rows(here, [chat(images=["b.png"])])
    arguments = flags_of({"learning_rate": 1e-3})
    run = Run.from_file(here / RUN, flags_of({}))
    directory = RunDirectory.of(run)
    directory.begin(run)
    before = files_under(here)
    end = train(RUN, *arguments, timeout=120)
    assert_one_line(end, 4, "train row 0 (from 0): image 'b.png' is missing")
    assert files_under(here) == before


def test_launch_of_two_ranks_of_which_one_fails_while_training_is_one_line(
    here: Path, flags_of: Callable[[dict], list[str]]
) -> None:
    (here / "b.png").write_bytes((here / "a.png").read_bytes())
    truncate(here / "b.png")
    write_rows(here, [GOOD, chat(images=["b.png"])])
    values = {"per_device_train_batch_size": 1, "dataloader_num_workers": 1}
    end = train(RUN, *flags_of(values), "--launch.processes", "2", timeout=120)
    assert_one_line(end, 4, "error: train row 1 (from 0): image 'b.png' is corrupt or cut off: ")

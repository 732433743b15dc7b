"""Mistakes that only ranks can find: the entry script in one process, and two true launches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from tests.bad_input.support import (
    PAGE,
    POINTER,
    RUN,
    assert_one_line,
    chat,
    files_under,
    png,
    train,
    truncate,
    write_rows,
)
from tests.support.launch import Entry

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
    "tracker that is not installed": (
        [GOOD],
        {},
        {"report_to": "neptune"},
        2,
        "report_to is neptune, which is not installed; install it",
    ),
    "tracker that nobody knows": (
        [GOOD],
        {},
        {"report_to": "tensorbord"},
        2,
        "report_to is 'tensorbord'; allowed: none, all, azure_ml, ",
    ),
    "output_dir of another run": (
        [GOOD],
        {"out/run.yaml": b"model_name_or_path: a/b\ndataset_name: c/d\n"},
        {},
        7,
        "out holds another run: model_name_or_path is a/b there, ",
    ),
}


@pytest.mark.parametrize("case", IN_RANKS)
def test_mistake_seen_by_ranks_is_one_line(
    here: Path,
    entry: Entry,
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
    entry: Entry,
    flags_of: Callable[[dict], list[str]],
    num_workers: int,
) -> None:
    truncate(here / "a.png")
    write_rows(here, [GOOD])
    end = entry(flags_of({"dataloader_num_workers": num_workers}))
    assert_one_line(end, 4, "error: train row 0 (from 0): image 'a.png' is corrupt or cut off: ")
    # It had begun to train.
    assert {path.name for path in (here / "out").iterdir()} == {
        *("run.yaml", "train.yaml", "metrics.jsonl", "data.json", "state.json", "run.lock")
    }


def test_empty_images_among_rows_are_no_mistake(
    here: Path, entry: Entry, flags_of: Callable[[dict], list[str]]
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
    end = train(RUN, *arguments, timeout=240)
    assert_one_line(end, 4, "train row 0 (from 0): image 'b.png' is missing")
    assert files_under(here) == before


def test_launch_of_two_ranks_of_which_one_fails_while_training_is_one_report(
    here: Path, flags_of: Callable[[dict], list[str]]
) -> None:
    (here / "b.png").write_bytes((here / "a.png").read_bytes())
    truncate(here / "b.png")
    write_rows(here, [GOOD, chat(images=["b.png"])])
    values = {"per_device_train_batch_size": 1, "dataloader_num_workers": 1}
    end = train(RUN, *flags_of(values), "--launch.processes", "2", timeout=240)
    assert end.code == 4
    first, *rest = end.err.splitlines()
    assert first.startswith("error: train row 1 (from 0): image 'b.png' is corrupt or cut off: ")
    assert [line for line in rest if line.startswith("  rank ")] in (
        ["  rank 0: lost the connection to the others"],
        ["  rank 0: ended by SIGTERM"],
        [],
    )
    assert "no checkpoint is whole" in end.err
    assert "logs by rank: " in end.err
    assert "Traceback" not in end.err

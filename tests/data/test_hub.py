"""Rows of datasets on the hub: configurations, splits, folders, images, and pinned commits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.fake_hub import FakeHub, serve

LOAD = """
import json, sys
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.sources import load_rows
from sailplan.errors import SailplanError
from sailplan.run.config import Run

def load(flags):
    run = Run.from_flags(flags)
    try:
        rows = load_rows(run)
    except SailplanError as error:
        return {"error": str(error)}
    found = {"columns": rows.train.column_names, "eval": len(rows.eval or ())}
    if "text" in rows.train.column_names:
        found["text"] = rows.train["text"][:]
    else:
        format, opener = resolve_format(run, rows), image_opener(run, rows)
        samples = [format.sample(row) for row in rows.train]
        found["sizes"] = [opener.size(image, 0) for s in samples for image in s["images"]]
    return found

print(json.dumps([load(flags) for flags in json.loads(sys.argv[1])]))
"""


def parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def text(*words: str) -> bytes:
    return parquet([{"text": word} for word in words])


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 40).save(file, "PNG")
    return file.getvalue()


CARD = b"""---
configs:
- config_name: small
  default: true
  data_files:
  - {split: train, path: small/*.parquet}
- config_name: large
  data_files:
  - {split: train, path: large/train.parquet}
  - {split: test, path: large/test.parquet}
---
"""
CHAT = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "This."}]


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with serve() as running:
        cards = {
            "README.md": CARD,
            "small/0.parquet": text("a"),
            "large/train.parquet": text("b", "c", "d"),
            "large/test.parquet": text("e"),
        }
        running.commit("dataset", "owner/cards", cards)
        lines = {"train.jsonl": b'{"text": "x"}\n{"text": "y"}\n', "more/extra.csv": b"text\nz\n"}
        running.commit("dataset", "owner/Lines", lines)
        embedded = parquet([{"messages": CHAT, "images": [{"bytes": png(60, 70), "path": None}]}])
        running.commit("dataset", "owner/embedded", {"data/train-0.parquet": embedded})
        folder = {
            "train/metadata.jsonl": json.dumps({"file_name": "one.png", "messages": CHAT}).encode(),
            "train/one.png": png(80, 90),
        }
        running.commit("dataset", "owner/folder", folder)
        yield running


def load(hub: FakeHub, home: Path, *cases: list[str], **variables: str) -> list[dict[str, Any]]:
    """Loads each case's rows, all in one process that has not seen the hub before."""
    command = [sys.executable, "-c", LOAD, json.dumps(cases)]
    env = {**os.environ, **hub.environment(home), **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    # flags, what is found
    "default configuration": (["owner/cards"], {"text": ["a"]}),
    "configuration": (
        ["owner/cards", "--dataset_config", "large"],
        {"text": ["b", "c", "d"], "eval": 1},
    ),
    "split": (
        ["owner/cards", "--dataset_config", "large", "--dataset_train_split", "train[:2]"],
        {"text": ["b", "c"]},
    ),
    "other split": (
        ["owner/cards", "--dataset_config", "large", "--dataset_train_split", "test"],
        {"text": ["e"]},
    ),
    "json lines, and a name in capitals": (["owner/Lines"], {"text": ["x", "y"]}),
    "file": (
        ["--datasets", '{"path": "owner/Lines", "data_files": "more/extra.csv"}'],
        {"text": ["z"]},
    ),
    "folder": (["--datasets", '{"path": "owner/Lines", "data_dir": "more"}'], {"text": ["z"]}),
    "mixture": (
        ["--datasets", '{"path": "owner/cards"}', '{"path": "owner/Lines", "split": "train[:1]"}'],
        {"text": ["a", "x"]},
    ),
    "images in parquet": (["owner/embedded"], {"sizes": [[60, 70]]}),
    "images in a folder": (["owner/folder", "--dataset_format", "messages"], {"sizes": [[80, 90]]}),
}


def test_rows_are_those_of_the_hub_and_again_of_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    flags = [
        asked if asked[0].startswith("--") else ["--dataset_name", *asked]
        for asked, _ in CASES.values()
    ]
    pinned = [[hub_pinned(hub, word) for word in case] for case in flags]
    for case, plain in zip(pinned, flags, strict=True):
        if "--datasets" not in plain:
            case += ["--dataset_revision", hub.head("dataset", plain[1])]

    online = load(hub, tmp_path, *pinned)
    offline = load(hub, tmp_path, *pinned, HF_HUB_OFFLINE="1")

    for name, (_, expected), found in zip(CASES, CASES.values(), online, strict=True):
        assert {key: found.get(key) for key in expected} == expected, (name, found)
    assert offline == online


def hub_pinned(hub: FakeHub, word: str) -> str:
    """Adds the commit to an entry of `datasets`."""
    if not word.startswith("{"):
        return word
    entry = json.loads(word)
    return json.dumps({**entry, "revision": hub.head("dataset", entry["path"])})


def test_pinned_commit_is_loaded_whatever_came_last(hub: FakeHub, tmp_path: Path) -> None:
    name = ["--dataset_name", "owner/moves"]
    old = hub.commit("dataset", "owner/moves", {"train.parquet": text("old")})
    new = hub.commit("dataset", "owner/moves", {"train.parquet": text("new")})
    third = hub.commit("dataset", "owner/moves", {"train.parquet": text("third")})

    at_old, at_new = [*name, "--dataset_revision", old], [*name, "--dataset_revision", new]
    load(hub, tmp_path, at_old, at_new)
    found = load(
        hub,
        tmp_path,
        *(at_old, at_new, [*name, "--dataset_revision", third], name),
        HF_HUB_OFFLINE="1",
    )

    assert [one.get("text") for one in found] == [["old"], ["new"], None, ["new"]]
    assert found[2]["error"].startswith(f"dataset owner/moves at {third[:12]} is no folder here")
    assert found[2]["error"].endswith("sailplan fetch RUN")

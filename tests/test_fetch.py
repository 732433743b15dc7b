"""`sailplan fetch` with a hub on this machine: what comes, what is pinned, and training after."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.fake_hub import Desk, FakeHub, serve
from tests.support.rows import chat_rows


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve() as running:
        yield running


@pytest.fixture
def model_files(tiny_model: Callable[[str], Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny_model("qwen2_vl").iterdir()}


def parquet(folder: Path, *, images: bool = False) -> bytes:
    """Rows of chats as a parquet file, with their images in it."""
    lines = chat_rows(folder, 6, images=images).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows if images else ():
        row["images"] = [{"bytes": (folder / row["images"][0]).read_bytes(), "path": None}]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.fixture
def desk(tmp_path: Path, hub: FakeHub) -> Desk:
    return Desk(tmp_path, hub)


def test_fetched_run_trains_without_the_hub_at_the_pinned_commits(
    desk: Desk, hub: FakeHub, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    model = hub.commit("model", "owner/tiny", {**model_files, "model.gguf": b"x"})
    rows = parquet(tmp_path / "rows", images=True)
    data = hub.commit("dataset", "owner/chats", {"train.parquet": rows})

    before = desk("train", "run.yaml", HF_HUB_OFFLINE="1")
    assert before.code == 3
    assert before.err == (
        "error: owner/tiny is no folder here and not in the local cache, and the hub is switched "
        "off (HF_HUB_OFFLINE); get it where there is a network: sailplan fetch run.yaml\n"
    )
    assert not desk.out.exists()

    fetched = desk("fetch", "run.yaml")
    assert fetched.code == 0, fetched.err
    assert f"owner/tiny at {model}, " in fetched.out
    assert f"owner/chats at {data}, " in fetched.out
    assert fetched.out.endswith("HF_HUB_OFFLINE=1 sailplan train run.yaml\n")
    assert [path.name for path in desk.out.iterdir()] == ["revisions.json"]

    # Both branches move to what could not be trained on; the hub goes away.
    hub.commit("model", "owner/tiny", {"config.json": b"{}"})
    hub.commit("dataset", "owner/chats", {"train.txt": b"no chat\n"})
    hub.requests.clear()
    trained = desk("train", "run.yaml", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:1")
    assert trained.code == 0, trained.err
    assert trained.out.count(f"owner/tiny is pinned to {model}") == 1
    assert hub.requests == []
    resolved = yaml.safe_load((desk.out / "run.yaml").read_text())
    assert (resolved["model_revision"], resolved["dataset_revision"]) == (model, data)
    assert yaml.safe_load((desk.out / "train.yaml").read_text())["model_revision"] == model


def test_run_trained_without_fetch_is_pinned_and_goes_on_at_the_same_commits(
    desk: Desk, hub: FakeHub, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    model = hub.commit("model", "owner/tiny", model_files)
    data = hub.commit("dataset", "owner/chats", {"train.parquet": parquet(tmp_path / "rows")})

    trained = desk("train", "run.yaml")

    assert trained.code == 0, trained.err
    assert f"owner/tiny is pinned to {model}\n" in trained.out
    assert desk.pins == {"owner/tiny": model, "owner/chats": data}
    for name in ("run.yaml", "train.yaml"):
        written = yaml.safe_load((desk.out / name).read_text())
        assert (written["model_revision"], written["dataset_revision"]) == (model, data)

    hub.commit("model", "owner/tiny", {"config.json": b"{}"})
    for arguments in (["run.yaml"], ["out"]):
        again = desk("train", *arguments, "--dry-run")
        assert again.code == 0, again.err
        assert f"\nmodel_revision: {model}\n" in again.out
        assert f"\ndataset_revision: {data}\n" in again.out
    other = desk("train", "run.yaml", "--model_revision", "v2")
    assert other.code == 7
    assert f"another run: model_revision is {model} there, v2 here" in other.err


def test_only_what_is_needed_comes_and_once(
    desk: Desk, hub: FakeHub, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    unneeded = {
        "pytorch_model.bin": b"x",
        "model-q4.gguf": b"x",
        "onnx/model.onnx": b"x",
        "original/consolidated.pth": b"x",
        "tf_model.h5": b"x",
        "modeling.py": b"x",
        "README.md": b"x",
    }
    hub.commit("model", "owner/tiny", {**model_files, **unneeded})
    hub.commit("model", "owner/words", {**model_files, "model.safetensors": b"x" * 1000})
    data = {f"{word}/train.parquet": parquet(tmp_path / word) for word in ("one", "two")}
    hub.commit("dataset", "owner/chats", data)
    desk.write(processor_name_or_path="owner/words", dataset_name=None, datasets=[
        {"path": "owner/chats", "data_dir": "two"},
        {"path": "json", "data_files": str(chat_rows(tmp_path / "local", 2))},
    ])  # fmt: skip

    told = desk("fetch", "run.yaml", "--dry-run")
    assert told.code == 0, told.err
    size = sum(map(len, model_files.values())) / 1000
    assert (
        f"would fetch owner/tiny at {hub.head('model', 'owner/tiny')}, {size:.1f} kB, " in told.out
    )
    assert f", {len(data['two/train.parquet']) / 1000:.1f} kB, " in told.out
    assert not [request for request in hub.requests if "/resolve/" in request and "GET" in request]
    assert not desk.out.exists()

    first = desk("fetch", "run.yaml")
    assert first.code == 0, first.err
    assert "json is here" not in first.out
    got = {
        request.split("/resolve/")[1][41:]
        for request in hub.requests
        if "GET /" in request and "/resolve/" in request
    }
    assert got == {*model_files, "two/train.parquet"}
    words = {path.name for path in (tmp_path / "home/hub/models--owner--words").rglob("*.*")}
    assert "model.safetensors" not in words

    hub.requests.clear()
    again = desk("fetch", "run.yaml")
    assert again.out.count(" (was here), ") == 3
    assert "everything was here\n" in again.out
    assert not [request for request in hub.requests if "/resolve/" in request]
    assert desk("fetch", "run.yaml", HF_HUB_OFFLINE="1").code == 0


def test_fetch_of_a_moved_branch_keeps_the_pin_until_it_is_updated(
    desk: Desk, hub: FakeHub, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    desk.write(dataset_name=str(chat_rows(tmp_path / "rows", 2)))
    first = hub.commit("model", "owner/tiny", model_files)
    assert f"{tmp_path}/rows/train.jsonl is here: nothing to fetch" in desk("fetch", "run.yaml").out
    second = hub.commit("model", "owner/tiny", {**model_files, "new.txt": b""})

    assert f"owner/tiny at {first}" in desk("fetch", "run.yaml").out
    assert desk.pins == {"owner/tiny": first}
    assert f"owner/tiny at {second}" in desk("fetch", "run.yaml", "--update").out
    assert desk.pins == {"owner/tiny": second}


@pytest.mark.slow
def test_ranks_of_an_unpinned_run_train_the_same_commit(
    desk: Desk, hub: FakeHub, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    model = hub.commit("model", "owner/tiny", model_files)
    data = hub.commit("dataset", "owner/chats", {"train.parquet": parquet(tmp_path / "rows")})

    end = desk("train", "run.yaml", "--launch.processes", "2", "--launch.strategy", "ddp")

    assert end.code == 0, end.err
    assert desk.pins == {"owner/tiny": model, "owner/chats": data}
    asked = [request for request in hub.requests if request.endswith("/owner/tiny/revision/main")]
    assert len(asked) == 1

"""Mistakes around the hub: names, access, the network, the disk. Each is one line, nothing left."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_input.support import assert_one_line, files_under
from tests.support.fake_hub import TOKEN, Desk, FakeHub, serve

LARGE = bytes(range(256)) * 8000


@pytest.fixture(scope="module")
def hub(tiny_model: Callable[[str], Path]) -> Iterator[FakeHub]:
    """A hub with a model, gated and open, an adapter, and data."""
    files = {path.name: path.read_bytes() for path in tiny_model("qwen2_vl").iterdir()}
    with serve() as running:
        for name in ("owner/tiny", "owner/gated", "owner/breaks", "owner/large"):
            running.commit("model", name, {**files, "vocab.txt": LARGE})
        running.commit("model", "owner/adapter", {"adapter_config.json": b"{}"})
        running.commit("model", "owner/empty", {"config.json": b"{}"})
        index = b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'
        shards = {"config.json": b"{}", "model.safetensors.index.json": index}
        running.commit("model", "owner/shards", shards)
        for name in ("owner/chats", "owner/closed"):
            running.commit("dataset", name, {"train.jsonl": b'{"text": "one"}\n'})
        running.commit("dataset", "owner/broken", {"train.jsonl": b'{"text": \n'})
        running.repositories["model", "owner/gated"].gated = True
        running.repositories["dataset", "owner/closed"].gated = True
        yield running


@pytest.fixture
def desk(tmp_path: Path, hub: FakeHub) -> Desk:
    """A user's folder."""
    return Desk(tmp_path, hub)


MISTAKES: dict[str, tuple[list[str], dict[str, str], int, str]] = {
    # flags, variables, exit code, message
    "model that is not there": (
        ["--model_name_or_path", "owner/none"],
        {},
        3,
        "owner/none is no folder here, and there is none of that name on the hub; check the name; "
        "if it is private, set HF_TOKEN, or run `hf auth login`",
    ),
    "revision that is not there": (
        ["--model_revision", "v9"],
        {},
        3,
        "owner/tiny has no revision 'v9' on the hub; see https://huggingface.co/owner/tiny",
    ),
    "gated model without a token": (
        ["--model_name_or_path", "owner/gated"],
        {},
        3,
        "owner/gated is gated, and this token may not read it; ask for access at "
        "https://huggingface.co/owner/gated, then set HF_TOKEN, or run `hf auth login`",
    ),
    "gated model with another's token": (
        ["--model_name_or_path", "owner/gated"],
        {"HF_TOKEN": "hf_" + "b" * 34},
        3,
        "owner/gated is gated, and this token may not read it; ",
    ),
    "adapter in place of a model": (
        ["--model_name_or_path", "owner/adapter"],
        {},
        3,
        "owner/adapter holds an adapter, not a model; name its base model",
    ),
    "model without weights": (
        ["--model_name_or_path", "owner/empty"],
        {},
        3,
        "owner/empty holds no weights; allowed: model.safetensors or pytorch_model.bin",
    ),
    "model without one of its shards": (
        ["--model_name_or_path", "owner/shards"],
        {},
        3,
        "owner/shards lacks model-00001-of-00001.safetensors, which its model.safetensors.index",
    ),
    "processor that is none": (
        ["--processor_name_or_path", "owner/empty"],
        {},
        3,
        "owner/empty holds no processor or tokenizer",
    ),
    "data that is not there": (
        ["--dataset_name", "owner/none"],
        {},
        4,
        "dataset owner/none is no folder here, and there is none of that name on the hub; ",
    ),
    "gated data": (
        ["--dataset_name", "owner/closed"],
        {},
        4,
        "dataset owner/closed is gated, and this token may not read it; ask for access at "
        "https://huggingface.co/datasets/owner/closed, then set HF_TOKEN",
    ),
    "broken data": (["--dataset_name", "owner/broken"], {}, 4, "cannot load owner/broken: "),
    "configuration that is not there": (
        ["--dataset_config", "two"],
        {},
        4,
        "cannot load owner/chats: BuilderConfig 'two' not found. Available: ['default']",
    ),
    "hub switched off": (
        [],
        {"HF_HUB_OFFLINE": "1"},
        2,
        "the hub is switched off (HF_HUB_OFFLINE), and not everything is here; unset it",
    ),
    "no network": (
        [],
        {"HF_ENDPOINT": "http://127.0.0.1:1"},
        3,
        "owner/tiny could not be fetched: the hub does not answer; check the network",
    ),
    "output_dir of another run": (
        ["--output_dir", "other"],
        {},
        7,
        "other holds another run: model_name_or_path is a/b there, owner/tiny here",
    ),
    "file that is not there": (
        ["--dataset_name", "none.jsonl"],
        {},
        4,
        "there is no none.jsonl; check the path",
    ),
    "folder that is not there": (
        ["--model_name_or_path", "./none"],
        {},
        3,
        "there is no model folder ./none; correct the path",
    ),
    "no data named": (["--dataset_name="], {}, 2, "dataset_name is missing"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_of_fetch_is_one_line_and_pins_nothing(desk: Desk, case: str) -> None:
    flags, variables, code, message = MISTAKES[case]
    (desk.folder / "other").mkdir()
    (desk.folder / "other" / "run.yaml").write_text("model_name_or_path: a/b\ndataset_name: c/d\n")
    before = files_under(desk.folder)
    end = desk("fetch", "run.yaml", *flags, **variables)
    told = (
        "owner/chats: fetching and preparing rows\n",
        "owner/broken: fetching and preparing rows\n",
    )
    for line in (*told, "owner/closed: fetching and preparing rows\n"):
        end = end._replace(err=end.err.replace(line, ""))
    assert_one_line(end, code, message)
    after = files_under(desk.folder)
    assert {name: after[name] for name in after if not name.startswith("home")} == before


def test_gated_model_with_its_token_comes_and_the_token_is_written_nowhere(desk: Desk) -> None:
    desk.write(model_name_or_path="owner/gated", hub_token=TOKEN)
    end = desk("fetch", "run.yaml")
    assert end.code == 0, end.err
    (desk.folder / "run.yaml").unlink()
    written = [path for path in desk.folder.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in end.out + end.err


def test_connection_that_breaks_off_goes_on_where_it_was(desk: Desk, hub: FakeHub) -> None:
    hub.requests.clear()
    hub.repositories["model", "owner/breaks"].drops["vocab.txt"] = 1_000_000
    end = desk("fetch", "run.yaml", "--model_name_or_path", "owner/breaks")
    assert end.code == 0, end.err
    commit = hub.head("model", "owner/breaks")
    snapshot = desk.folder / f"home/hub/models--owner--breaks/snapshots/{commit}"
    assert (snapshot / "vocab.txt").read_bytes() == LARGE
    assert (
        len(
            [
                request
                for request in hub.requests
                if request == f"GET /owner/breaks/resolve/{commit}/vocab.txt"
            ]
        )
        == 2
    )


def test_disk_that_is_full_is_one_line(desk: Desk) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    end = desk("fetch", "run.yaml", "--model_name_or_path", "owner/large", before=limit)
    assert_one_line(end, 3, "owner/large does not fit on the disk (File too large); make room, or")
    assert not desk.out.exists()


def test_pins_that_cannot_be_read_are_named(desk: Desk) -> None:
    desk.out.mkdir()
    (desk.out / "revisions.json").write_text("[{]")
    end = desk("train", "run.yaml")
    assert_one_line(end, 7, "out/revisions.json cannot be read; delete it to take the revisions of")


def test_missing_shard_of_a_fetched_model_is_named_with_the_command(
    desk: Desk, hub: FakeHub
) -> None:
    assert desk("fetch", "run.yaml").code == 0
    snapshot = next((desk.folder / "home/hub/models--owner--tiny/snapshots").iterdir())
    (snapshot / "model.safetensors").unlink()
    end = desk("train", "run.yaml", HF_HUB_OFFLINE="1")
    assert_one_line(end, 3, "the weights of owner/tiny at ")
    assert "sailplan fetch run.yaml" in end.err


PUSHES: dict[str, tuple[dict[str, str], str]] = {
    # variables, message
    "no token": ({}, "push_to_hub without a token; set HF_TOKEN, run `hf auth login`, or drop "),
    "refused token": ({"HF_TOKEN": "hf_" + "b" * 34}, "push_to_hub with a token that the hub ref"),
    "hub switched off": ({"HF_HUB_OFFLINE": "1"}, "push_to_hub while the hub is switched off "),
    "no network": (
        {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_TOKEN": TOKEN},
        "push_to_hub, and the hub does not answer; check the network, or drop push_to_hub",
    ),
}


@pytest.mark.parametrize("case", PUSHES)
def test_push_that_cannot_work_is_told_before_training(desk: Desk, case: str) -> None:
    variables, message = PUSHES[case]
    end = desk("train", "run.yaml", "--push_to_hub", **variables)
    assert_one_line(end, 2, message)
    assert not desk.out.exists()


def test_push_that_cannot_work_is_told_by_ranks_that_were_started_by_hand(desk: Desk) -> None:
    end = desk("--config", "run.yaml", "--push_to_hub", module="sailplan.train.sft_vlm")
    assert_one_line(end, 2, "push_to_hub without a token; ")
    assert not desk.out.exists()

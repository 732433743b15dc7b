"""Which files of a model are needed, and what of them is in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sailplan.hub.cache import lacking
from sailplan.hub.download import choose
from sailplan.hub.repository import Repository
from sailplan.hub.revisions import cached_commit

COMMIT = "a" * 40
MODEL = Repository(kind="model", name="owner/model", revision=COMMIT)
SMALL = ["config.json", "generation_config.json", "merges.txt", "tokenizer.json", "tokenizer.model"]


def chosen(*names: str, weights: bool = True, code: bool = False) -> list[str]:
    sizes = dict.fromkeys([*SMALL, *names], 1)
    return list(choose(MODEL, COMMIT, sizes, weights=weights, code=code).sizes)


def test_safetensors_come_before_pytorch_weights() -> None:
    found = chosen("pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors")
    assert found == sorted([*SMALL, "model.safetensors"])


def test_pytorch_weights_come_where_there_are_no_others() -> None:
    assert "pytorch_model.bin" in chosen("pytorch_model.bin", "model.gguf", "flax_model.msgpack")


def test_processor_alone_takes_no_weights() -> None:
    assert chosen("model.safetensors", "chat_template.jinja", weights=False) == sorted(
        [*SMALL, "chat_template.jinja"]
    )


def test_code_and_further_templates_come_as_asked() -> None:
    files = ("model.safetensors", "modeling.py", "additional_chat_templates/tool.jinja")
    assert "additional_chat_templates/tool.jinja" in chosen(*files)
    assert "modeling.py" not in chosen(*files)
    assert "modeling.py" in chosen(*files, code=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the model's commit in an empty cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return MODEL.snapshot(COMMIT)


def test_what_is_lacking_is_named(cache: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    assert lacking(MODEL) == ""
    cache.mkdir(parents=True)
    steps = [
        ("tokenizer.json", "{}", ""),
        ("config.json", "{}", "the weights"),
        ("model.safetensors.index.json", index, "model-1.safetensors"),
        ("model-1.safetensors", "", "model-2.safetensors"),
        ("model-2.safetensors", "", None),
    ]
    for name, text, expected in steps:
        (cache / name).write_text(text)
        assert lacking(MODEL) == expected
    assert lacking(MODEL, weights=False) is None


def test_commit_of_a_branch_is_the_one_that_came(cache: Path) -> None:
    main = Repository(kind="model", name="owner/model")
    assert cached_commit(main) is None
    references = main.folder / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text(COMMIT)
    assert cached_commit(main) == COMMIT


def test_commit_of_prepared_rows_is_found_by_the_datasets_name(cache: Path, tmp_path: Path) -> None:
    rows = Repository(kind="dataset", name="owner/My-Rows")
    assert cached_commit(rows) is None
    for name in ("owner___my-rows", "owner___other", "someone___my-rows"):
        letter = "b" if name == "owner___my-rows" else "c"
        (tmp_path / "datasets" / name / "default" / "0.0.0" / (letter * 40)).mkdir(parents=True)
    assert cached_commit(rows) == "b" * 40
    assert lacking(rows) is None

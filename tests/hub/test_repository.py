"""The caches lie where the libraries look for them, and names are told from paths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sailplan.hub.repository import Repository, is_hub_name, is_offline

ASK = """
import json, sys
from sailplan.hub import repository as ours
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
here = ours.Repository(kind="dataset", name="a/b").folder
theirs = f"{constants.HF_HUB_CACHE}/{repo_folder_name(repo_id='a/b', repo_type='dataset')}"
pairs = [[str(here), theirs], [ours.is_offline(), constants.HF_HUB_OFFLINE]]
if sys.argv[1:]:
    from datasets import config
    pairs.append([str(ours.datasets_cache()), str(config.HF_DATASETS_CACHE)])
print(json.dumps(pairs))
"""
NAMES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_DATASETS_CACHE")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HUB_CACHE": "/a/hub", "HF_HOME": "/b", "HF_HUB_OFFLINE": "1"},
        {"HF_HOME": "/b", "HF_DATASETS_CACHE": "/e/rows", "TRANSFORMERS_OFFLINE": "yes"},
        {"XDG_CACHE_HOME": "/c", "HF_HUB_OFFLINE": "0"},
        {"HUGGINGFACE_HUB_CACHE": "/d"},
    ],
)
def test_caches_and_switch_are_those_of_the_libraries(variables: dict[str, str]) -> None:
    env = {name: value for name, value in os.environ.items() if name not in NAMES}
    env.pop("HF_HUB_OFFLINE", None)
    more = ["datasets"] if "HF_DATASETS_CACHE" in variables else []
    command = [sys.executable, "-c", ASK, *more]
    done = subprocess.run(command, capture_output=True, text=True, env={**env, **variables})
    assert done.returncode == 0, done.stderr
    for ours, theirs in json.loads(done.stdout):
        assert ours == theirs


def test_names_on_the_hub_are_told_from_paths(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    names = ["gpt2", "owner/name-1.5_b", "here", "./none", "/none", "~/none", "a/b/c", "", "a/"]
    assert [name for name in names if is_hub_name(name)] == ["gpt2", "owner/name-1.5_b"]


def test_switch_is_read_from_the_run_too() -> None:
    assert is_offline({"HF_HUB_OFFLINE": "True"})
    assert not is_offline({})


def test_repository_is_called_by_its_name_and_revision() -> None:
    assert str(Repository(kind="model", name="a/b")) == "a/b"
    assert (
        str(Repository(kind="dataset", name="a/b", revision="c" * 40))
        == f"dataset a/b at {'c' * 12}"
    )

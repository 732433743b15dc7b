"""Which repositories a run names, and how their revisions are pinned and remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sailplan.errors import OutputError
from sailplan.hub.repository import Repository
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.repositories import pin, uses

A, B = "a" * 40, "b" * 40


def a_run(out: Path, *flags: str) -> Run:
    named = ["--model_name_or_path", "owner/model", "--dataset_name", "owner/data"]
    return Run.from_flags([*named, "--output_dir", str(out), *flags])


def model(revision: str = "main") -> Repository:
    return Repository(kind="model", name="owner/model", revision=revision)


def claimed(out: Path, *flags: str, commit: str = A) -> RunDirectory:
    run = a_run(out, *flags)
    directory = RunDirectory.of(run)
    directory.claim(pin(run, {use.repository: commit for use in uses(run)}))
    return directory


def test_local_paths_templates_and_builders_are_no_repositories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner/data").mkdir(parents=True)
    flags = ["--chat_template_path", "a/chat.jinja", "--processor_name_or_path", "/none/here"]
    assert [use.field for use in uses(a_run(tmp_path, *flags))] == ["model_name_or_path"]
    entries = ['{"path": "json", "data_files": "a.json"}', '{"path": "a/b", "revision": "v1"}']
    found = uses(a_run(tmp_path, "--datasets", *entries))
    assert [(use.entry, use.repository.name, use.repository.revision) for use in found[1:]] == [
        (1, "a/b", "v1")
    ]


def test_pin_sets_every_kind_of_revision(tmp_path):
    flags = ["--processor_name_or_path", "o/p", "--chat_template_path", "o/t", "--datasets", "a/b"]
    run = a_run(tmp_path, *flags)
    pinned = pin(run, {use.repository: A for use in uses(run)})
    names = ("model_revision", "processor_revision", "chat_template_revision")
    assert [pinned.get(name) for name in names] == [A, A, A]
    assert pinned.get("datasets")[0]["revision"] == A
    assert len(pinned.pins) == 4


def test_written_commit_is_not_replaced(tmp_path):
    run = a_run(tmp_path, "--model_revision", B)
    assert pin(run, {model(B): A}) is run


@pytest.mark.parametrize("lost", ["", "revisions.json"])
def test_same_run_again_goes_on_at_the_remembered_commits(tmp_path, lost):
    directory = claimed(tmp_path)
    if lost:
        (tmp_path / lost).unlink()
    again = directory.pinned(a_run(tmp_path))
    assert (again.get("model_revision"), again.get("dataset_revision")) == (A, A)
    assert again.notes[-2:] == (
        f"owner/model is pinned to {A} ({directory.revisions_file})",
        f"owner/data is pinned to {A} ({directory.revisions_file})",
    )
    directory.check(again)
    main = directory.pinned(a_run(tmp_path, "--model_revision", "main"))
    assert main.get("model_revision") == A


def test_written_branch_is_remembered_as_that_branch_alone(tmp_path):
    directory = claimed(tmp_path, "--model_revision", "v1")
    assert directory.pinned(a_run(tmp_path, "--model_revision", "v1")).get("model_revision") == A
    other = directory.pinned(a_run(tmp_path, "--model_revision", "v2"))
    with pytest.raises(OutputError, match=f"another run: model_revision is {A} there, v2 here"):
        directory.check(other)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--model_revision", B], "model_revision"),
        (["--dataset_revision", B], "dataset_revision"),
        (["--datasets", f'{{"path": "owner/data", "revision": "{B}"}}'], "datasets"),
    ],
)
def test_another_written_commit_is_another_run(tmp_path, flags, name):
    directory = claimed(tmp_path, *(["--datasets", "owner/data"] if name == "datasets" else []))
    with pytest.raises(OutputError, match=f"another run: {name} is "):
        directory.check(directory.pinned(a_run(tmp_path, *flags)))


@pytest.mark.parametrize("mixture", [[], ["--datasets", "owner/data"]])
def test_run_that_was_never_pinned_may_be_pinned_now(tmp_path, mixture):
    run = a_run(tmp_path, *mixture)
    directory = RunDirectory.of(run)
    directory.claim(run)
    assert not directory.revisions_file.exists()
    directory.check(pin(run, {use.repository: A for use in uses(run)}))


def test_pins_that_ranks_find_are_added_to_a_launchers_files(tmp_path):
    run = a_run(tmp_path, "--hub_token", "secret", "--launch.cpu", "true", "--datasets", "a/b")
    directory = RunDirectory.of(run)
    directory.claim(run)
    rank = Run.from_flags(["--config", str(directory.train_file)])
    directory.begin(pin(rank, {use.repository: A for use in uses(rank)}))

    written = Run.from_file(directory.run_file)
    assert written.get("model_revision") == A
    assert written.get("datasets")[0]["revision"] == A
    assert written.launch.cpu
    assert "because secret: hub_token" in directory.run_file.read_text()
    assert Run.from_file(directory.train_file).get("model_revision") == A
    assert {row["commit"] for row in json.loads(directory.revisions_file.read_text())} == {A}


def test_claim_taken_back_takes_its_pins_back(tmp_path):
    run = a_run(tmp_path / "out")
    RunDirectory.of(run).claim(pin(run, {model(): A})).take_back()
    assert list(tmp_path.iterdir()) == []

"""Only whole checkpoints are taken; doubted ones are set aside, old ones go in time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sailplan.checkpoint.layout import doubt, latest_whole, quick_doubt, rotate, set_aside
from sailplan.checkpoint.manifest import MANIFEST
from sailplan.errors import CheckpointError
from tests.checkpoint.saved import OPTIMIZER, save, save_files


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1024)


def lose_a_rank(folder: Path) -> None:
    (folder / OPTIMIZER.format(8)).unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def break_the_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 100)


def change_manifest(folder: Path, old: str, new: str) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace(old, new))


def take_anothers_manifest(folder: Path) -> None:
    change_manifest(folder, '"run": "run"', '"run": "other"')


def list_what_lies_above(folder: Path) -> None:
    change_manifest(folder, '"empty"', '"../checkpoint-4/empty"')


def list_what_lies_at_the_root(folder: Path) -> None:
    change_manifest(folder, '"empty"', '"/dev/null"')


def link_what_lies_above(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").symlink_to("../checkpoint-4/empty")


def link_in_a_circle(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").symlink_to("empty")


def put_a_folder(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").mkdir()


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (truncate, "model.safetensors has 1,024 bytes, the manifest says 4,096"),
    (lose_a_rank, f"{OPTIMIZER.format(8)} is missing: it is rank 1's part"),
    (put_a_folder, "empty is missing"),
    (link_in_a_circle, "empty is missing"),
    (lose_the_manifest, "it has no manifest.json: it was not finished"),
    (break_the_manifest, "its manifest cannot be read (Unterminated string"),
    (take_anothers_manifest, "its manifest is another run's"),
    (list_what_lies_above, "its manifest lists ../checkpoint-4/empty, which leaves the folder"),
    (list_what_lies_at_the_root, "its manifest lists /dev/null, which leaves the folder"),
    (link_what_lies_above, "its manifest lists empty, which leaves the folder"),
]
FLIPPED = (
    flip_a_byte,
    "model.safetensors has changed since it was saved (its checksum is another)",
)
ids = {"ids": lambda value: getattr(value, "__name__", "")}


def test_checkpoint_as_it_was_saved_is_not_in_doubt(tmp_path: Path) -> None:
    folder = save(tmp_path, 8)
    (folder / "merged").mkdir()
    (folder / "merged" / "model.safetensors").write_text("made later")

    assert doubt(folder, run="run") is None
    assert doubt(folder, run=None) is None
    assert quick_doubt(folder, run="run") is None


@pytest.mark.parametrize(("fault", "why"), [*FAULTS, FLIPPED], **ids)
def test_doubted_checkpoint_is_set_aside_for_the_one_before(
    tmp_path: Path, fault: Callable[[Path], None], why: str
) -> None:
    before, newest = save(tmp_path, 4), save(tmp_path, 8)
    fault(newest)
    said: list[str] = []

    taken = latest_whole([before, newest], run="run", say=said.append, aside=tmp_path / "doubted")

    assert taken == before
    assert [line.startswith(f"checkpoint-8 is in doubt: {why}") for line in said] == [True], said
    assert said[0].endswith(
        f"; it lies in {tmp_path}/doubted/checkpoint-8 now, checkpoint-4 is taken instead"
    )
    assert not newest.exists()
    assert (tmp_path / "doubted/checkpoint-8/model.safetensors").exists()


@pytest.mark.parametrize(("fault", "why"), FAULTS, **ids)
def test_quick_look_finds_what_sizes_tell(
    tmp_path: Path, fault: Callable[[Path], None], why: str
) -> None:
    save(tmp_path, 4)
    folder = save(tmp_path, 8)
    fault(folder)

    assert (quick_doubt(folder, run="run") or "").startswith(why)


def test_quick_look_reads_no_content(tmp_path: Path) -> None:
    folder = save(tmp_path, 8)
    flip_a_byte(folder)

    assert quick_doubt(folder, run="run") is None


@pytest.mark.parametrize("name", ["rng_state_1.pth", "pytorch_model_fsdp_0/__1_0.distcp"])
def test_missing_file_of_a_rank_names_the_rank(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 8)
    change_manifest(folder, '"empty"', json.dumps(name))

    assert doubt(folder, run="run") == f"{name} is missing: it is rank 1's part"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 8)
    (folder / "model.safetensors").chmod(0)

    assert doubt(folder, run="run") == "model.safetensors cannot be read (Permission denied)"


def test_newest_whole_checkpoint_is_taken_and_nothing_is_said(tmp_path: Path) -> None:
    older, newest = save(tmp_path, 4), save(tmp_path, 8)
    flip_a_byte(older)
    said: list[str] = []

    taken = latest_whole([older, newest], run="run", say=said.append, aside=tmp_path / "doubted")

    assert (taken, said) == (newest, [])
    assert older.exists()
    assert not (tmp_path / "doubted").exists()


def test_no_checkpoint_at_all_is_a_beginning(tmp_path: Path) -> None:
    said: list[str] = []

    assert latest_whole([], run="run", say=said.append, aside=tmp_path / "doubted") is None
    assert said == []


def test_none_whole_names_the_newest_and_leaves_all(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (2, 4, 8)]
    lose_the_manifest(folders[0])
    flip_a_byte(folders[1])
    truncate(folders[2])
    said: list[str] = []

    for _ in range(2):  # a second start finds the same
        with pytest.raises(CheckpointError) as caught:
            latest_whole(folders, run="run", say=said.append, aside=tmp_path / "doubted")
        assert str(caught.value) == (
            f"{folders[2]} is not whole: model.safetensors has 1,024 bytes, the manifest says "
            "4,096; nor is any of the 2 before it; put it right, or start anew: another "
            "output_dir, or --resume_from_checkpoint false"
        )
    assert all(folder.exists() for folder in folders)
    assert said == []


@pytest.mark.parametrize("fault", [truncate, take_anothers_manifest, break_the_manifest])
def test_only_checkpoint_in_doubt_is_an_error(
    tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    folder = save(tmp_path, 8)
    fault(folder)

    with pytest.raises(CheckpointError, match=r"checkpoint-8 is not whole: [^;]*; put it right"):
        latest_whole([folder], run="run", say=print, aside=tmp_path / "doubted")


def test_kill_in_the_very_first_save_begins_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    save_files(folder, 1)
    said: list[str] = []

    taken = latest_whole([folder], run="run", say=said.append, aside=tmp_path / "doubted")

    assert taken is None
    assert said == [
        "checkpoint-1 is in doubt: it has no manifest.json: it was not finished; it lies in "
        f"{tmp_path}/doubted/checkpoint-1 now, training starts from the beginning"
    ]


def test_setting_aside_takes_a_free_name(tmp_path: Path) -> None:
    aside = tmp_path / "doubted"
    for name in ("checkpoint-8", "checkpoint-8.2", "checkpoint-8.3"):
        folder = save(tmp_path, 8)
        (folder / "which").write_text(name)

        assert set_aside(folder, aside) == aside / name
        assert (aside / name / "which").read_text() == name


def rotated(output: Path, folders: list[Path], keep: int | None, best: int | None) -> list[int]:
    """Returns the steps that rotating has left."""
    before = {folder.name for folder in folders}
    best_folder = None if best is None else output / f"checkpoint-{best}"
    gone = {folder.name for folder in rotate(folders, keep=keep, best=best_folder)}
    left = {folder.name for folder in folders if folder.exists()}
    assert left == before - gone
    assert not list(output.glob(".deleting-*"))
    return sorted(int(name.split("-")[1]) for name in left)


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (None, None, [2, 4, 6, 8]),
        (0, None, [2, 4, 6, 8]),
        (5, None, [2, 4, 6, 8]),
        (3, None, [4, 6, 8]),
        (1, None, [8]),
        (2, 2, [2, 8]),
        (1, 2, [2, 8]),
        (3, 2, [2, 6, 8]),
        (1, 8, [8]),
    ],
)
def test_rotating_keeps_the_newest_and_the_best(
    tmp_path: Path, keep: int | None, best: int | None, left: list[int]
) -> None:
    folders = [save(tmp_path, step) for step in (2, 4, 6, 8)]

    assert rotated(tmp_path, folders, keep, best) == left


@pytest.mark.parametrize(
    "fault",
    [lose_the_manifest, truncate, lose_a_rank, break_the_manifest, take_anothers_manifest],
)
def test_rotating_leaves_what_is_in_doubt_or_another_runs(
    tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    folders = [save(tmp_path, step) for step in (8, 10, 12)]
    fault(folders[0])

    assert rotated(tmp_path, folders, 1, None) == [8, 12]


def test_rotating_keeps_the_last_whole_one_until_the_next_is_whole(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (2, 4)]
    save_files(tmp_path / "checkpoint-6", 6)
    folders.append(tmp_path / "checkpoint-6")

    assert rotated(tmp_path, folders, 1, None) == [4, 6]
    save(tmp_path, 6)
    assert rotated(tmp_path, folders[1:], 1, None) == [6]


@pytest.mark.parametrize("keep", [None, 3])
def test_rotating_takes_the_first_save_once_a_newer_one_is_whole(
    tmp_path: Path, keep: int | None
) -> None:
    first = save(tmp_path, 1, first=True)
    assert rotated(tmp_path, [first], keep, None) == [1]

    save_files(tmp_path / "checkpoint-4", 4)
    folders = [first, tmp_path / "checkpoint-4"]
    assert rotated(tmp_path, folders, keep, None) == [1, 4]

    save(tmp_path, 4)
    assert rotated(tmp_path, folders, keep, 1) == [1, 4]
    assert rotated(tmp_path, folders, keep, None) == [4]


def test_rotating_removes_what_a_kill_has_left_half_deleted(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (4, 8)]
    shutil.copytree(folders[0], tmp_path / ".deleting-checkpoint-2")

    assert rotated(tmp_path, folders, None, None) == [4, 8]

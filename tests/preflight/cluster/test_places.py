"""Folders as one machine sees them."""

from __future__ import annotations

from pathlib import Path

from sailplan.preflight.cluster.places import kind_of, nearest, place_of

MOUNTS = """22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /shared rw shared:3 - nfs4 server:/export rw
31 22 0:41 / /shared/my\\040runs rw - lustre mds:/fs rw
32 22 0:42 / /shared/my\\040runs rw - beegfs beegfs rw
"""


def test_kind_of_file_system_is_that_of_the_deepest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert kind_of(Path("/home/me"), mounts) == "ext4"
    assert kind_of(Path("/shared/runs"), mounts) == "nfs4"
    assert kind_of(Path("/sharedness"), mounts) == "ext4"


def test_later_mount_at_a_place_with_a_space_covers_the_earlier_one(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert kind_of(Path("/shared/my runs/one"), mounts) == "beegfs"


def test_kind_is_told_of_this_machine(tmp_path: Path) -> None:
    assert kind_of(tmp_path)
    assert kind_of(tmp_path, tmp_path / "none") == ""


def test_folder_is_known_by_its_number(tmp_path: Path) -> None:
    found = place_of(tmp_path)
    assert (found.inode, found.writable) == (tmp_path.stat().st_ino, True)
    assert place_of(tmp_path / "none").inode is None


def test_nearest_folder_is_the_one_that_is_there(tmp_path: Path) -> None:
    assert nearest(tmp_path / "a" / "b") == tmp_path

"""Folders that all nodes must see: which file system they lie on, and how one is known again."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sailplan.preflight.cluster.records import Place

SHARED_KINDS = frozenset(
    {
        *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "pvfs2", "orangefs"),
        *("wekafs", "panfs", "cvmfs", "cifs", "smb3", "9p", "virtiofs", "afs", "daos", "vastfs"),
        *("fuse.ceph", "fuse.glusterfs", "fuse.juicefs", "fuse.sshfs", "fuse.quobyte", "quobyte"),
    }
)
"""File systems that several machines can have at once."""

MEMORY_KINDS = frozenset({"tmpfs", "ramfs", "devtmpfs", "overlay", "squashfs"})
"""File systems that are one machine's, whatever stands in its table of mounts."""

_OCTAL = re.compile(r"\\(\d{3})")
"""How the table of mounts writes spaces and the like."""


def place_of(path: Path) -> Place:
    """Returns a folder as this machine sees it."""
    try:
        inode = path.stat().st_ino
    except OSError:
        return Place(path=str(path), inode=None)
    is_writable = path.is_dir() and os.access(path, os.W_OK | os.X_OK)
    return Place(path=str(path), inode=inode, kind=kind_of(path), writable=is_writable)


def kind_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Returns the kind of file system on which a path lies; empty where that cannot be told.

    Args:
        path: A path that is there.
        mounts: The table of mounts.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
        real = path.resolve()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields.split()[4]))
        depth = len(point.parts)
        if depth >= best and (point == real or point in real.parents):
            best, kind = depth, rest.split()[0]
    return kind


def nearest(path: Path) -> Path:
    """Returns the path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())

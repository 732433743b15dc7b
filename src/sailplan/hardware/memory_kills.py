"""Whether the kernel has ended processes here for want of memory, and what limit it keeps."""

from __future__ import annotations

from pathlib import Path

_UNLIMITED = 1 << 60
"""Bytes from which a version 1 group has no limit: it is written as the largest that there is."""


def memory_group(proc: Path = Path("/proc/self")) -> Path | None:
    """Returns the folder of the control group that accounts this process's memory.

    Args:
        proc: The process's folder under /proc.
    """
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    paths = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        controller = {"cgroup": "memory", "cgroup2": ""}.get(kind)
        if controller is None or controller not in paths:
            continue
        if kind == "cgroup" and "memory" not in options.split(","):
            continue
        root, point = fields.split()[3:5]
        # In a container, what is mounted may begin further down than the path does.
        inside = paths[controller].removeprefix(root if root != "/" else "").lstrip("/")
        for folder in (Path(point) / inside, Path(point)):
            if any((folder / name).is_file() for name in ("memory.oom_control", "memory.events")):
                return folder
    return None


def oom_kills(group: Path | None = None, vmstat: Path = Path("/proc/vmstat")) -> int:
    """Returns how many processes the kernel has ended for want of memory.

    Those of this process's control group where there is one, whoever's limit it was: the kernel
    counts a process where it was accounted. Else those of the whole machine.

    Args:
        group: The control group's folder; this process's where not given.
        vmstat: The machine's counters.
    """
    folder = group or memory_group()
    files = [folder / "memory.events", folder / "memory.oom_control"] if folder else []
    for path in (*files, vmstat):
        try:
            words = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
            return int(words["oom_kill"])
        except (OSError, KeyError, ValueError):  # not here, or an older kernel
            continue
    return 0


def memory_limit(group: Path | None = None) -> int | None:
    """Returns the bytes that this process's control group may take; None where it has no limit.

    Args:
        group: The control group's folder; this process's where not given.
    """
    folder = group or memory_group()
    for name in ("memory.max", "memory.limit_in_bytes") if folder else ():
        try:
            limit = int((folder / name).read_text())  # type: ignore[operator]  # it is there
        except (OSError, ValueError):  # the other version's, or "max"
            continue
        return limit if limit < _UNLIMITED else None
    return None

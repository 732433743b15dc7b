"""What the smoke job runs on each node before any rank: `python -m … FOLDER`. No torch.

It leaves a record in the folder; where it cannot write there, it prints it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sailplan import __version__
from sailplan.hardware.driver import read_driver
from sailplan.hardware.xids import kernel_xids
from sailplan.imports import installed_versions
from sailplan.launcher.local import PACKAGES
from sailplan.preflight.cluster.places import place_of
from sailplan.preflight.cluster.records import (
    MARK,
    NodeRecord,
    node_file,
    seen_file,
    wanted_places,
    write,
)
from sailplan.records import to_json

SEEN_WITHIN_S = 20.0
"""A network file system may show a new file so late, where it remembers that there was none."""

_LOOK_EVERY_S = 0.2


def main(arguments: Sequence[str]) -> None:
    """Leaves word of this node.

    Args:
        arguments: The folder of the smoke job.
    """
    folder = Path(arguments[0])
    record = look(folder)
    try:
        write(node_file(folder, record.host), record)
    except OSError:
        print(f"{MARK}{json.dumps(to_json(record))}", flush=True)


def look(folder: Path) -> NodeRecord:
    """Returns how this node is.

    Args:
        folder: The folder of the smoke job.
    """
    driver = read_driver(os.environ)
    token = _token(seen_file(folder))  # first of all: the others may be late
    return NodeRecord(
        host=host(),
        software=software(),
        driver=driver.value,
        no_driver="" if driver.value else driver.reason,
        kernel_xids=kernel_xids(),
        token=token,
        places=tuple(place_of(Path(path)) for path in wanted_places(folder)),
    )


def host() -> str:
    """Returns this node's name as Slurm has it."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def software() -> dict[str, str | None]:
    """Returns the versions here of all that decides how a run goes; None of what is not here."""
    own = {"Python": platform.python_version(), "sailplan": __version__}
    return {**own, **installed_versions(PACKAGES)}


def _token(path: Path) -> str:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while True:
        try:
            found = path.read_text(encoding="utf-8").strip()
        except OSError:
            found = ""
        if found or time.monotonic() > deadline:
            return found
        time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    main(sys.argv[1:])

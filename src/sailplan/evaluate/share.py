"""One rank of a comparison: asks its share and writes it down. Knows nothing of the other ranks.

`python -m sailplan.evaluate.share FOLDER RANK RANKS`; the folder holds what `write_request` left.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.errors import SailplanError
from sailplan.files import write_atomically
from sailplan.processes import end_with
from sailplan.records import from_json, to_json
from sailplan.run.config import Run

if TYPE_CHECKING:
    from sailplan.evaluate.tasks import Request

_RUN, _REQUEST = "run.yaml", "request.json"


def write_request(folder: Path, run: Run, request: Request) -> None:
    """Leaves in a folder what its ranks have to know.

    Raises:
        OSError: It cannot be written.
    """
    write_atomically(folder / _RUN, run.run_yaml().encode())
    write_atomically(folder / _REQUEST, (json.dumps(to_json(request)) + "\n").encode())


def main(arguments: Sequence[str]) -> int:
    """Asks a rank's share, and returns its exit code.

    Args:
        arguments: Folder, rank, number of ranks.
    """
    end_with(os.getppid())
    from sailplan.imports import calm_libraries, compiled_when_called, quick_imports

    with quick_imports(), compiled_when_called():
        calm_libraries()
        from sailplan.evaluate.compare import ask
        from sailplan.evaluate.journal import Journal
        from sailplan.evaluate.tasks import Request, tasks_of

    folder, rank, num_ranks = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    run = Run.from_file(folder / _RUN)
    request = from_json(Request, json.loads((folder / _REQUEST).read_text(encoding="utf-8")))
    journal = Journal(folder=folder, rank=rank)
    journal.read()
    try:
        ask(tasks_of(run, request), journal, rank=rank, num_ranks=num_ranks)
    except SailplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

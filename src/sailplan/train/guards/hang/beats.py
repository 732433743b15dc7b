"""Where each rank leaves word of its progress, for the others and for whoever watches the run.

Small files in a folder that the ranks share, replaced whole and never synced: what a crash of the
machine loses of them nobody misses.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

FIRST_STEP = 3.0
"""How many times `hang_timeout` the first step may take: kernels are compiled, workers start."""

LEFT = "done with training"
"""The phase of a rank that has left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """How far a rank has come."""

    session: float
    """Of which start of the ranks this is; an earlier one's files may still lie there."""
    rank: int
    pid: int
    host: str
    step: int
    """Optimizer steps that are done."""
    moves: int
    """Signs of progress since then."""
    phase: str
    """What the rank does, in words."""
    moved_at: float
    """When it last made progress, by the host's clock, in seconds since 1970."""


class Beats:
    """The files of one start of the ranks.

    Args:
        folder: Where they lie.
        session: The start.
    """

    def __init__(self, folder: Path, session: float) -> None:
        self.folder, self.session = folder, session
        self._marker = folder / f"hang-{session:.3f}"

    def begin(self, rank: int) -> None:
        """Makes the folder; the first rank takes away what earlier starts have left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            for path in self.folder.glob("hang-*"):
                if path != self._marker:
                    path.unlink(missing_ok=True)

    def end(self, beat: Beat) -> None:
        """Says that a rank trains no more; the last one takes all files away."""
        self.write(replace(beat, phase=LEFT))
        if all(other.phase == LEFT for other in self.read().values()):
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def write(self, beat: Beat) -> None:
        """Replaces a rank's last word."""
        self.tell("rank", beat.rank, asdict(beat))

    def read(self) -> dict[int, Beat]:
        """Returns the last word of each rank, in the order of ranks."""
        return {rank: Beat(**told) for rank, told in self.told("rank").items()}

    def tell(self, kind: str, rank: int, what: dict[str, Any]) -> None:
        """Replaces what a rank has told of a kind."""
        _replace(self.folder / f"{kind}-{rank}.json", json.dumps(what))

    def told(self, kind: str) -> dict[int, dict[str, Any]]:
        """Returns what each rank has told of a kind since this start, in the order of ranks."""
        found = {}
        for path in self.folder.glob(f"{kind}-*.json"):
            try:
                what = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # its rank ends just now
            if what["session"] == self.session:
                found[int(what["rank"])] = what
        return dict(sorted(found.items()))

    def stack_of(self, rank: int) -> Path:
        """Returns where a rank's stack lies that could not write it itself."""
        return self.folder / f"rank-{rank}.stack"

    @property
    def is_hung(self) -> bool:
        """Whether some rank has said that nothing moves."""
        return self._marker.exists()

    @property
    def is_concluded(self) -> bool:
        """Whether it is said why, so that every rank may go."""
        try:
            return self._marker.stat().st_size > 0
        except OSError:
            return False

    def claim_hang(self) -> bool:
        """Says that nothing moves; true on the one rank that then has to find out why."""
        try:
            self._marker.open("x").close()
        except FileExistsError:
            return False
        return True

    def conclude(self, words: str) -> None:
        """Lets every rank go."""
        _replace(self._marker, words or "no words")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

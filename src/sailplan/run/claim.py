"""What a run writes into its directory before it trains, all of it or nothing, and back again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sailplan.files import write_atomically


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The files that a run wrote, and what was in their place."""

    before: Mapping[Path, bytes | None]
    """Each file's content before the claim; None where there was no file."""
    folders: tuple[Path, ...]
    """The folders that had to be created, the innermost first."""

    @classmethod
    def write(cls, folder: Path, texts: Mapping[Path, str]) -> Claim:
        """Writes files into a folder, which is created where it is missing.

        Raises:
            OSError: One of them cannot be written; everything is as it was.
        """
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        before = {path: path.read_bytes() if path.exists() else None for path in texts}
        claim = cls(before=before, folders=tuple(missing))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, text in texts.items():
                write_atomically(path, text.encode("utf-8", "surrogateescape"))
        except BaseException:
            claim.take_back()
            raise
        return claim

    def take_back(self) -> None:
        """Leaves the folder as it was; what others have written there meanwhile stays."""
        # What cannot be taken back must not hide why it is taken back.
        for path, content in self.before.items():
            with contextlib.suppress(OSError):
                if content is None:
                    path.unlink(missing_ok=True)
                elif path.read_bytes() != content:
                    write_atomically(path, content)
        with contextlib.suppress(OSError):
            for folder in self.folders:
                folder.rmdir()

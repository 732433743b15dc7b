"""Remembers which files of a merge are whole, so that a killed one goes on where it was.

The journal lies beside the output until the merge is done. It begins with a key of everything that
decides about the bytes: the plan, and every input's path, size and time of change. Another key is
another merge, which is refused. A finished file is kept only where its digest is found again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from sailplan.errors import OutputError
from sailplan.files import write_atomically
from sailplan.merge.tensor_plan import Shard

NAME = ".sailplan-merge.json"
"""The journal's file in the output folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Journal:
    """The files of one merge that are whole."""

    folder: Path
    """The output folder."""
    key: str
    """What the merge is."""
    finished: Mapping[str, str]
    """Digest by file name."""

    @classmethod
    def open(cls, folder: Path, key: str) -> Journal:
        """Returns the journal of a merge that begins, or goes on.

        Raises:
            OutputError: Another merge was begun in the folder.
        """
        path = folder / NAME
        if not path.is_file():
            return cls(folder=folder, key=key, finished={})
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            begun, finished = str(content["key"]), dict(content["finished"])
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(
                f"{path} cannot be read ({error})", todo="choose another folder, or write --force"
            ) from error
        if begun != key:
            raise OutputError(
                f"{folder} holds another merge that was not finished: its inputs or options differ",
                todo="repeat those, choose another folder, or write --force to begin anew",
            )
        return cls(folder=folder, key=key, finished=finished)

    def with_file(self, name: str, digest: str) -> Journal:
        """Returns the journal with one more whole file, on disk already."""
        journal = Journal(
            folder=self.folder, key=self.key, finished={**self.finished, name: digest}
        )
        journal.begin()
        return journal

    def begin(self) -> None:
        """Puts the journal on disk, before anything else of the merge is.

        Raises:
            OutputError: It cannot be written.
        """
        content = {"key": self.key, "finished": dict(self.finished)}
        try:
            write_atomically(self.folder / NAME, (json.dumps(content, indent=2) + "\n").encode())
        except OSError as error:
            raise OutputError(
                f"cannot write {self.folder}: {error.strerror}",
                todo="make room and run the same command again: finished files are kept",
            ) from error

    def close(self) -> None:
        """Removes the journal: the merge is done."""
        (self.folder / NAME).unlink(missing_ok=True)


def key_of(shards: Sequence[Shard], options: Mapping[str, object]) -> str:
    """Returns a key of everything that decides about the output's bytes.

    Args:
        shards: The plan.
        options: What else decides, such as the base's precision.

    Raises:
        OSError: An input is gone.
    """
    digest = xxhash.xxh3_128(repr(sorted(options.items())).encode())
    inputs: dict[Path, str] = {}
    for shard in shards:
        digest.update(shard.name.encode())
        for plan in shard.tensors:
            adapter = plan.delta.reads.values() if plan.delta else ()
            segments = [s for pieces in (plan.source, *adapter) for s in pieces.segments]
            for segment in segments:
                if segment.file not in inputs:
                    status = segment.file.stat()
                    inputs[segment.file] = f"{status.st_size} {status.st_mtime_ns}"
            places = [(str(s.file), s.offset, s.count, s.dtype) for s in segments]
            digest.update(repr((plan.name, plan.dtype, plan.shape, places)).encode())
    for path, status in sorted(inputs.items()):
        digest.update(f"{path.resolve()} {status}".encode())
    return digest.hexdigest()

"""Reads WebDataset's tar shards from front to end: a sample is in memory only while it is used."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from sailplan.data import archives
from sailplan.data.archive_rows import (
    has_images,
    is_hidden,
    is_table,
    kept,
    sample_key,
    sample_row,
    with_its_images,
)
from sailplan.errors import DataError

_FIRST_SAMPLES = 1000
"""So many samples tell the columns of all."""


def is_of_samples(files: Sequence[Path]) -> bool:
    """Whether archives are tar shards of samples, as the first of them shows.

    Raises:
        DataError: It is broken.
    """
    if any(file.suffix.lower() != ".tar" for file in files):
        return False
    return not any(is_table(name) for name in archives.members(files[0]) if not is_hidden(name))


def first_samples(archive: Path) -> tuple[Path, bool]:
    """Returns a file with the first samples of a shard, without their images, and if it has any.

    Raises:
        DataError: The archive is broken, or empty.
    """
    lines = []
    for _, sample in itertools.islice(_samples(archive), _FIRST_SAMPLES):
        row, _ = sample_row(archive, sample.names, sample.read)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(f"{archive} holds no rows", allowed="a data file, or WebDataset's samples")
    return kept(archive, "samples.jsonl", "".join(lines).encode()), has_images(archive)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveStream:
    """The samples of tar shards, each shard a unit of a stream (`streaming.parts.Part`)."""

    archives: Sequence[Path]
    """The shards."""
    features: datasets.Features
    """The columns."""
    known: frozenset[str]
    """The columns that the samples may have, those that were not chosen too."""
    with_images: bool
    """Whether images stand beside the samples; they become the column `images`, as bytes."""

    @classmethod
    def of(
        cls, archives: Sequence[Path], columns: datasets.Features, *, with_images: bool
    ) -> ArchiveStream:
        """Opens shards.

        Args:
            archives: The shards.
            columns: The columns of their json and texts.
            with_images: Whether there are images beside them.
        """
        beside = with_images and not {"image", "images"} & columns.keys()
        images = {"images": datasets.List(datasets.Image(decode=False))} if beside else {}
        return cls(
            archives=archives,
            features=datasets.Features({**columns, **images}),
            known=frozenset({**columns, **images}),
            with_images=with_images,
        )

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.features)

    @property
    def num_units(self) -> int:
        """The number of shards."""
        return len(self.archives)

    def select_columns(self, columns: Sequence[str]) -> ArchiveStream:
        """Returns the same samples with some columns alone."""
        chosen = {name: self.features[name] for name in columns}
        return replace(self, features=datasets.Features(chosen))

    def rows(
        self, unit: int, start: int = 0, wanted: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the rows of a shard; of those that are not wanted only the headers are read.

        Args:
            unit: The shard.
            start: The first row.
            wanted: Which rows are yielded, by their numbers in the shard.

        Raises:
            DataError: The shard is broken, or has images where the first one has none.
        """
        archive = self.archives[unit]
        for number, sample in _samples(archive, start, wanted):
            row, images = sample_row(archive, sample.names, sample.read)
            if row.keys() - self.known:
                raise DataError(
                    f"{archive}: sample {sample.key} has {min(row.keys() - self.known)!r}, which "
                    f"none of the first {_FIRST_SAMPLES} samples has",
                    todo="write it in one of them, with null where there is none",
                )
            if images and not self.with_images and not {"image", "images"} & row.keys():
                raise DataError(
                    f"{archive}: sample {sample.key} has images, but the first shard has none",
                    todo="put the shards with images first, or stream them apart",
                )
            stored = [
                {"path": f"{archive.name}/{name}", "bytes": sample.read(name)} for name in images
            ]
            row = with_its_images(archive, sample.key, row, stored, self.with_images)
            yield number, {name: row.get(name) for name in self.features}

    def place(self, unit: int, row: int) -> str:
        """Says where a user finds a row."""
        of_shard = f" of {self.archives[unit].name}" if len(self.archives) > 1 else ""
        return f"row {row} (from 0){of_shard}"


@dataclass(frozen=True, slots=True)
class _Sample:
    """Members of a shard that follow one another and belong together."""

    key: str
    contents: dict[str, bytes]

    @property
    def names(self) -> list[str]:
        return list(self.contents)

    def read(self, name: str) -> bytes:
        return self.contents[name]


def _samples(
    archive: Path, start: int = 0, wanted: Callable[[int], bool] | None = None
) -> Iterator[tuple[int, _Sample]]:
    """Yields the samples of a shard that are wanted, each with its number."""
    number, sample = -1, _Sample("", {})
    try:
        # Without a buffer no more is read of what is passed over than its header.
        with archive.open("rb", buffering=0) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it remembers them all
                name = member.name.removeprefix("./")
                if not member.isreg() or member.issparse() or is_hidden(name):
                    continue
                key = sample_key(archive, name)
                if number < 0 or key != sample.key:
                    if sample.contents:
                        yield number, sample
                    number, sample = number + 1, _Sample(key, {})
                if number >= start and (wanted is None or wanted(number)):
                    sample.contents[name] = _content(archive, tar, member)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{archive} is cut off or broken: {error}", todo="get it again") from None
    if sample.contents:
        yield number, sample


def _content(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    label = f"{archive}/{member.name}"
    if member.size > archives.MEMBER_LIMIT_BYTES:
        limit = f"at most {archives.MEMBER_LIMIT_BYTES}"
        raise DataError(f"{label} has {member.size} bytes", allowed=limit)
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise DataError(f"{label} is cut off", todo="get the file again")
    return content

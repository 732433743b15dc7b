"""What the tests of users' mistakes share: the ends of runs, rows, and broken files."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from tests.support.launch import End

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
RUN = "run.yaml"


def files_under(folder: Path) -> dict[str, bytes | None]:
    """Every file under a folder with its content, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_one_line(end: End, code: int, message: str) -> None:
    """One line on standard error that names the mistake, and the exit code of its class."""
    assert end.err.count("\n") == 1, end.err
    assert end.err.startswith("error: ")
    assert message in end.err
    assert "Traceback" not in end.out + end.err
    assert end.code == code


def chat(question: str = "Which?", answer: str | None = "Red.", **columns: object) -> dict:
    """A row in TRL's messages format."""
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return {"messages": turns, **columns}


def write_rows(folder: Path, rows: list[dict]) -> None:
    """Writes the rows that the run file names."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(*arguments: str, timeout: float = 60) -> End:
    """Runs `sailplan train run.yaml` as a user does."""
    command = [sys.executable, "-m", "sailplan", "train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    return End(done.returncode, done.stdout, done.stderr)


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises that size, over a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def truncate(image: Path) -> None:
    """Cuts a file in half."""
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])

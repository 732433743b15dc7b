"""Recognises what is often saved in place of a file: nothing, a web page, a Git-LFS pointer."""

from __future__ import annotations

HEAD_BYTES = 512
"""How much of a file `describe` needs to see."""


def describe(head: bytes) -> tuple[str, str] | None:
    """Returns what a file is in place of data and what to do, or None.

    Args:
        head: The first `HEAD_BYTES` of the file.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty", "get the file again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git-LFS pointer, not the file itself", "run `git lfs pull` where it came from"
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "is a web page, not data", "download the file itself, not the page that shows it"
    return None

"""Chats, images and pixel budgets that a model cannot take: one line with the row's number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.support import assert_one_line, chat, files_under, write_rows
from tests.support.launch import Entry

GOOD = chat(images=["a.png"])
CALL = {"function": {"name": "weather", "arguments": "{"}}


def shown(**image: object) -> dict:
    """A row whose image stands in a part of its own."""
    return chat([{"type": "image_url", **image}, {"type": "text", "text": "Which?"}])


MISTAKES: dict[str, tuple[list[dict], dict[str, object], int, str]] = {
    # rows, flags, exit code, message
    "broken base64": (
        [shown(image_url={"url": "data:image/png;base64,@"})],
        {},
        4,
        "train row 0 (from 0): an image in base64 is broken",
    ),
    "address of a file": (
        [shown(image_url={"url": "file:///etc/passwd"})],
        {},
        4,
        "train row 0 (from 0): image 'file:///etc/passwd' is no path; allowed: paths",
    ),
    "tools that the template leaves out": (
        [GOOD, chat(images=["a.png"], tools=[{"name": "weather"}])],
        {},
        4,
        "train row 1 (from 0): the chat template shows no tools, which the row has",
    ),
    "call in broken JSON": (
        [
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "tool_calls": [CALL]},
                ]
            }
        ],
        {},
        4,
        "train row 0 (from 0): the arguments in turn 2 of 'messages' are broken JSON",
    ),
    "unknown role": (
        [{"conversations": [{"from": "robot", "value": "a"}]}],
        {},
        4,
        "train row 0 (from 0): turn 1 of 'conversations' has the role 'robot'; allowed: system",
    ),
    "no such system column": (
        [GOOD],
        {"system_column": "rules"},
        4,
        "there is no system_column 'rules'; columns seen: 'messages', 'images'",
    ),
    "budget below one token": ([GOOD], {"max_pixels": 100}, 2, "max_pixels 100; allowed: 784 or"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_row_that_cannot_be_taken_is_one_line(
    here: Path, entry: Entry, flags_of: Callable[[dict], list[str]], case: str
) -> None:
    rows, values, code, message = MISTAKES[case]
    write_rows(here, rows)
    before = files_under(here)
    assert_one_line(entry(flags_of(values)), code, message)
    assert files_under(here) == before

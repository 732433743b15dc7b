"""Reads a page of the documentation: its fenced blocks, tables, links, headings and code spans."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(.*)$")
_HEADING = re.compile(r"^#+ (.+)$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block, or where `kind` is None a line of prose."""

    page: Path
    line: int
    heading: str
    kind: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def parts(page: Path) -> Iterator[Block]:
    """Yields the fenced blocks of a page and the lines between them, in order."""
    heading, fence, body, start = "", None, list[str](), 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        mark = _FENCE.match(line)
        if fence is not None and mark:
            text = "\n".join(body) + "\n"
            yield Block(page=page, line=start, heading=heading, kind=fence, text=text)
            fence = None
        elif fence is not None:
            body.append(line)
        elif mark:
            fence, body, start = mark[1].strip(), [], number
        else:
            title = _HEADING.match(line)
            heading = title[1] if title else heading
            yield Block(page=page, line=number, heading=heading, kind=None, text=line)
    assert fence is None, f"{page.name}:{start}: the block has no end"


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    return [part for part in parts(page) if part.kind is not None]


def prose(page: Path) -> str:
    """Returns the page without its fenced blocks."""
    return "\n".join(part.text for part in parts(page) if part.kind is None)


def tables(page: Path) -> list[list[list[str]]]:
    """Returns the cells of each table's rows, without its head."""
    found: list[list[list[str]]] = [[]]
    for line in prose(page).splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found[-1].append([cell.strip().replace("\\|", "|") for cell in cells])
        elif found[-1]:
            found.append([])
    return [table[2:] for table in found if table]


def links(page: Path) -> list[str]:
    """Returns the targets of all links."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Returns the anchors that the headings make, as GitHub makes them."""
    titles = (_HEADING.match(line) for line in prose(page).splitlines())
    slugs = (re.sub(r"[^\w\s-]", "", title[1].lower()) for title in titles if title)
    return {slug.strip().replace(" ", "-") for slug in slugs}


def spans(page: Path) -> list[str]:
    """Returns the code spans of the prose; one may go over a line's end."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(page))]

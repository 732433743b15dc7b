"""What works with each family of models, as a table, in Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sailplan.model.lineup import LINEUP
from sailplan.model.tested import Results, Tested

METHODS = {"full": "full", "lora": "LoRA", "qlora": "QLoRA", "int8": "8-bit"}
"""Methods of the matrix as columns: 8-bit is LoRA on 8-bit weights."""
STRATEGIES = {"ddp": "DDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
_ALL_METHODS = METHODS | {"full-qlora": "full, 4-bit weights", "full-int8": "full, 8-bit weights"}
_ALONE = "single"
_HEAD = ("family", "on the hub", *METHODS.values(), "on 2 ranks", "samples", "start from")
_SHOWN = (_HEAD[0], *_HEAD[2:])
_NARROW = (_HEAD[0], *METHODS.values(), _HEAD[-1])
_WIDE = 100
"""Below it, only what is asked for most often is shown."""
_UNKNOWN = "?"
NOT_RECORDED = "what works with each is not recorded yet: `make test-matrix` tries it all"
_MADE = {"pack": "packed", "pad": "padded"}


def rows(results: Results | None) -> list[tuple[str, ...]]:
    """Returns a row for each family, with the cells of the table's head.

    Args:
        results: Of a run of the matrix; None where there are none.
    """
    found = []
    for name, member in LINEUP.items():
        cells = _cells(results, name)
        alone = [_worked(cells.get((method, _ALONE))) for method in METHODS]
        on_ranks = _on_ranks(cells) if results else _UNKNOWN
        made = batching(results, name)
        found.append((member.title, member.hub, *alone, on_ranks, made, member.start))
    return found


def batching(results: Results | None, family: str) -> str:
    """Returns how the samples of a family become micro batches: `packed` or `padded`."""
    for (_, strategy), cell in _cells(results, family).items():
        if strategy == _ALONE and cell.works:
            word = cell.words.removeprefix("batching: ").split()[0].strip(":,;")
            return _MADE.get(word, word)
    return _UNKNOWN


def refusals(results: Results) -> list[str]:
    """Returns a line for each reason of a refusal: what is refused, of which families, and why."""
    found: dict[tuple[str, str], list[Tested]] = {}
    for cell in results.cells:
        if not cell.works:
            found.setdefault((cell.method, cell.words), []).append(cell)
    return [_refusal(results, method, cells) for (method, _), cells in found.items()]


def _refusal(results: Results, method: str, refused: list[Tested]) -> str:
    strategies = dict.fromkeys(cell.strategy for cell in refused)
    names = dict.fromkeys(cell.family for cell in refused)
    tried = {c.family for c in results.cells if c.method == method and c.strategy in strategies}
    always = _ALONE in strategies
    under = "" if always else f" under {', '.join(STRATEGIES[name] for name in strategies)}"
    of = "" if set(names) == tried else f" ({', '.join(LINEUP[name].title for name in names)})"
    return f"{_ALL_METHODS[method]}{under}{of}: {refused[0].words}"


def made_with(results: Results) -> str:
    """Returns the versions of the libraries that the results are of."""
    return ", ".join(f"{name} {version}" for name, version in results.versions.items() if version)


def markdown_table(results: Results | None) -> str:
    """Returns the table in Markdown, and below it what is refused and why."""
    lines = [_markdown(_HEAD), _markdown(["---"] * len(_HEAD))]
    for title, hub, *cells, start in rows(results):
        lines.append(_markdown([title, f"`{hub.replace(', ', '`, `')}`", *cells, f"`{start}`"]))
    lines.append("")
    if results is None:
        return "\n".join((*lines, f"{NOT_RECORDED[0].upper()}{NOT_RECORDED[1:]}.", ""))
    lines.append(f"Tried with {made_with(results)}. What is refused, before anything is loaded:")
    return "\n".join((*lines, "", *(f"- {line}" for line in refusals(results)), ""))


def print_families(results: Results | None) -> None:
    """Prints the table on the terminal, and below it what is refused and why."""
    from rich import box
    from rich.table import Table

    from sailplan.supervise.shown import console_of

    console = console_of()
    shown = _NARROW if console.width < _WIDE else _SHOWN
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in shown:
        table.add_column(column, overflow="fold", no_wrap=column in (_HEAD[0], _HEAD[-1]))
    for row in rows(results):
        table.add_row(*(row[_HEAD.index(column)] for column in shown))
    console.print(table)
    if results is None:
        console.print(NOT_RECORDED, soft_wrap=True)
        return
    for line in (f"tried with {made_with(results)}", *refusals(results)):
        console.print(line, soft_wrap=True)


def as_dict(results: Results | None) -> dict[str, Any]:
    """Returns all of it as JSON can hold it: each family, and every cell that was tried."""
    return {
        "versions": results.versions if results else None,
        "families": [
            {
                "name": name,
                **asdict(member),
                "samples": batching(results, name) if results else None,
                "cells": [asdict(cell) for cell in _cells(results, name).values()],
            }
            for name, member in LINEUP.items()
        ],
    }


def _cells(results: Results | None, family: str) -> dict[tuple[str, str], Tested]:
    """Returns the cells of a family by method and strategy."""
    cells = results.cells if results else ()
    return {(cell.method, cell.strategy): cell for cell in cells if cell.family == family}


def _worked(cell: Tested | None) -> str:
    if cell is None:
        return _UNKNOWN
    return "yes" if cell.works else "no"


def _on_ranks(cells: dict[tuple[str, str], Tested]) -> str:
    """Returns the strategies that work, each with the methods that do not under it."""
    return ", ".join(_under(cells)) or "not tried"


def _under(cells: dict[tuple[str, str], Tested]) -> Iterator[str]:
    for strategy, title in STRATEGIES.items():
        tried = {
            method: cells[method, strategy] for method in METHODS if (method, strategy) in cells
        }
        missing = [METHODS[method] for method, cell in tried.items() if not cell.works]
        if len(missing) < len(tried):
            yield f"{title} (not {', '.join(missing)})" if missing else title


def _markdown(cells: Any) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

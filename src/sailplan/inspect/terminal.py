"""Prints an inspection: samples with their tokens coloured, histograms, findings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from sailplan.inspect.findings import Finding, Severity
from sailplan.inspect.histogram import Summary, coarser
from sailplan.inspect.samples import KINDS, Kind, Piece, Shown
from sailplan.terminal import harmless

if TYPE_CHECKING:
    from rich.console import Console

    from sailplan.inspect.inspection import Inspection

STYLES: dict[Kind, str] = {
    "trained": "bold black on green3",
    "context": "default",
    "image": "white on dark_magenta",
    "padding": "bright_black",
}
_SEVERITY_STYLES: dict[Severity, str] = {
    "error": "bold red",
    "warning": "bold yellow",
    "note": "bold cyan",
}
_PLAIN_WIDTH = 100
_MAX_BAR, _MAX_BINS = 36, 16
_MAX_PLACES = 5


def print_inspection(inspection: Inspection) -> None:
    """Prints the whole inspection on standard output."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    _print_head(console, inspection)
    if inspection.samples:
        _print_samples(console, inspection.samples)
    for split in inspection.splits[:1]:  # the page has those of held-out rows too
        for title, found in (
            ("tokens a sample", split.length_tokens),
            ("image tokens a sample with images", split.image_tokens),
        ):
            if found is not None and (found.total or title.startswith("tokens")):
                _print_histogram(console, f"{split.name}: {title}", found)
    _print_padding(console, inspection)
    _print_findings(console, inspection.findings)


def _print_head(console: Console, inspection: Inspection) -> None:
    console.print(f"{inspection.model} on {inspection.data} ({inspection.format})", style="bold")
    for note in inspection.notes:
        console.print(note)
    for split in inspection.splits:
        tokens = split.length_tokens.total if split.length_tokens else 0
        trained = split.trained_tokens.total if split.trained_tokens else 0
        share = f", {trained / tokens:.1%} of them trained" if tokens else ""
        broken = split.num_rows - split.num_whole
        console.print(
            f"{split.name}: {split.num_rows:,} rows"
            + (f", {broken:,} of them broken" if broken else "")
            + f", {split.num_images:,} images, {tokens:,} tokens{share}"
        )
    total = sum(split.num_rows for split in inspection.splits)
    how = "pixels decoded" if inspection.decoded else "pixels not decoded: --decode does"
    console.print(
        f"looked at {total:,} rows in {inspection.seconds:.1f} s, "
        f"{inspection.rows_per_s:,.0f}/s ({how})"
    )


def _print_samples(console: Console, samples: tuple[Shown, ...]) -> None:
    from rich.text import Text

    coloured = console.is_terminal and not console.no_color
    if coloured:
        legend = Text("\n")
        for kind in KINDS:
            legend.append(f" {kind} ", STYLES[kind])
            legend.append(" ")
        console.print(legend)
    for sample in samples:
        counts = ", ".join(f"{sample.num_tokens[kind]} {kind}" for kind in KINDS)
        console.print(f"\n{sample.place}: {counts}", style="bold")
        for image in sample.images:
            width, height = image.image.size
            console.print(f"image {harmless(image.name)}, {width}×{height}")
        if coloured:
            text = Text()
            for kind, run in groupby(sample.pieces, key=lambda piece: piece.kind):
                shown = "".join(map(written, run)).replace("\n", "⏎\n")
                text.append(shown, STYLES[kind])
            console.print(text)
        else:
            for line in plain_lines(sample):
                console.print(line, soft_wrap=True)


def written(piece: Piece) -> str:
    """Returns a piece as it is shown: runs folded, nothing in it that steers a terminal."""
    if piece.kind == "padding":
        return f"<padding ×{piece.count}>"
    if piece.count > 1:
        return f"{harmless(piece.text)}×{piece.count} "
    return harmless(piece.text)


def plain_lines(sample: Shown) -> Iterator[str]:
    """Yields a sample in lines that begin with what kind of tokens follow, for where no colour is.

    Line breaks of the text are written as ⏎, so that a line is a run of one kind.
    """
    for kind, run in groupby(sample.pieces, key=lambda piece: piece.kind):
        text = "".join(map(written, run)).replace("\n", "⏎")
        yield f"{kind:>8} | {text}"


def _print_histogram(console: Console, title: str, found: Summary) -> None:
    console.print(
        f"\n{title}: {found.least} to {found.most}, median {found.median}, 95% up to {found.p95}",
        style="bold",
    )
    bins = coarser(found.histogram, _MAX_BINS)
    if len(bins.counts) == 1:
        return
    highest = max(bins.counts)
    for number, count in enumerate(bins.counts):
        low = bins.start + number * bins.step
        name = f"{low}" if bins.step == 1 else f"{low}–{low + bins.step - 1}"
        bar = "█" * round(count / highest * _MAX_BAR) or ("▏" if count else "")
        console.print(f"{name:>13} {bar} {count or ''}".rstrip())


def _print_padding(console: Console, inspection: Inspection) -> None:
    padding = inspection.padding
    if padding is None:
        return
    console.print(
        f"\npadding: {padding.share:.1%} of the tokens; random micro batches of "
        f"{padding.micro_batch_size} would have {padding.random_share:.1%}",
        style="bold",
    )
    console.print(padding.words)
    console.print(padding.why)


def _print_findings(console: Console, findings: tuple[Finding, ...]) -> None:
    console.print()
    if not findings:
        console.print("nothing to find fault with", style="bold green")
        return
    for finding in findings:
        rows = f" in {finding.count:,} {finding.split} row{'s' * (finding.count != 1)}"
        console.print(
            f"{finding.severity}: {finding.name}{rows if finding.count else ''}: {finding.meaning}",
            style=_SEVERITY_STYLES[finding.severity],
        )
        console.print(f"  {where(finding)}: {harmless(finding.message)}", soft_wrap=True)
        others = finding.places[1:_MAX_PLACES]
        if others:
            more = finding.count - 1 - len(others)
            console.print(f"  also {', '.join(others)}{f' and {more:,} more' if more else ''}")
        console.print(f"  to do: {harmless(finding.todo)}", soft_wrap=True)
    sys.stdout.flush()


def where(finding: Finding) -> str:
    """Says where the first row of a finding is."""
    return f"{finding.split} {finding.places[0]}" if finding.places else finding.split

"""A report as the text of one HTML file that needs nothing else.

All of it is in the page and can be read without its script, which only filters, sorts, searches,
folds and changes colours. The page forbids itself every script but that one, and every address
outside it (its content security policy).
"""

from __future__ import annotations

import base64
import hashlib
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup

from sailplan.evaluate.scores.names import TITLES
from sailplan.pages.render import environment, write_page
from sailplan.report.charts import chart
from sailplan.report.page import numbers
from sailplan.report.page.memory import bars_of
from sailplan.report.page.pictures import Picture, embedded
from sailplan.report.page.samples import compared, compared_image, limit_of, samples, shown
from sailplan.report.page.verdicts import stands, whisker
from sailplan.report.record import Fact, Report
from sailplan.run.paths import RunPaths

_FOLDER = Path(__file__).parent


def render(report: Report, *, images: Callable[[str], bytes | None]) -> str:
    """Returns the page of a report.

    Args:
        report: What to show.
        images: Returns the content of a file by its place in the run's directory, such as
            `compare/images/0.webp`; None where it is not there.
    """
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    found = report.comparison
    in_rows = [compared_image(name) for row in found.rows for name in row.images] if found else []
    in_watched = [name for watched in report.watched for name in watched.images]
    num_said = sum(len(watched.said) + 2 for watched in report.watched)
    return (
        environment(_FOLDER)
        .get_template("page.html.j2")
        .render(
            it=report,
            run=shlex.quote(report.path),
            run_file=shlex.quote(str(RunPaths(Path(report.path)).run_file)),
            made=time.strftime("%Y-%m-%d %H:%M", time.localtime(report.made_at)),
            script=Markup(script),  # noqa: S704  # our own file
            script_hash=_hash(script),
            groups=_groups(report.facts),
            stands=stands(found) if found else (),
            samples=samples(found) if found else (),
            names=_row_scores(report),
            pictures=embedded([*in_rows, *in_watched], images),
            is_first=_firsts(),
            charts=[Markup(chart(curve, report.marks)) for curve in report.curves],  # noqa: S704
            memory=bars_of(report.memory) if report.memory else None,
            limit=limit_of(num_said),
            shown=shown,
            compared=compared,
            title_of=numbers.title_of,
            value_of=numbers.value_of,
            change_of=numbers.change_of,
            minus=numbers.MINUS,
            whisker=whisker,
        )
    )


def write(report: Report, page: Path | None = None) -> Path:
    """Writes the page of a report, and returns where: in the run's directory unless it is said.

    Raises:
        OutputError: It cannot be written.
    """
    directory = Path(report.path)
    page = page or RunPaths(directory).report_file
    write_page(page, render(report, images=folder_images(directory)))
    return page


def folder_images(folder: Path) -> Callable[[str], bytes | None]:
    """Returns what reads the files of a run's directory for `render`, and none outside it."""
    root = folder.resolve()

    def read(name: str) -> bytes | None:
        try:
            path = (root / name).resolve()
            return path.read_bytes() if path.is_relative_to(root) else None
        except (OSError, ValueError):  # such as a null byte in the name
            return None

    return read


def _firsts() -> Callable[[Picture], bool]:
    """Returns what tells whether a picture is asked for for the first time."""
    seen: set[int] = set()

    def is_first(picture: Picture) -> bool:
        if picture.number in seen:
            return False
        seen.add(picture.number)
        return True

    return is_first


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _groups(facts: tuple[Fact, ...]) -> dict[str, list[Fact]]:
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.group, []).append(fact)
    return groups


def _row_scores(report: Report) -> list[str]:
    """Returns the scores that tell single rows apart, the one to begin with first."""
    found = report.comparison
    if found is None:
        return []
    in_rows = {name for row in found.rows for scores in row.scores.values() for name in scores}
    main = [one.name for one in found.scores if one.name in in_rows and numbers.is_main(one.name)]
    # The user's own; then one that tells more of single answers than whether they are exact.
    return sorted(main, key=lambda name: (name in TITLES, name != "rouge_l"))

"""`sailplan report RUN`: a run as one page, its curves as a picture, its numbers as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sailplan.run.config import Run


def report(
    run: Annotated[
        str,
        typer.Argument(
            help="A run directory, a run file, or a name that `sailplan runs` shows here."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page; report.html in the run's directory."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", help="Write the curves to this picture too.")
    ] = None,
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write all numbers too; - prints them."),
    ] = None,
) -> None:
    """Writes one page of a run: what was run, its curves, what it took, and base against tuned.

    The page is a single file that needs nothing else: it opens from disk, and can be sent. It tells
    what is there, of a run that trains as of one that has ended; `sailplan compare` adds samples
    and scores.
    """
    from sailplan.files import write_output
    from sailplan.report.gather import gather
    from sailplan.report.page.render import write
    from sailplan.run.paths import RunPaths

    directory, asked = find_reported(run)
    found = gather(directory, asked=asked)
    if png is not None:
        from sailplan.report.png import png_of

        write_output(png, png_of(found))
    if json is not None:
        from sailplan.report.as_json import text_of_json

        if json == "-":
            print(text_of_json(found), end="")
        else:
            write_output(Path(json), text_of_json(found).encode())
    page = write(found, output or RunPaths(directory).report_file)
    written = [path for path in (png, json) if path not in (None, "-")]
    for path in (*written, page):  # with `--json -`, standard output is the numbers alone
        print(path, file=sys.stderr if json == "-" else sys.stdout)


def find_reported(name: str) -> tuple[Path, Run | None]:
    """Returns the directory that is meant, and the run as its file has it where that was named.

    Args:
        name: A directory, a run file, or a directory's name below the one where runs usually lie.

    Raises:
        RunFileError: There is none, or the run file is wrong.
        OutputError: There is nothing in it to report.
    """
    from sailplan.cli.run_files import find_directory
    from sailplan.errors import OutputError
    from sailplan.report.gather import is_there

    directory, asked = find_directory(name, known=is_there)
    if asked is not None and not is_there(directory):
        todo = "train it (`sailplan train`), or have its base answer (`sailplan compare`)"
        raise OutputError(f"there is nothing to report in {directory} yet", todo=todo)
    return directory, asked

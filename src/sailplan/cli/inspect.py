"""`sailplan inspect RUN`: the data of a run, before it is trained on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_run_file


def inspect(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help="A run file, a run directory, or the name of a file in launch/."),
    ],
    samples: Annotated[int, typer.Option(min=0, help="Samples to show.")] = 3,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with samples and images to this file.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode the pixels of every image too.")
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Look at the first rows of each split only.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; dataset_num_proc, else the number of cores."),
    ] = None,
) -> None:
    """Shows what a run will be trained on, token by token, and what is wrong with its data.

    Exits with 4 where training would stop at the data, with 10 where there are warnings only.
    Fields of the run file can follow as flags.
    """
    from sailplan.imports import quick_imports
    from sailplan.preflight.checks import check
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory

    wanted = Run.from_file(find_run_file(run), context.args)
    wanted = RunDirectory.of(wanted).pinned(wanted)
    check(wanted)
    os.environ.update(wanted.environment())
    with quick_imports():
        from sailplan.imports import calm_libraries

        calm_libraries()
        from sailplan.inspect.findings import exit_code
        from sailplan.inspect.inspection import inspect_run

    found = inspect_run(wanted, num_samples=samples, max_rows=rows, decode=decode, workers=workers)
    if html is not None:
        from sailplan.inspect.html import write_page

        write_page(found, html)
    if json:
        from json import dumps

        from sailplan.inspect.as_json import as_json

        print(dumps(as_json(found), ensure_ascii=False, indent=2))
    else:
        from sailplan.inspect.terminal import print_inspection

        print_inspection(found)
        if html is not None:
            print(f"\nwritten: {html}")
    raise typer.Exit(exit_code(found.findings))

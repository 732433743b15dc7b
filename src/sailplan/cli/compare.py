"""`sailplan compare RUN`: base and tuned model answer the same held-out rows, and are scored."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_run_file
from sailplan.errors import RunFileError, TrainingError
from sailplan.imports import calm_libraries, compiled_when_called, quick_imports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sailplan.evaluate.journal import Journal
    from sailplan.evaluate.tasks import Request, Task
    from sailplan.run.config import Run


def compare(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help="A run directory, a run file, or the name of a file in launch/."),
    ],
    samples: Annotated[
        int,
        typer.Option(min=0, help="Held-out rows that are answered; drawn where there are more."),
    ] = 50,
    loss_samples: Annotated[
        int | None,
        typer.Option(
            "--loss-samples",
            "--loss_samples",
            min=0,
            help="Held-out rows over which losses are taken; all where not given.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="A model in place of the run's, to compare with.")
    ] = None,
    tuned: Annotated[
        list[str] | None,
        typer.Option(
            help="A tuned model's, a checkpoint's or an adapter's folder, or its name in the run's "
            "directory; as many as wanted. Where not given, what the run has saved."
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="The same, of adapters that go on top of --base.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="eval (what the run holds out), train, or a split of the dataset."),
    ] = "eval",
    greedy: Annotated[
        bool, typer.Option("--greedy", help="The same as --generation.temperature 0.")
    ] = False,
    score: Annotated[
        list[str] | None,
        typer.Option(help="A score of your own, module:function; as many as wanted."),
    ] = None,
) -> None:
    """Has base and tuned model answer the same held-out rows, and says which is better.

    Before training the base answers alone. What was answered is kept in the run's directory: a
    comparison that was killed goes on where it was, and another one asks only what is new. Fields
    of the run file can follow as flags, such as --generation.max_new_tokens 64.
    """
    from sailplan.preflight.checks import check
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory

    flags = [*context.args, *(["--generation.temperature", "0"] if greedy else [])]
    wanted = Run.from_file(find_run_file(run), flags)
    wanted = RunDirectory.of(wanted).pinned(wanted)
    check(wanted)
    os.environ.update(wanted.environment())
    calm_libraries()
    with quick_imports(), compiled_when_called():
        from sailplan.cli.compare_table import print_comparison
        from sailplan.evaluate import compare as room
        from sailplan.evaluate.scores.custom import find_custom
        from sailplan.evaluate.sides import sides_of
        from sailplan.evaluate.tasks import Request

    if not samples and loss_samples == 0:
        raise RunFileError("--samples 0 and --loss-samples 0 leave nothing to compare")
    custom = [find_custom(name) for name in score or ()]
    request = Request(
        sides=sides_of(wanted, base=base, tuned=tuned or (), adapters=adapter or ()),
        split=split,
        num_samples=samples,
        num_loss_rows=loss_samples,
    )
    directory = RunDirectory.of(wanted)
    try:
        asking = partial(_ask, wanted, request)
        found = room.compare(wanted, request, custom=custom, asking=asking)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with what is left", file=sys.stderr)
        raise typer.Exit(130) from None
    print_comparison(found)
    print(f"\nwritten: {directory.comparison_file}")
    print(f"look at the answers: sailplan report {shlex.quote(str(directory.path))}")


def _ask(run: Run, request: Request, tasks: Sequence[Task], journal: Journal) -> None:
    """Has everything asked: by a rank on each GPU where there are several, else here.

    Raises:
        TrainingError: A rank failed.
    """
    from sailplan.evaluate.compare import ask, num_batches
    from sailplan.evaluate.share import write_request
    from sailplan.hardware.detect import detect
    from sailplan.launcher.side_by_side import environments, run_all
    from sailplan.launcher.strategy import on_cpu, ranks_alone

    machine = detect(os.environ)
    num_ranks = min(ranks_alone(run, machine), num_batches(tasks))
    if num_ranks == 1:
        ask(tasks, journal)
        return
    write_request(journal.folder, run, request)
    cpu = on_cpu(run, machine)
    variables = environments(machine, num_ranks, on_cpu=cpu, environment=os.environ)
    ended = run_all("sailplan.evaluate.share", [str(journal.folder)], variables, journal.folder)
    failed = [one for one in ended if one.exit_code]
    for one in failed:
        words = one.last_words.removeprefix("error: ") or "see above"
        print(f"rank {one.rank} failed with exit code {one.exit_code}: {words}", file=sys.stderr)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {num_ranks} ranks failed", todo="the same command goes on"
        )
    journal.read()

"""The command line: verbs that are imported only when they are called."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from sailplan import __version__
from sailplan.errors import RunFileError, SailplanError, StoppedError

VERBS = {
    "plan": "Says what a run needs, how long it takes, and how it is best divided over GPUs.",
    "train": "Fine-tunes a model as a run file says, on this machine.",
    "submit": "Trains a run on a Slurm cluster: one command, from the plan to the queue.",
    "runs": "Lists runs: how each stands, how far it is, and why it ended.",
    "watch": "Shows a run live in the terminal, until it ends.",
    "logs": "Prints what a run prints, here or in Slurm, and follows it.",
    "cancel": "Ends a run: has it save and stop, and takes its waiting jobs away.",
    "fetch": "Gets what a run needs of the hub, so that it trains where there is no network.",
    "inspect": "Shows what a run trains on, token by token, and what is wrong with its data.",
    "families": "Lists the families of models: how each trains, and the run file to start from.",
    "doctor": "Checks the machine, or what a run needs of it, and says what to do.",
    "demo": "Does the whole loop on any machine: draws data, trains a small model, compares.",
    "compare": "Has base and tuned model answer held-out rows, and says which is better.",
    "report": "Writes one page of a run: its curves, what it took, and base against tuned.",
    "merge": "Makes one Hugging Face model of a sharded checkpoint or an adapter.",
    "recover-adapter": "Gets the adapter out of a sharded checkpoint whose adapter file is empty.",
    "export": "Writes a model in another form: Meta's layout, quantised, or in smaller files.",
    "generate": "Asks a base or tuned model one question about images.",
}
"""Each verb's help line. Verb `x` is the function `x` of `sailplan.cli.x`."""

FOR_SCRIPTS = ("job",)
"""Verbs that our own scripts call; not listed."""


class _Verbs(TyperGroup):
    """Verbs by name, imported when they are called; a user's mistake ends in one line."""

    @override
    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    @override
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in (*VERBS, *FOR_SCRIPTS):
            near = difflib.get_close_matches(cmd_name, VERBS, n=1)
            raise RunFileError(
                f"there is no verb {cmd_name!r}",
                allowed=", ".join(VERBS),
                todo=f"did you mean `sailplan {near[0]}`?" if near else "see `sailplan --help`",
            )
        name = cmd_name.replace("-", "_")
        module = import_module(f"sailplan.cli.{name}")
        verb = _typer()
        verb.command(
            cmd_name,
            help=getattr(module, name).__doc__ or cmd_name,
            context_settings=getattr(module, "CONTEXT_SETTINGS", None),
        )(getattr(module, name))
        return typer.main.get_command(verb)

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StoppedError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except SailplanError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _typer(**settings: Any) -> typer.Typer:
    # Rich's help would cost `sailplan --help` half of its 0.3 s, and its tracebacks hide ours.
    return typer.Typer(
        rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, **settings
    )


app = _typer(cls=_Verbs, no_args_is_help=True)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"sailplan {__version__}")
        raise typer.Exit


@app.callback()
def sailplan(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Fine-tunes vision-language models with accelerate, DeepSpeed, TRL and PEFT."""


def main() -> None:
    """Runs `sailplan`."""
    app(prog_name="sailplan")

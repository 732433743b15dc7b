"""A job's script, from what it is to say. Pure, but for our own templates."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan import files
from sailplan.errors import RunFileError
from sailplan.slurm.request import JobRequest, directives
from sailplan.terminal import harmless

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["JobRequest", "render"]


class Written(str):
    """Text that a shell reads as it stands; all else that a template prints is quoted."""

    __slots__ = ()


def render(request: JobRequest, *, template: str | None = None) -> str:
    """Returns a job's script.

    Args:
        request: What it is to say.
        template: A text in place of the one in `slurm/`; `settings.template` names its file.

    Raises:
        RunFileError: The template is none, or wants a variable that there is not.
    """
    from jinja2 import TemplateError

    environment = _environment()
    values = {each.name: getattr(request, each.name) for each in fields(request)}
    asked = tuple(Written(directive) for directive in directives(request))
    try:
        found = (
            environment.get_template(f"{request.kind}.sbatch.j2")
            if template is None
            else environment.from_string(template)
        )
        return found.render(**values, directives=asked)
    except (TemplateError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise _wrong(error, request, template) from None


def _wrong(error: Exception, request: JobRequest, template: str | None) -> RunFileError:
    """Returns what is wrong with a template, by its file and line."""
    name = request.settings.template or "the template"
    file, line = name, getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:  # jinja2 gives the frames of a template their own lines
        source = trace.tb_frame.f_code.co_filename
        if source == "<template>" or source.endswith(".j2"):
            file = name if source == "<template>" else source
            line = trace.tb_lineno
        trace = trace.tb_next
    if template is None:
        raise error  # ours, so a bug
    todo = "docs/slurm-profiles.md says what a template may use"
    return RunFileError(f"{file}{f':{line}' if line else ''}: {error}", todo=todo)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - a script is no page; `_printed` quotes
        loader=FileSystemLoader(files.folder("slurm")),
        undefined=StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "sh": _printed,
        "comment": _comment,
        "name": _name,
        "on_node": _on_node,
        "lines": _lines,
        "mounted": _mounted,
        "written": Written,
    }
    return environment


def _printed(value: Any) -> Any:
    """Returns a value as one word of a shell, so that nothing in a template is unquoted."""
    from jinja2 import Undefined

    if isinstance(value, Written | Undefined) or (
        isinstance(value, int) and not isinstance(value, bool)
    ):
        return value
    if isinstance(value, str | Path):
        return Written(_word(str(value)))
    raise TypeError(f"{value!r} is no text, so it cannot stand in a script")


def _word(text: str) -> str:
    # A comma needs no quotes, but looks like a mistake between the words of an array.
    quoted = shlex.quote(text)
    return f"'{text}'" if quoted == text and "," in text else quoted


def _comment(value: Any) -> Written:
    """Returns a text for a comment: one line of it, and nothing that steers a terminal."""
    return Written(harmless(" ".join(str(value).split())))


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _name(value: str) -> Written:
    """Returns a variable's name, which cannot be quoted."""
    if not _NAME.fullmatch(value):
        raise RunFileError(
            f"{value!r} cannot be a variable's name", allowed="letters, digits and _"
        )
    return Written(value)


_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)


def _on_node(value: str) -> Written:
    """Returns a folder in whose name a node's shell fills in its variables, and nothing else."""
    if value == "~" or value.startswith("~/"):
        value = "$HOME" + value[1:]
    text, end = "", 0
    for found in _VARIABLE.finditer(value):
        text += _in_double_quotes(value[end : found.start()])
        text += f"${{{found[1] or found[2]}:?}}"  # a missing one ends the job, and says its name
        end = found.end()
    return Written(f'"{text}{_in_double_quotes(value[end:])}"')


def _in_double_quotes(text: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", text)


def _lines(words: Sequence[str], indent: int = 4) -> Written:
    """Returns a command with a line for each of its options, as a person would write it."""
    rows = [" ".join(map(_word, row)) for row in _rows(words)]
    return Written((" \\\n" + " " * indent).join(rows))


def _rows(words: Sequence[str]) -> Iterator[list[str]]:
    row: list[str] = []
    for word in words:
        if word.startswith("-") and row:
            yield row
            row = []
        row.append(word)
    if row:
        yield row


def _mounted(mounts: Sequence[str | Path]) -> list[str]:
    """Returns what a container mounts, as `from:to`, each once.

    Raises:
        RunFileError: A name holds what parts them.
    """
    found: dict[str, None] = {}
    for mount in mounts:
        source, colon, target = str(mount).partition(":")
        if "," in str(mount) or (isinstance(mount, Path) and colon):
            raise RunFileError(
                f"a container cannot mount {str(mount)!r}", allowed="no comma or colon in a name"
            )
        found[f"{source}:{target if colon else source}"] = None
    return list(found)

"""Templates to text, and text to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.files import write_output
from sailplan.terminal import harmless

if TYPE_CHECKING:
    from jinja2 import Environment

_SHARED = Path(__file__).parent


def environment(folder: Path) -> Environment:
    """Returns what renders the templates of a folder; they may include `shared.css`.

    All that comes from data, models or run files is escaped, and what is no text (control
    characters, lone surrogates) or turns the direction of text is replaced by U+FFFD.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([folder, _SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    # Markup is a str too, made of what was escaped; it may not lose that.
    return harmless(value) if type(value) is str else value


def write_page(path: Path, text: str) -> None:
    """Writes a page, whole or not at all, in a folder that is made where it is not there.

    Raises:
        OutputError: It cannot be written.
    """
    write_output(path, text.encode("utf-8", errors="replace"))

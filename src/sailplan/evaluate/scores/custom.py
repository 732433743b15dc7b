"""The user's own score: a Python function that is named `module:function`."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailplan.errors import DataError, RunFileError
from sailplan.evaluate.scores.names import TITLES
from sailplan.run.nearest import nearest

_RESULTS = "a finite number, true or false, or a dict of such by name"
_MOST_LETTERS = 200
"""Of another's message, so that ours stays a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Custom:
    """A score of the user's own."""

    name: str
    """As it was named, `module:function`."""
    function: Callable[[str, str, Mapping[str, Any]], Any]
    """It gets the answer, the reference, and what is known of the row."""

    def score(self, answer: str, reference: str, row: Mapping[str, Any]) -> dict[str, float]:
        """Returns the scores of one answer: one, named as the function, or those of its dict.

        Args:
            answer: What the model said.
            reference: The answer in the data.
            row: What is known of the row, its `place` among it.

        Raises:
            DataError: The function raised an error, or what it returned is no score.
        """
        place = row["place"]
        try:
            result = self.function(answer, reference, row)
        except Exception as error:  # of the user's own code
            got = f"{place}: {self.name} raised {_told(error)}"
            raise DataError(got, todo="correct the function; answers that are there stay") from None
        named = result if isinstance(result, Mapping) else {self._own_name: result}
        return dict(self._checked(named, place))

    @property
    def _own_name(self) -> str:
        return self.name.partition(":")[2]

    def _checked(self, named: Mapping[Any, Any], place: str) -> Iterator[tuple[str, float]]:
        for name, value in named.items():
            if not isinstance(name, str) or not name.isprintable() or not name:
                got = f"{place}: {self.name} returned a score that is named {_cut(repr(name))}"
                raise DataError(got, allowed="names of one line of text")
            if name in TITLES:
                got = f"{place}: {self.name} returned a score that is named {name}, as one of ours"
                raise DataError(got, todo="give it another name")
            number = _number(value)
            if number is None:
                shown = f"{_cut(repr(value))} for {_cut(name)}"
                raise DataError(f"{place}: {self.name} returned {shown}", allowed=_RESULTS)
            yield name, number


def find_custom(name: str) -> Custom:
    """Finds a function that scores, in a module of the current directory or an installed one.

    Its module is imported, which runs it; the current directory stays on the path of imports.

    Raises:
        RunFileError: There is no such function, its module cannot be imported, or it cannot be
            called with an answer, a reference and a row.
    """
    module_name, _, function_name = name.partition(":")
    parts = (*module_name.split("."), function_name)
    if not all(part.isidentifier() for part in parts) or module_name.endswith(".py"):
        raise RunFileError(
            f"score {_cut(name)!r} names no function",
            allowed="module:function, such as my_scores:price of my_scores.py",
        )
    if function_name in TITLES:
        got = f"score {name} has the name of one of ours"
        raise RunFileError(got, todo="give the function another name")
    module = _imported(module_name, name)
    function = getattr(module, function_name, None)
    if not callable(function):
        what = "no function" if function is None else "something else than a function"
        file = getattr(module, "__file__", None) or "built in"
        known = [key for key, item in vars(module).items() if callable(item)]
        got = f"score {name}: module {module_name} ({file}) has {what} called {function_name}"
        raise RunFileError(got, todo=nearest(function_name, known))
    if not _takes_three(function):
        got = f"score {name} cannot be called with three arguments"
        raise RunFileError(got, allowed=f"def {function_name}(answer, reference, row)")
    return Custom(name=name, function=function)


def _imported(module: str, name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than Python's list of the directory
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise RunFileError(f"score {name}: importing it raised {_told(error)}") from None
        got = f"score {name}: there is no module {error.name}"
        raise RunFileError(
            got, todo=f"write it to {here}, run the command where it is, or install it"
        ) from None
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise RunFileError(f"score {name}: importing it raised {_told(error)}") from None


def _takes_three(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind("answer", "reference", {})
    except TypeError:
        return False
    except ValueError:  # one in C that does not tell
        return True
    return True


def _number(value: Any) -> float | None:
    if isinstance(value, str | bytes | bytearray):  # which float would read
        return None
    try:
        number = float(value)
    except Exception:  # of any type, a tensor of several numbers among them
        return None
    return number if math.isfinite(number) else None


def _told(error: BaseException) -> str:
    return _cut(f"{type(error).__name__}: {error}".rstrip(": "))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"

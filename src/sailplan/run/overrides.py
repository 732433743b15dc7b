"""Flags as HfArgumentParser takes them, but without abbreviations: `--x 1`, `--x=1`, `--no_x`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sailplan.errors import RunFileError
from sailplan.run.fields import Field
from sailplan.run.values import Entry, Raw, Scalar, scalar

FieldOf = Callable[[str], Field | None]
"""Gives a flag's field, None for a flag that is not known or is one of old."""


def read_flags(arguments: Sequence[str], field_of: FieldOf) -> list[Entry]:
    """Returns the settings that flags make, the last one of a name only.

    Args:
        arguments: Flags and their values, as a shell splits them.
        field_of: Tells a flag that may stand alone, and one that takes several values.

    Raises:
        RunFileError: A value stands where a flag belongs, or a flag lacks its value.
    """
    entries: dict[str, Entry] = {}
    for flag, values in _groups(arguments):
        name = flag.lstrip("-").replace("-", "_")
        field = field_of(name)
        if field is None and name.startswith("no_") and _is_bool(field_of(name[3:])) and not values:
            entries[name[3:]] = Entry(name=name[3:], raw=scalar("false"), where=flag)
        else:
            entries[name] = Entry(name=name, raw=_raw(flag, values, field), where=flag)
    return list(entries.values())


def _is_bool(field: Field | None) -> bool:
    return field is not None and "bool" in field.type.kinds


def _groups(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields each flag with the words up to the next one."""
    flag, values = "", list[str]()
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            if flag:
                yield flag, values
            flag, separator, value = argument.partition("=")
            values = [value] if separator else []
        elif flag:
            values.append(argument)
        else:
            todo = "flags are written --name value"
            raise RunFileError(f"unexpected argument {argument!r}", todo=todo)
    if flag:
        yield flag, values


def _raw(flag: str, values: list[str], field: Field | None) -> Raw:
    """Returns a flag's value: bare flags are true, lists take several words, all others one."""
    if not values:
        if field is None or _is_bool(field) or field.bare is not None:
            return Scalar(text="true", value=True)
        raise RunFileError(f"{flag} has no value", allowed=str(field.type))
    if len(values) == 1:
        return scalar(values[0])
    # Whoever translates a flag of old judges its values.
    if field is None or "list" in field.type.kinds:
        return [scalar(value) for value in values]
    raise RunFileError(f"unexpected argument {values[1]!r} after {flag} {values[0]}")

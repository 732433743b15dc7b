"""Tools in chats: what may be called, and calls, in the one shape that chat templates take.

The shape is that of transformers and TRL: `tools` are JSON schemas, a call is
`{"type": "function", "function": {"name": …, "arguments": {…}}}` with arguments as a mapping. Data
has them as JSON texts too, since Arrow gives all calls of a column the same arguments and fills
those that a call does not have with null; nulls are therefore left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sailplan.errors import DataError


def read_tools(raw: object) -> list[dict[str, Any]]:
    """Returns the tools of a row, none where it has none.

    Raises:
        DataError: They are no list of mappings, or broken JSON.
    """
    return _mappings(raw, "tools")


def read_calls(raw: object, where: str) -> list[dict[str, Any]]:
    """Returns the calls of an assistant's turn, none where it makes none.

    Args:
        raw: A list of calls, one call, or JSON of either; a call may stand in `function` or bare.
        where: The turn, for errors.

    Raises:
        DataError: A call has no name, or its arguments are no mapping.
    """
    return [_call(call, where) for call in _mappings(raw, f"tool calls of {where}")]


def _mappings(raw: object, what: str) -> list[dict[str, Any]]:
    value = without_nulls(_parsed(raw, what))
    items = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(item, Mapping) and item for item in items):
        raise DataError(f"the {what} are no list of mappings")
    return [dict(item) for item in items]


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"a tool call in {where} has no name")
    given = function.get("arguments", function.get("parameters"))
    arguments = _parsed(given, f"arguments in {where}") or {}
    if not isinstance(arguments, Mapping):
        raise DataError(
            f"a tool call in {where} has arguments that are a {type(arguments).__name__}",
            allowed="a mapping, or JSON of one",
        )
    body = {"name": function["name"], "arguments": dict(arguments)}
    found: dict[str, Any] = {"type": "function", "function": body}
    return {"id": call["id"], **found} if call.get("id") else found


def _parsed(raw: object, what: str) -> Any:
    if not isinstance(raw, str):
        return raw
    if not raw.strip():
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the {what} are broken JSON: {error}") from None


def without_nulls(value: Any) -> Any:
    """Returns a nested value without the keys that hold null."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value

"""The flags of `accelerate launch`, read from its source: TRL takes them flat in a run file."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sailplan.run.fields import Field, FieldType, field_table, package_folder

_NOT_IN_A_RUN_FILE = {"module", "no_python", "config_file", "env"}
"""The launcher's own business, or (`env`) a mapping in TRL's vocabulary."""


@lru_cache(maxsize=1)
def accelerate_flags() -> Mapping[str, Field]:
    """Returns the launch flags by name, but for those that TRL or sailplan own under that name."""
    source = package_folder("accelerate") / "commands/launch.py"
    flags: dict[str, Field] = {}
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "add_argument"
        ):
            for found in _flag(node):
                flags[found.name] = found
    owned = field_table()
    return {name: flag for name, flag in flags.items() if name not in owned}


def _flag(call: ast.Call) -> list[Field]:
    """Returns the field of one `add_argument` call; none for a positional argument."""
    options = [_value(argument) for argument in call.args]
    name = next((str(option)[2:] for option in options if str(option).startswith("--")), None)
    details = {keyword.arg: keyword.value for keyword in call.keywords}
    if name is None or name in _NOT_IN_A_RUN_FILE:
        return []
    action = _value(details.get("action"))
    kind = "bool" if action in ("store_true", "store_false") else "str"
    if "type" in details:
        kind = {"int": "int", "float": "float"}.get(ast.unparse(details["type"]), kind)
    choices = _value(details.get("choices"))
    return [
        Field(
            name=name.replace("-", "_"),
            owner="accelerate",
            type=FieldType(kinds=frozenset({"list" if action == "append" else kind})),
            default=_value(details.get("default")),
            choices=tuple(map(str, choices)) if isinstance(choices, list) else None,
            help=str(_value(details.get("help")) or ""),
        )
    ]


def _value(node: ast.expr | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None

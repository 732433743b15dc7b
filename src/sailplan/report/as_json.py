"""A report as JSON, for programs: the same numbers that the page shows, none left out."""

from __future__ import annotations

import json
import math
from typing import Any

from sailplan.records import to_json
from sailplan.report.record import Report


def as_json(report: Report) -> dict[str, Any]:
    """Returns all of a report as JSON has it: its fields by name, and null for what is no number.

    Facts are grouped, and the points of a line are pairs of a step and a value.
    """
    fields = to_json(report)
    facts: dict[str, dict[str, str]] = {}
    for fact in report.facts:
        facts.setdefault(fact.group, {})[fact.name] = fact.value
    found: dict[str, Any] = _finite({**fields, "facts": facts})
    return found


def text_of_json(report: Report) -> str:
    """Returns the text of the JSON of a report; what is no text in it is replaced."""
    text = json.dumps(as_json(report), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    return text.encode("utf-8", errors="replace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value

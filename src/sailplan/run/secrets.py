"""Which settings may be written neither to a file nor to a log."""

from __future__ import annotations

import re
from typing import Any

_SECRET = re.compile(
    r"secret|passw(or)?d|credential|api_?key|private_?key|access_?key"
    r"|(^|_)(hub|auth|access|api|hf|bearer|wandb)_token$|^(use_auth_)?token$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|://[^/\s:@]+:[^/\s@]+@")
"""A hub token, or a password in an address."""


def is_secret(name: str, value: Any) -> bool:
    """Says whether a setting may not be written, by its name or by what its value looks like."""
    return bool(_SECRET.search(name)) or (
        isinstance(value, str) and bool(_SECRET_VALUE.search(value))
    )

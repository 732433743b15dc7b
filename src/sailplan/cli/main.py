"""The command line: verbs that are imported only when they are called."""

from __future__ import annotations


def main() -> None:
    """Runs `sailplan`."""
    raise NotImplementedError

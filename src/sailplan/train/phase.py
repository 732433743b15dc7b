"""What this process is doing, as one line that its main thread keeps and other threads read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Phase:
    """Where a rank stands; a plain record, so that entering a phase costs nothing."""

    name: str = "starting"
    """In words: `waiting for data`, `computing`, `saving`, `evaluating`, …"""
    step: int = 0
    """Optimizer steps that are done."""
    count: int = 0
    """Goes up with every sign of progress; it never goes down."""
    began: int = 0
    """What `count` was when `step` last changed."""
    since: float = field(default_factory=time.monotonic)
    """When `count` last went up, by `time.monotonic`."""

    def move(self, name: str, step: int | None = None) -> None:
        """Notes progress, and what comes now.

        Args:
            name: What the process does from now on.
            step: Optimizer steps that are done, where that has changed.
        """
        self.name = name
        if step is not None and step != self.step:
            self.step, self.began = step, self.count
        self.count += 1
        self.since = time.monotonic()

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Names what happens inside; then what was before goes on.

        Where it fails the name stays, for whoever tells of the error.
        """
        before = self.name
        self.move(name)
        yield
        self.move(before)


PHASE = Phase()
"""This process's; written by its main thread alone."""

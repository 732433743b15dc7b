"""From what a smoke job has left to the doctor's lines. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sailplan.preflight.cluster import nodes, speeds
from sailplan.preflight.cluster.records import Gathered
from sailplan.preflight.finding import Finding

JUDGES: tuple[tuple[str, Callable[[Gathered], Finding]], ...] = (
    ("nodes", nodes.everyone),
    ("shared disk", nodes.shared_disk),
    ("software", nodes.software),
    ("driver", nodes.driver),
    ("GPUs", nodes.gpus),
    ("GPU memory", nodes.memory_errors),
    ("Xid errors", nodes.xids),
    ("ranks", speeds.ranks),
    ("clocks", speeds.clocks),
    ("inside nodes", speeds.inside),
    ("across nodes", speeds.across),
    ("steps", speeds.steps),
)
"""Each line that the smoke job gives, and who finds it."""


def gather(found: Gathered) -> Iterator[tuple[str, Finding]]:
    """Yields what was found of the nodes and of the ranks, a line each.

    Args:
        found: What they left.
    """
    for name, judge in JUDGES:
        yield name, judge(found)

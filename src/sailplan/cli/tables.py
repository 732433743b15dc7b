"""What a merge shows: its plan as a table, a bar while it writes, and what came out."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.progress import track_bytes
from sailplan.sizes import shown_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from sailplan.merge.job import Job
    from sailplan.merge.verify import Level, Verified

_SHOWN_FILES = 12
"""Of more files than that, the middle ones are counted."""


def show_plan(job: Job, output: Path, *, force: bool = False) -> None:
    """Prints what would be written.

    Raises:
        OutputError: The folder is not one to write to.
    """
    from sailplan.merge.output import check_output

    check_output(job, output, force=force)
    _say_sources(job)
    print(f"would write {shown_bytes(job.num_bytes)} into {output}:")
    table = _table("file", "tensors", "size", "first tensor")
    files = list(job.shards)
    hidden = len(files) - _SHOWN_FILES if len(files) > _SHOWN_FILES else 0
    head = files[: _SHOWN_FILES // 2] if hidden else files
    for file in [*head, *(files[-_SHOWN_FILES // 2 :] if hidden else [])]:
        if hidden and file is files[-_SHOWN_FILES // 2]:
            table.add_row(f"… {hidden} more", "", "", "")
        first = file.tensors[0].name if file.tensors else ""
        table.add_row(file.name, str(len(file.tensors)), shown_bytes(file.num_bytes), first)
    _print(table)
    print(f"{len(files)} files, {len(job.plans)} tensors, and {', '.join(sorted(job.companions))}")


def write_and_tell(
    job: Job,
    output: Path,
    *,
    verify: Level = "sample",
    workers: int | None = None,
    force: bool = False,
    done: str = "merged",
) -> None:
    """Writes a model, looks at it again, and prints what came out.

    Args:
        job: The plan.
        output: The folder.
        verify: How much is looked at again.
        workers: Chunks at once.
        force: Write over a model that is there.
        done: What the last line calls it.

    Raises:
        CheckpointError: An input is broken, or what was written is not what was planned.
        OutputError: The folder cannot be written.
    """
    import torch

    from sailplan.merge import verify as look
    from sailplan.merge.output import carry_out
    from sailplan.merge.write import WORKERS

    _say_sources(job)
    torch.set_num_threads(1)  # the workers are the threads
    start = time.monotonic()
    with track_bytes("writing", total=job.num_bytes) as advance:
        digests = carry_out(
            job,
            output,
            workers=workers or WORKERS,
            force=force,
            check_finite=verify != "none",
            on_bytes=advance,
        )
    written_s = time.monotonic() - start
    with track_bytes("verifying", total=look.effort(job, verify)) as advance:
        verified = look.verify(job, output, digests, verify, on_bytes=advance)
    table = _table("", "")
    rate = job.num_bytes / max(written_s, 1e-9)
    table.add_row("tensors", f"{len(job.plans)} in {len(job.shards)} files")
    table.add_row("read", shown_bytes(job.read_bytes))
    table.add_row("written", f"{shown_bytes(job.num_bytes)}, {shown_bytes(rate)}/s")
    if verify != "none":
        table.add_row("verified", _verified(verified))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    table.add_row("peak memory", f"{shown_bytes(peak)}, libraries included")
    table.add_row("seconds", f"{written_s:.1f} writing, {time.monotonic() - start:.1f} in all")
    _print(table)
    for name in list(verified.unchanged)[:3]:
        print(f"note: the adapter leaves {name} as it was")
    if len(verified.unchanged) > 3:
        print(f"note: and {len(verified.unchanged) - 3} more")
    print(f"{done} into {output}")


def _verified(found: Verified) -> str:
    parts = ["names and shapes", "all values finite"]
    if found.targets:
        parts.append(f"{found.targets - len(found.unchanged)} of {found.targets} targets changed")
    if found.recomputed:
        parts.append(f"{found.recomputed} tensors recomputed bit for bit")
    return ", ".join(parts)


def _say_sources(job: Job) -> None:
    print(job.source)
    if job.base:
        print(f"onto the base {job.base.folder}")
    for note in job.notes:
        print(f"note: {note}")


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for number in (1, 2) if any(columns) else ():
        table.columns[number].justify = "right"
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)

"""Writes a planned merge into a folder that nothing else is in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sailplan.checkpoint import hub_folder
from sailplan.errors import OutputError
from sailplan.merge import journal, write
from sailplan.merge.job import Job


def carry_out(
    job: Job,
    output: Path,
    *,
    workers: int = write.WORKERS,
    force: bool = False,
    check_finite: bool = True,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> dict[str, str]:
    """Writes what is planned, or goes on where the same merge was killed.

    Args:
        job: The plan.
        output: The folder; made where missing.
        workers: Chunks at once.
        force: Write over a model that is there, and begin anew where another merge was not
            finished.
        check_finite: Refuse values that are not finite.
        on_bytes: Told of written bytes as they come.

    Returns:
        The digest of each file of weights by its name.

    Raises:
        CheckpointError: An input cannot be read.
        OutputError: The folder cannot be written, or holds something else.
    """
    check_output(job, output, force=force)
    if force:
        (output / journal.NAME).unlink(missing_ok=True)
    digests = write.write(
        job.shards,
        output,
        options=job.options,
        workers=workers,
        check_finite=check_finite,
        on_bytes=on_bytes,
        beside=job.companions,
    )
    if force:
        _remove_older_weights(job, output)
    return digests


def check_output(job: Job, output: Path, *, force: bool = False) -> None:
    """Refuses an output folder that holds a model already, or inputs in any depth.

    Raises:
        OutputError: It is one of these, or a file.
    """
    try:
        home = output.expanduser().resolve()
        there = output.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "the links go in a circle"
        raise OutputError(f"cannot write {output}: {reason}") from error
    if there and not output.is_dir():
        raise OutputError(f"{output} is a file", allowed="a folder")
    inputs = {job.source.folder, job.source.home}
    if job.base:
        inputs.add(job.base.folder)
    if job.adapter:
        inputs.add(job.adapter.folder)
    for folder in sorted(folder.resolve() for folder in inputs):
        if home == folder or home in folder.parents:
            what = "is an input" if home == folder else f"holds {folder}, which is an input"
            raise OutputError(f"{output} {what}", todo="choose another output folder")
    if force or not there or (output / journal.NAME).is_file():
        return
    held = [file.name for file in job.shards if (output / file.name).exists()]
    if hub_folder.is_model(output) or held:
        raise OutputError(
            f"{output} holds a model already", todo="choose another folder, or write --force"
        )


def _remove_older_weights(job: Job, output: Path) -> None:
    """Takes away files of weights that the new index does not list."""
    own = {file.name for file in job.shards}
    if len(job.shards) == 1:
        (output / hub_folder.INDEX).unlink(missing_ok=True)
    for path in output.glob("model*.safetensors"):
        if path.name not in own:
            path.unlink()

"""`sailplan merge PATH --output DIR`: one Hugging Face model out of a checkpoint or an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sailplan.errors import RunFileError
from sailplan.sizes import parse_bytes

if TYPE_CHECKING:
    from sailplan.merge.job import Job
    from sailplan.merge.verify import Level

DTYPES = ("auto", "float32", "bfloat16", "float16")


def merge(
    path: Annotated[
        Path,
        typer.Argument(help="A run directory, a checkpoint, a model's or an adapter's folder."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder that is written.")],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="An adapter that goes on top of a model.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The base of an adapter: a folder or a hub name."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option("--dtype", help="auto (as trained), float32 (masters), bfloat16, float16."),
    ] = "auto",
    max_shard_size: Annotated[
        str,
        typer.Option(
            "--max-shard-size",
            "--max_shard_size",
            help="The most bytes of a file: 5GB, 400MB, 2GiB.",
        ),
    ] = "5GB",
    names: Annotated[
        str, typer.Option("--names", help="hub (as published files have them) or module.")
    ] = "hub",
    base_precision: Annotated[
        str,
        typer.Option(
            "--base-precision",
            "--base_precision",
            help="Of QLoRA: 16bit (the published base) or dequantized (as it was trained on).",
        ),
    ] = "16bit",
    verify: Annotated[
        str,
        typer.Option("--verify", help="full, sample or none: how much is read back and redone."),
    ] = "sample",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Chunks that are worked on at once.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "--dry_run", help="Show what would be written; write nothing."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a model that is in the folder.")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", "--trust_remote_code", help="Run code that comes with the model."
        ),
    ] = False,
) -> None:
    """Makes one Hugging Face model of a sharded checkpoint or an adapter, in constant memory.

    PATH is a run directory, a checkpoint-N, DeepSpeed's global_stepN, an FSDP folder, a model's
    folder or an adapter's. A killed merge goes on where it was when the same command runs again.
    """
    check_choice("--dtype", dtype, DTYPES)
    check_choice("--names", names, ("hub", "module"))
    check_choice("--base-precision", base_precision, ("16bit", "dequantized"))
    check_choice("--verify", verify, ("full", "sample", "none"))
    max_shard_bytes = parse_bytes("--max-shard-size", max_shard_size)

    from sailplan.cli.tables import show_plan, write_and_tell
    from sailplan.imports import calm_libraries
    from sailplan.merge.job import Options, prepare

    calm_libraries()
    options = Options(
        adapter=adapter,
        base=base,
        dtype=None if dtype == "auto" else dtype,
        max_shard_bytes=max_shard_bytes,
        names=cast(Any, names),
        base_precision=cast(Any, base_precision),
        trust_remote_code=trust_remote_code,
    )
    job: Job = prepare(path, options)
    if dry_run:
        show_plan(job, output, force=force)
        return
    write_and_tell(job, output, verify=cast("Level", verify), workers=workers, force=force)


def check_choice(option: str, value: str, allowed: Sequence[str]) -> None:
    """Refuses a value that an option does not know.

    Raises:
        RunFileError: It is one.
    """
    if value not in allowed:
        raise RunFileError(f"{option} {value}", allowed=", ".join(allowed))

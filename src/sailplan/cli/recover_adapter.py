"""`sailplan recover-adapter PATH --output DIR`: an adapter out of a sharded checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sailplan.cli.merge import DTYPES, check_choice


def recover_adapter(
    path: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint-N, or its global_stepN.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder that is written.")],
    dtype: Annotated[
        str,
        typer.Option("--dtype", help="auto (as trained), float32 (masters), bfloat16, float16."),
    ] = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Write over an adapter that is in the folder.")
    ] = False,
) -> None:
    """Gets the adapter out of a sharded checkpoint whose adapter file is empty.

    ZeRO-3 and FSDP have left adapter files of 40 or 443 bytes; the weights are in the sharded state
    beside them. What is written loads with PEFT.
    """
    check_choice("--dtype", dtype, DTYPES)

    from sailplan.cli.tables import write_and_tell
    from sailplan.imports import calm_libraries
    from sailplan.merge.job import prepare_adapter

    calm_libraries()
    job = prepare_adapter(path, None if dtype == "auto" else dtype)
    write_and_tell(job, output, verify="none", force=force, done="recovered")

"""`sailplan export MODEL --format F --output DIR`: a merged model in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from sailplan.cli.merge import DTYPES, check_choice
from sailplan.sizes import parse_bytes

FORMATS = ("hf", "meta", "bnb-4bit", "bnb-8bit")


def export(
    model: Annotated[Path, typer.Argument(help="A model's folder, such as one that was merged.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder that is written.")],
    kind: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "hf",
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (as stored), float32, bfloat16 or float16.")
    ] = "auto",
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", "--max_shard_size", help="Of hf: bytes of a file.")
    ] = "400MB",
) -> None:
    """Writes a model in another form.

    hf is Hugging Face's layout in files of another size, meta is LLaMA's first layout
    (consolidated.00.pth and params.json), bnb-4bit and bnb-8bit are quantised by bitsandbytes.
    """
    check_choice("--format", kind, FORMATS)
    check_choice("--dtype", dtype, DTYPES)
    wanted = None if dtype == "auto" else dtype
    most = parse_bytes("--max-shard-size", max_shard_size)

    from sailplan.imports import calm_libraries

    calm_libraries()
    if kind == "hf":
        from sailplan.cli.tables import write_and_tell
        from sailplan.merge.job import Options, prepare

        job = prepare(model, Options(dtype=wanted, max_shard_bytes=most))
        write_and_tell(job, output, done="exported")
        return
    if kind == "meta":
        from sailplan.export.meta import export_meta, plans_of
        from sailplan.progress import track_bytes

        total = sum(plan.num_bytes for plan in plans_of(model, wanted)[0])
        with track_bytes("writing", total=total) as advance:
            written = export_meta(model, output, dtype=wanted, on_bytes=advance)
    else:
        from sailplan.export.quantised import export_quantised

        written = export_quantised(model, output, cast(Any, kind), dtype=wanted)
    for path in written:
        print(path)

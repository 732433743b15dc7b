"""`sailplan demo`: the whole loop on this machine, in minutes."""

from __future__ import annotations

import shlex
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated

import typer


def demo(
    output: Annotated[
        Path | None,
        typer.Option(
            help="A new folder for everything that is made; a temporary one if not given."
        ),
    ] = None,
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare", help="Only make the data, the model and the run files, and train nothing."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the drawings and the model's first weights.")] = 0,
) -> None:
    """Does the whole loop on any machine: draws data, trains a small model twice, compares.

    Without network or GPU: a product catalogue is drawn, a small Qwen2-VL is trained on it in full
    under DeepSpeed ZeRO-3 on two processes, then taught another style by QLoRA on one.
    """
    from sailplan.demo.run import prepare_demo, run_demo
    from sailplan.imports import calm_libraries

    calm_libraries()
    folder = output or Path(mkdtemp(prefix="sailplan-demo-"))
    if prepare:
        print(
            f"train it: sailplan train {shlex.quote(str(prepare_demo(folder, seed=seed).full_run))}"
        )
        return
    report = run_demo(folder, seed=seed)
    print(f"open the report in a browser: {report}")

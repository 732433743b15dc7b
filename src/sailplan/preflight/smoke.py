"""The smoke test: the run's strategy, through its own launch, on a toy.

Accelerate, the preset, the port, the processes and the process group are those of the run; the
model is a toy, and the data are random numbers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sailplan.errors import SailplanError
from sailplan.hardware.detect import detect
from sailplan.launcher import local
from sailplan.launcher.command import command
from sailplan.preflight import children
from sailplan.preflight.finding import Finding, Subject, failed, ok, unchecked
from sailplan.processes import follow, launchers_of, with_launcher
from sailplan.run.blocks import LaunchBlock
from sailplan.run.config import Run
from sailplan.sizes import shown_bytes

TIMEOUT_S = 300.0
"""From the start to the end of the ranks; DeepSpeed may compile before."""

COMPILING_TIMEOUT_S = 900.0

RANKS_MODULE = "sailplan.preflight.smoke_ranks"

DIARY = "smoke.json"

KEPT = ("use_cpu", "bf16", "fp16", "load_in_4bit", "load_in_8bit", "use_peft")
"""Fields that decide on device, precision and strategy."""

HINTS: Mapping[str, str] = {
    "meeting the other ranks": "the ranks do not find each other: set NCCL_SOCKET_IFNAME (or "
    "GLOO_SOCKET_IFNAME) to the right network interface",
    "the first all-reduce": "the ranks do not reach each other: NCCL_DEBUG=INFO tells why; "
    "NCCL_P2P_DISABLE=1 helps where virtualisation (IOMMU, ACS) is in the way",
}
"""What helps where the ranks come no further."""


def smoke(subject: Subject) -> Finding:
    """Do the ranks start, meet, sum rightly and train?"""
    if subject.run is not None and subject.division is None:
        return unchecked("the run cannot be divided here (see above)")
    toy, note = toy_run(subject)
    with tempfile.TemporaryDirectory(prefix="sailplan-smoke-") as name:
        folder = Path(name)
        (folder / "toy.yaml").write_text(toy.run_yaml(), encoding="utf-8")
        offloads = subject.strategy.endswith("offload")
        child = children.ask(
            "sailplan.preflight.smoke",
            str(folder),
            environment={**subject.environment, **with_launcher(())},
            label=f"training a toy as {subject.strategy}",
            timeout_s=COMPILING_TIMEOUT_S if offloads else TIMEOUT_S,
        )
        found = _read(folder / DIARY)
    if child.code != 0 or found.get("stage") != "done":
        stage = str(found.get("stage", "starting the ranks"))
        fix = HINTS.get(stage, "") if child.code is None else ""
        fix = fix or "the lines below say more; NCCL_DEBUG=INFO in the environment adds NCCL's"
        return failed(
            f"it stopped while {stage}: {child.reason}".replace("while the", "in the"),
            fix=fix,
            detail=child.last_words,
        )
    wrong = wrong_engine(subject.strategy, str(found.get("engine")))
    if wrong:
        return failed(wrong, fix="install accelerate and deepspeed in the tested versions")
    return ok(note + told(subject.strategy, found))


def toy_run(subject: Subject) -> tuple[Run, str]:
    """Returns a run that is launched as the subject's is, and what is different, if anything."""
    run, processes, note = subject.run, subject.processes, ""
    if run is None:
        launch = LaunchBlock(strategy="ddp", cpu=subject.on_cpu, processes=processes)
        return Run(explicit={}, launch=launch), ""
    explicit = {name: run.explicit[name] for name in KEPT if name in run.explicit}
    launch, accelerate = run.launch.model_copy(update={"nodes": 1}), dict(run.accelerate)
    accelerate.pop("num_machines", None)
    if subject.on_cpu:
        most = max(2, subject.machine.cpu_cores.value)
        if processes > most:
            note, processes = f"with {most} processes in place of {processes}: ", most
        launch = launch.model_copy(update={"processes": processes, "gpus_per_node": None})
        accelerate.pop("num_processes", None)
    return replace(run, explicit=explicit, launch=launch, accelerate=accelerate, env={}), note


def told(strategy: str, found: Mapping[str, Any]) -> str:
    """Returns what the ranks found out, as one clause."""
    steps = (
        f"a step in {found['step_s'] * 1000:.0f} ms, "
        f"loss {found['first_loss']:.2f} to {found['last_loss']:.2f}"
    )
    start = f"started in {found['imports_s'] + found['meeting_s']:.1f} s"
    if found["world_size"] == 1:
        return f"{strategy} on {found['device']}: {start}, {steps}"
    return (
        f"{strategy} × {found['world_size']} over {found['backend']}: {start}, first sum right in "
        f"{found['first_reduce_s'] * 1000:.0f} ms, {shown_bytes(found['bytes_per_s'])}/s, {steps}"
    )


def wrong_engine(strategy: str, engine: str) -> str:
    """Returns what is wrong where accelerate silently trains in another way than asked.

    Args:
        strategy: What was asked for.
        engine: What the toy became.
    """
    stage = strategy.removeprefix("zero").partition("_")[0]
    wanted = {
        "single": "Toy",
        "ddp": "DistributedDataParallel",
        "fsdp2": "FSDPToy",
    }.get(strategy, f"DeepSpeedEngine, stage {stage}")
    return "" if engine == wanted else f"{strategy} trained as {engine}, not as {wanted}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(found)


def main() -> int:
    """Launches the toy run of the folder that is named, and returns its exit code."""
    follow(launchers_of(os.environ)[-1])  # a doctor that is killed leaves no ranks behind
    folder = Path(sys.argv[1])
    try:
        run = Run.from_file(folder / "toy.yaml", ["--output_dir", str(folder)])
        machine = detect(os.environ)
        launch = command(
            run,
            machine,
            port=local.meeting_port(run),
            environment=os.environ,
            module=RANKS_MODULE,
        )
        for path, text in launch.files.items():
            path.write_text(text, encoding="utf-8")
        return local.carry_out(launch, os.environ)
    except SailplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

"""Machines and runs that the doctor's tests share, and the doctor called as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sailplan.hardware.detect import Detected
from sailplan.hardware.driver import Driver, GpuState
from sailplan.preflight.finding import Finding, Subject
from sailplan.run.config import Run
from tests.launcher.support import machine
from tests.preflight.test_checks import WEIGHTS, folder

GIB = 2**30


def run_of(tmp_path: Path, *flags: str) -> Run:
    """A run of a local model and local rows, which are there."""
    return Run.from_file(run_file(tmp_path), flags)


def run_file(tmp_path: Path) -> Path:
    """Its file."""
    model = tmp_path / "model"
    if not model.exists():
        folder(model, {"config.json": b"{}", "model.safetensors": WEIGHTS})
        (tmp_path / "rows.jsonl").write_text('{"text": "one row"}\n')
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model_name_or_path: {model}\ndataset_name: {tmp_path}/rows.jsonl\n"
        f"output_dir: {tmp_path}/out\n"
    )
    return path


def gpu(index: int = 0, **different: Any) -> GpuState:
    """A GPU that is free and well."""
    state = GpuState(
        index=index,
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=80 * GIB,
        free_bytes=79 * GIB,
        compute_capability=(9, 0),
        nvlinks=18,
        nvlinks_down=0,
        pcie="PCIe 5.0 x16",
        memory_errors=0,
    )
    return replace(state, **different)


def with_gpus(
    *gpus: GpuState, version: str = "580.65.06", cuda: tuple[int, int] = (13, 0), **other: Any
) -> Subject:
    """A machine with GPUs and their driver, as the driver would tell."""
    driver = Driver(version=version, cuda_version=cuda, gpus=gpus, between="the CPUs")
    return Subject(
        machine=machine(gpus=len(gpus)),
        driver=Detected(value=driver, reason="told by the NVIDIA driver"),
        environment=dict(os.environ),
        **other,
    )


def doctor(
    *arguments: str, before: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Finding]]:
    """Runs `sailplan doctor --json` in a process; returns its exit code and the findings.

    Args:
        arguments: What it is given.
        before: The command that it is run by, such as one that makes a namespace.
        env: Variables beside those of the tests.
    """
    command = [*before, sys.executable, "-m", "sailplan", "doctor", *arguments, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, **(env or {})}
    )
    assert done.stdout, done.stderr
    printed = json.loads(done.stdout)
    findings = {
        line["check"]: Finding(mark=line["mark"], text=line["text"], fix=line["fix"])
        for line in printed["checks"]
    }
    assert printed["ok"] is all(finding.mark != "failed" for finding in findings.values())
    assert (done.returncode == 0) is printed["ok"]
    return done.returncode, findings


def finding(check: str, env: Mapping[str, str]) -> Finding:
    """Makes one check of the machine in a process that begins with these variables.

    Args:
        check: A function of `sailplan.preflight`, such as `flash.importing`.
        env: Variables beside those of the tests.
    """
    module, name = check.split(".")
    program = (
        "import dataclasses, json, sys\n"
        f"from sailplan.preflight import {module}\n"
        "from sailplan.preflight.finding import Subject\n"
        f"print(json.dumps(dataclasses.asdict({module}.{name}(Subject.of(None)))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return Finding(**json.loads(done.stdout))


def in_front(path: Path) -> dict[str, str]:
    """The variable that has Python look into a folder first."""
    return {"PYTHONPATH": os.pathsep.join([str(path), os.environ["PYTHONPATH"]])}


def mounted(commands: str) -> list[str]:
    """Returns a prefix that runs a command where mounts have been made, which end with it.

    The test is skipped where a process may not mount.
    """
    made = ["unshare", "--mount", "sh", "-c"]
    try:
        tried = subprocess.run([*made, commands], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no unshare (util-linux)")
    if tried.returncode:
        pytest.skip(f"this process may not mount: {tried.stderr.strip()}")
    return [*made, f'{commands} && exec "$@"', "sh"]

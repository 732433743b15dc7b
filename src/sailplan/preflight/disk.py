"""Disk: is there room for what the run will write?"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sailplan.hub.cache import CONFIG
from sailplan.hub.repository import Repository, is_hub_name
from sailplan.hub.revisions import cached_commit
from sailplan.preflight.finding import Finding, Subject, failed, ok, unchecked
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.sizes import shown_bytes

PLAN_FILE = "plan.json"
"""The plan in a run's directory; its `disk_bytes` is what the run writes there."""

LEAST_BYTES = 1 << 30
"""What is wanted where no run is named."""

ADAPTER_BYTES = 16 << 20
"""An adapter with its optimizer, and logs: a low guess, so that what lacks it is full indeed."""

OPTIMIZER_SHARE = 4
"""A checkpoint's optimizer by the size of bf16 weights: two float32 moments a parameter."""

MASTER_SHARE = 2
"""DeepSpeed's float32 weights beside them."""


def room(subject: Subject) -> Finding:
    """Has the disk of `output_dir` room for checkpoints and the model?"""
    folder = RunDirectory.of(subject.run).path if subject.run else Path.cwd()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        found = os.statvfs(there)
    except OSError as error:
        return unchecked(f"{there} cannot be looked at ({error.strerror})")
    free = found.f_bavail * found.f_frsize
    wanted, why = wanted_bytes(subject)
    text = f"{shown_bytes(free)} free for {folder}"
    if free < wanted:
        return failed(
            f"{text}, and {shown_bytes(wanted)} are wanted ({why})",
            fix="make room, choose another output_dir, or lower save_total_limit",
        )
    if found.f_files and not found.f_favail:
        return failed(f"{text}, and not one file more (inodes)", fix="delete small files there")
    return ok(f"{text}; {shown_bytes(wanted)} are wanted ({why})")


def wanted_bytes(subject: Subject) -> tuple[int, str]:
    """Returns the bytes that the run will write, and where the number comes from.

    The plan's, where the run's directory holds one; else a low estimate, which no run that fits
    exceeds: the model, and two checkpoints of it (the second is whole before the first goes).
    """
    run = subject.run
    if run is None:
        return LEAST_BYTES, "for any run"
    planned = planned_bytes(RunDirectory.of(run).path / PLAN_FILE)
    if planned is not None:
        return planned, "as planned"
    checkpoints = (
        0 if run.get("save_strategy") == "no" else min(2, run.get("save_total_limit") or 2)
    )
    if run.get("use_peft"):
        count = 1 + checkpoints
        return count * ADAPTER_BYTES, f"an adapter, {checkpoints} checkpoints, at least"
    weights = weights_bytes(run)
    if weights is None:
        return ADAPTER_BYTES, "at least; the model's size is not known here"
    share = 1 + (0 if run.get("save_only_model") else OPTIMIZER_SHARE)
    if subject.strategy.startswith("zero") and not run.get("save_only_model"):
        share += MASTER_SHARE
    return weights * (1 + checkpoints * share), f"the model, {checkpoints} checkpoints, at least"


def planned_bytes(path: Path) -> int | None:
    """Returns what a plan says that its run writes; None where there is no plan that says it."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        return int(plan["disk_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def weights_bytes(run: Run) -> int | None:
    """Returns the size of the model's files; None where they are not here."""
    name = str(run.get("model_name_or_path") or "")
    folder = Path(name).expanduser()
    if name and is_hub_name(name):
        asked = run.get("model_revision") or "main"
        repository = Repository(kind="model", name=name, revision=asked)
        folder = repository.snapshot(cached_commit(repository) or "none")
    if not (folder / CONFIG).is_file():
        return None
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        files = [file for file in folder.glob(pattern) if file.is_file()]
        if files:
            return sum(file.stat().st_size for file in files)
    return None

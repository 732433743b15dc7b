"""A chain of kills: a run is killed, started again, killed again, and at last let to its end."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailplan.run.metrics import read_metrics
from tests.support.killed import (
    STRATEGIES,
    Launched,
    curve,
    launched,
    run_file,
    saving,
    steps_done,
    whole,
)


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill, and how the run came back."""

    whom: str
    in_save: bool
    """Whether a checkpoint was there without its manifest."""
    at_step: int
    """The last step that was logged."""
    whole_step: int
    """The last checkpoint that was whole, once nobody was left."""
    resumed_step: int
    """Where the run went on."""
    left: list[str]
    """Processes that outlived the kill."""
    back_s: float
    """From the kill to the next step that was logged, the end of the killed and the next launch
    with all its imports between them."""
    exact: bool
    """Whether every step behind it, up to the next kill or the end, is the undisturbed one."""


def undisturbed(
    folder: Path, values: dict[str, Any], strategy: str, *, cpu: bool = True
) -> list[Any]:
    """Returns the curve of a run that nobody disturbs.

    Raises:
        RuntimeError: It fails.
    """
    out = folder / "undisturbed"
    file = run_file(
        folder / "undisturbed.yaml",
        {**values, "output_dir": str(out)},
        strategy=strategy,
        ranks=STRATEGIES[strategy],
        cpu=cpu,
    )
    with launched(file, "--no-preflight") as run:
        if run.end():
            raise RuntimeError(run.text[-4000:])
    found = curve(out)
    shutil.rmtree(out)
    return found


def chain(
    folder: Path,
    values: dict[str, Any],
    strategy: str,
    wishes: list[tuple[str, bool]],
    *,
    expected: list[Any],
    chance: random.Random,
    cpu: bool = True,
) -> Iterator[Kill]:
    """Kills a run as often as is wished, and yields what became of each.

    Args:
        folder: Where the run file and the run go.
        values: The run's fields.
        strategy: How it is divided.
        wishes: Whom to kill, and whether inside a save.
        expected: The undisturbed curve.
        chance: Draws the moments.
        cpu: Whether it trains on the CPU.

    Raises:
        RuntimeError: The run ends by itself, with an error or before all kills are done.
    """
    out = folder / "killed"
    file = run_file(
        folder / "killed.yaml",
        {**values, "output_dir": str(out)},
        strategy=strategy,
        ranks=STRATEGIES[strategy],
        cpu=cpu,
    )
    pending: dict[str, Any] | None = None
    killed_at = 0.0
    for number in range(len(wishes) + 1):
        before = len(_lines(out))
        with launched(file, "--no-preflight") as run:
            if number < len(wishes):
                whom, in_save = wishes[number]
                killed = _kill(run, out, whom, in_save=in_save, chance=chance)
            elif run.end():
                raise RuntimeError(run.text[-4000:])
            left = run.gone()
        if pending is not None:
            yield Kill(**pending, **_back(out, before, killed_at, expected))
        if number < len(wishes):
            killed_at = killed.pop("killed_at")
            pending = {**killed, "left": left, "whole_step": max(whole(out), default=0)}
    if curve(out) != expected:
        raise RuntimeError(f"the curve of {folder} is another than the undisturbed one")


def _kill(
    run: Launched, out: Path, whom: str, *, in_save: bool, chance: random.Random
) -> dict[str, Any]:
    """Kills behind the next save, in the save after that or a few steps on."""
    known, wanted = max(whole(out), default=0), False

    def ready() -> bool:
        return max(whole(out), default=0) > known

    def now() -> bool:
        return any(step > known for step in saving(out))

    alive = run.until(ready)
    if in_save:
        alive = alive and run.until(now)
        wanted = bool(saving(out))
    else:
        target = steps_done(out) + chance.randrange(1, 3)
        alive = alive and run.until(lambda: steps_done(out) >= target)
        time.sleep(chance.random() * 0.05)
    run.kill(whom)
    killed_at = time.time()
    if not alive:
        raise RuntimeError(f"the run ended before it was killed:\n{run.text[-3000:]}")
    at_step = steps_done(out)
    return {"whom": whom, "in_save": wanted, "at_step": at_step, "killed_at": killed_at}


def _lines(out: Path) -> list[str]:
    path = out / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def _back(out: Path, before: int, killed_at: float, expected: list[Any]) -> dict[str, Any]:
    """Returns where a launch went on, when, and whether what it logged is what was expected."""
    later = out / "later.jsonl"
    later.write_text("\n".join(_lines(out)[before:]) + "\n")
    resumed = _resumed_step(later)
    records = [record for record in read_metrics(later) if "loss" in record]
    later.unlink()
    by_step = {point[0]: point for point in expected}
    exact = bool(records) and all(
        (r["step"], r["loss"], r["grad_norm"], r["num_tokens"]) == by_step[r["step"]]
        for r in records
    )
    back_s = records[0]["time"] - killed_at if records else float("nan")
    return {"resumed_step": resumed, "back_s": back_s, "exact": exact}


def _resumed_step(path: Path) -> int:
    first = json.loads(path.read_text().splitlines()[0])
    return int(first["step"]) if first.get("resumed") else 0

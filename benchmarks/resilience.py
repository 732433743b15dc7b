"""Kills real runs and measures how they come back.

Under each strategy a run is trained undisturbed; then the same run is killed by SIGKILL ten times
(one rank, all ranks or the launcher, drawn), at least five of them inside a save, and started again
by the same `sailplan train RUN` each time. Each time counts as exact where every step up to the
next kill, or to the end, has the loss, the gradient norm and the token count of the undisturbed
run, bit for bit; in float32, on CPU. Full fine-tuning and LoRA (with dropout) are drawn for each
kill. The checkpoint that a run goes on from must be the last whole one, and no process may be left.

    python benchmarks/resilience.py [--kills 10] [--strategies single ddp zero2 zero3] [--seed 0]
                                    [--json FILE]

Then `benchmarks/manifest_cost.py` measures what manifests cost training (`--no-manifests` leaves
that out). Prints a table; exits with 1 where a run did not come back exactly, or an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}

from tests.support.killed import STRATEGIES  # noqa: E402  the path comes first
from tests.support.kills import Kill, chain, undisturbed  # noqa: E402
from tests.support.rows import chat_rows  # noqa: E402
from tests.support.tiny import build_tiny  # noqa: E402

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"use_peft": True, "lora_dropout": 0.1},
}
STEPS_PER_KILL = 8
SHARE_IN_SAVE = 0.5


def wishes(kills: int, ranks: int, chance: random.Random) -> dict[str, list[tuple[str, bool]]]:
    """Draws whom to kill and when, by method; at least half of the kills fall into a save."""
    in_save = [number < -(-kills * SHARE_IN_SAVE // 1) for number in range(kills)]
    drawn: dict[str, list[tuple[str, bool]]] = {method: [] for method in METHODS}
    for inside in in_save:
        whom = chance.choice(["one rank", "all ranks", "launcher"])
        if whom == "one rank":
            whom = f"rank {chance.randrange(ranks)}"
        drawn[chance.choice(list(METHODS))].append((whom, inside))
    for found in drawn.values():
        chance.shuffle(found)
    return drawn


def killed(folder: Path, strategy: str, kills: int, chance: random.Random) -> list[Kill]:
    """Kills a strategy's runs, and tells of each kill."""
    found = []
    for method, wanted in wishes(kills, STRATEGIES[strategy], chance).items():
        if not wanted:
            continue
        home = folder / f"{strategy}-{method}"
        home.mkdir()
        values = {
            "model_name_or_path": str(folder / "model"),
            "dataset_name": str(folder / "rows" / "train.jsonl"),
            "max_steps": STEPS_PER_KILL * (len(wanted) + 1),
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "bf16": False,
            "logging_steps": 1,
            "save_steps": 3,
            "save_total_limit": 3,
            "report_to": "none",
            **METHODS[method],
        }
        expected = undisturbed(home, values, strategy)
        for kill in chain(home, values, strategy, wanted, expected=expected, chance=chance):
            found.append(kill)
            moment = "in a save" if kill.in_save else "in a step"
            came = "exact" if kill.exact else "NOT EXACT"
            print(
                f"{strategy:6} {method:4} {kill.whom:10} {moment}  at step {kill.at_step:3}, goes "
                f"on from {kill.resumed_step:3}: {came}, {kill.back_s:.1f} s, "
                f"{len(kill.left)} left",
                flush=True,
            )
    return found


def main() -> int:
    """Runs the benchmark and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=10, help="of each strategy")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-manifests", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    results: dict[str, list[Kill]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tiny("llama", folder / "model")
        chat_rows(folder / "rows", 64, images=False)
        for strategy in options.strategies:
            results[strategy] = killed(folder, strategy, options.kills, chance)
    print(f"\n{'strategy':9} {'kills':>6} {'in a save':>10} {'exact':>6} {'left':>5} {'back':>8}")
    missed = False
    for strategy, kills in results.items():
        exact = sum(kill.exact for kill in kills)
        in_save = sum(kill.in_save for kill in kills)
        left = sum(len(kill.left) for kill in kills)
        lost = sum(kill.resumed_step != kill.whole_step for kill in kills)
        back = median(kill.back_s for kill in kills)
        missed |= exact < len(kills) or left > 0 or lost > 0 or 2 * in_save < len(kills)
        counts = f"{len(kills):6} {in_save:10} {exact:6} {left:5}"
        print(f"{strategy:9} {counts} {back:6.1f} s")
    every = [kill for kills in results.values() for kill in kills]
    print(
        f"{len(every)} kills, {sum(kill.exact for kill in every)} resumes exact, median from the "
        f"kill to the next step {median(kill.back_s for kill in every):.1f} s"
    )
    if options.json:
        rows = {name: [asdict(kill) for kill in kills] for name, kills in results.items()}
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if not options.no_manifests:
        command = [sys.executable, str(ROOT / "benchmarks" / "manifest_cost.py")]
        missed |= subprocess.run(command).returncode != 0
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())

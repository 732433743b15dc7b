"""How long a plan takes, and what a planned `sailplan train` adds to the first step.

Plans full fine-tuning of Qwen2-VL-7B on 8 H100, and on 64 nodes of them, each in a process of its
own: with nothing kept, then again from what the first has kept. Then trains a tiny model on the
CPU, by `sailplan train` with its plan kept and by the bare entry script, in turns, as
benchmarks/launch_overhead.py does.

    python benchmarks/plan_time.py [--repetitions 3] [--plans-only] [--json FILE]

Prints a table; exits with 1 where an aim is missed. The aims are for 2 idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "benchmarks")]

RUN_FILE = """model_name_or_path: Qwen/Qwen2-VL-7B-Instruct
dtype: bfloat16
max_length: 2048
per_device_train_batch_size: auto
global_batch_size: 1024
launch: {gpu: H100-80GB, gpus_per_node: 8}
"""

PLANS = {
    "8×H100": [],
    "64 nodes of 8×H100": ["--nodes", "64"],
    "8×H100, method auto": ["--method", "auto"],
}
PLAN_AIM_S = 10.0
FIRST_STEP_AIM = 1.15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--plans-only", action="store_true", help="leave the trainings out")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plans = measure_plans(Path(folder), options.repetitions)
        ratio = None if options.plans_only else first_step_ratio(Path(folder), options.repetitions)
    missed = False
    print(f"{'plan, seconds':24}{'cold':>8}{'CPU':>8}{'kept':>8}{'aim':>8}")
    for name, (cold, cpu, kept) in plans.items():
        over = cold > PLAN_AIM_S
        missed = missed or over
        numbers = f"{cold:8.2f}{cpu:8.2f}{kept:8.2f}{PLAN_AIM_S:8.2f}"
        print(f"{name:24}{numbers}{'  MISSED' if over else ''}")
    if ratio is not None:
        over = ratio > FIRST_STEP_AIM
        missed = missed or over
        print(f"first step, `sailplan train` with its plan kept, over the bare script: {ratio:.2f}")
        print(f"aim {FIRST_STEP_AIM}{'  MISSED' if over else ''}")
    if options.json:
        options.json.write_text(json.dumps({"plans": plans, "first_step_ratio": ratio}, indent=2))
    return 1 if missed else 0


def measure_plans(folder: Path, repetitions: int) -> dict[str, tuple[float, float, float]]:
    """Returns seconds of each plan: without anything kept, of the processor then, and kept."""
    run_file = folder / "plan.yaml"
    run_file.write_text(RUN_FILE)
    found = {}
    for name, flags in PLANS.items():
        rounds = []
        for number in range(repetitions):
            cache = folder / f"plans-{len(found)}-{number}"
            command = [sys.executable, "-m", "sailplan", "plan", str(run_file), *flags]
            cold, cpu = seconds(command, environment(folder, cache))
            kept, _ = seconds(command, environment(folder, cache))
            rounds.append((cold, cpu, kept))
        found[name] = tuple(median(times) for times in zip(*rounds, strict=True))
    return found  # type: ignore[return-value]  # three numbers each


def environment(folder: Path, cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src"), str(ROOT)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HF_HUB_OFFLINE": "1",
        "SAILPLAN_CACHE": str(cache),
    }


def seconds(command: list[str], variables: Mapping[str, str]) -> tuple[float, float]:
    """Runs a command and returns its time, and that of the processor."""
    before = os.times()
    start = time.perf_counter()
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    took, after = time.perf_counter() - start, os.times()
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nfailed: {' '.join(command)}")
    used = after.children_user + after.children_system
    return took, used - before.children_user - before.children_system


def first_step_ratio(folder: Path, repetitions: int) -> float:
    """Returns the median time to the first step over the bare script's, measured in turns."""
    from launch_overhead import HOOK, first_step_s, training_fields

    from sailplan.files import preset

    # A planned run is one whose GPU is named; it trains on the CPU of this machine all the same.
    fields = {**training_fields(folder), "gradient_checkpointing": True}
    launch = {"gpu": "L4", "strategy": "single", "cpu": True}
    run_file = folder / "train.yaml"
    run_file.write_text(json.dumps({**fields, "launch": launch}))
    (folder / "sitecustomize.py").write_text(HOOK)
    variables = {
        **environment(folder, folder / "kept"),
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    seconds([sys.executable, "-m", "sailplan", "plan", str(run_file)], variables)
    flags = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    script = [sys.executable, "-m", "accelerate.commands.launch"]
    script += ["--config_file", str(preset("single_gpu")), "-m", "sailplan.train.sft_vlm"]
    commands = {
        "script": [*script, *flags],
        "train": [sys.executable, "-m", "sailplan", "train", str(run_file)],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(repetitions + 1):
        for name in sorted(commands, reverse=bool(number % 2)):
            output = folder / f"out-{number}-{name}"
            command = [*commands[name], "--output_dir", str(output)]
            took = first_step_s(command, variables, folder)
            if name == "train" and not (output / "plan.json").is_file():
                sys.exit("`sailplan train` did not find its plan")
            print(f"round {number}: {name} {took:.2f} s", file=sys.stderr)
            if number:  # the first warms the disk and the caches of `datasets`
                times[name].append(took)
    return median(times["train"]) / median(times["script"])


if __name__ == "__main__":
    sys.exit(main())

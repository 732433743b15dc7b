"""Time to the first optimizer step: our entry script and `sailplan train` against TRL's own script.

All three train the same tiny Qwen2-VL on the same images, with the same strategy, processes and
batch, in turns. A hook in each rank, the same for all, writes down
the moment when transformers' Trainer ends its first optimizer step; the time counts from the start
of the command. One unmeasured round comes first: it builds DeepSpeed's operators and warms the disk
and the caches of `datasets`.

    python benchmarks/launch_overhead.py [--repetitions 5] [--strategy zero3] [--json FILE]

Prints a table; exits with 1 where an aim is missed.
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
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

ROWS = 64
PROCESSES = 2

PEER = "trl/scripts/sft.py"
AIMS = {"sailplan.train.sft_vlm": 1.10, "sailplan train": 1.50}
"""Most of the peer's time that each may take."""

HOOK = '''
import importlib.util, os, sys, time

class Finder:
    """Wraps Trainer's "a step has ended" once its module is loaded; imports nothing itself."""

    def find_spec(self, name, path=None, target=None):
        if name != "transformers.trainer_callback":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            wrapped = module.CallbackHandler.on_step_end

            def on_step_end(handler, *arguments, **keywords):
                with open(os.environ["FIRST_STEP_FILE"], "a") as file:
                    file.write(f"{time.time()}\\n")
                return wrapped(handler, *arguments, **keywords)

            module.CallbackHandler.on_step_end = on_step_end

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--strategy", default="zero3", choices=["ddp", "zero1", "zero2", "zero3"])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), options.strategy, options.repetitions)
    medians = {name: median(times) for name, times in seconds.items()}
    ratios = {name: medians[name] / medians[PEER] for name in AIMS}
    missed = [name for name, aim in AIMS.items() if ratios[name] > aim]
    print(f"{options.strategy}, {PROCESSES} processes, {ROWS} rows, seconds to the first step")
    print(f"{'':24}{'median':>8}{'min':>8}{'max':>8}{'ratio':>8}{'aim':>8}")
    for name, times in seconds.items():
        numbers = f"{medians[name]:8.2f}{min(times):8.2f}{max(times):8.2f}"
        aim = f"{ratios[name]:8.2f}{AIMS[name]:8.2f}" if name in AIMS else f"{1:8.2f}"
        print(f"{name:24}{numbers}{aim}{'  MISSED' if name in missed else ''}")
    if options.json:
        record = {"seconds": seconds, "medians": medians, "ratios": ratios, "aims": AIMS}
        options.json.write_text(json.dumps({**vars(options), "json": None, **record}, indent=2))
    return 1 if missed else 0


def measure(folder: Path, strategy: str, repetitions: int) -> dict[str, list[float]]:
    """Returns each program's times to the first step, measured in turns."""
    from sailplan.files import preset
    from sailplan.launcher.preset import PRESETS
    from sailplan.run.fields import package_folder

    fields = training_fields(folder)
    run_file = folder / "run.yaml"
    launch = {"strategy": strategy, "processes": PROCESSES, "cpu": True}
    # YAML reads JSON: the run file needs no library here.
    run_file.write_text(json.dumps({**fields, "launch": launch}))
    flags = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    accelerate += ["--config_file", str(preset(PRESETS[strategy]))]
    accelerate += ["--num_processes", str(PROCESSES), "--main_process_port", "0"]
    commands = {
        PEER: [*accelerate, str(package_folder("trl") / "scripts/sft.py"), *flags],
        "sailplan.train.sft_vlm": [*accelerate, "-m", "sailplan.train.sft_vlm", *flags],
        "sailplan train": [sys.executable, "-m", "sailplan", "train", str(run_file)],
    }
    (folder / "sitecustomize.py").write_text(HOOK)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src"), str(ROOT)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    names = list(commands)
    for repetition in range(repetitions + 1):
        # Each takes each place in turn: what else the machine does hits all alike.
        for name in names[repetition % 3 :] + names[: repetition % 3]:
            command, output = commands[name], folder / f"out-{repetition}-{names.index(name)}"
            took = first_step_s([*command, "--output_dir", str(output)], environment, folder)
            print(f"round {repetition}: {name} {took:.2f} s", file=sys.stderr)
            if repetition:
                seconds[name].append(took)
    return seconds


def first_step_s(command: list[str], environment: Mapping[str, str], folder: Path) -> float:
    """Runs a training and returns the seconds from its start to the end of its first step."""
    stamps = folder / "first_step"
    stamps.unlink(missing_ok=True)
    start = time.time()
    done = subprocess.run(
        command,
        env={**environment, "FIRST_STEP_FILE": str(stamps)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode != 0 or not stamps.is_file():
        sys.exit(f"{done.stdout}\nfailed with exit code {done.returncode}: {' '.join(command)}")
    return min(float(line) for line in stamps.read_text().split()) - start


def training_fields(folder: Path) -> dict[str, object]:
    """Builds the model and the data; returns what all three are told, in TRL's words."""
    from datasets import Dataset
    from PIL import Image

    from tests.support.tiny import build_tiny

    colours = [(index * 4 % 256, index * 7 % 256, index * 11 % 256) for index in range(ROWS)]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Which colour is it?"},
                {"role": "assistant", "content": f"It is colour number {index}."},
            ],
            "images": [Image.new("RGB", (56, 84), colour)],
        }
        for index, colour in enumerate(colours)
    ]
    data = folder / "data"
    data.mkdir()
    Dataset.from_list(rows).to_parquet(data / "train.parquet")
    return {
        "model_name_or_path": str(build_tiny("qwen2_vl", folder / "model")),
        "dataset_name": str(data),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }


if __name__ == "__main__":
    sys.exit(main())

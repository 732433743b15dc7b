"""How long the command line takes where it only has to answer, against its neighbours'.

    python benchmarks/answers_at_once.py [--repetitions 5] [--json FILE]

Prints seconds of wall time, medians, and ratios; exits with 1 where `sailplan --help` misses its
aim. A busy machine shows in more wall time than processor time: measure on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
AIM_S = 0.3

COMMANDS = {
    "sailplan --help": [sys.executable, "-m", "sailplan", "--help"],
    "sailplan runs": [sys.executable, "-m", "sailplan", "runs"],
    "accelerate launch --help": [str(BIN / "accelerate"), "launch", "--help"],
    "trl --help": [str(BIN / "trl"), "--help"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as empty:
        for _ in range(options.repetitions + 1):  # the first one warms the disk's cache
            for name, command in COMMANDS.items():
                times[name].append(seconds(command, empty))
    medians = {name: statistics.median(of[1:]) for name, of in times.items()}
    ours = medians["sailplan --help"]
    print(f"{'':26}{'s':>6}{'ratio':>8}")
    for name, median in medians.items():
        print(f"{name:26}{median:6.2f}{median / ours:8.1f}")
    missed = ours > AIM_S
    print(f"aim {AIM_S} s for sailplan --help{'  MISSED' if missed else ''}")
    if options.json:
        options.json.write_text(json.dumps({"medians_s": medians}, indent=2) + "\n")
    return int(missed)


def seconds(command: list[str], folder: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())

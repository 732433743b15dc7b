"""Merging against its peers: seconds and memory, with a warm and a cold cache.

Four merges, each by us and by the tool that is used for it today, in turns, each in a process of
its own, everything on disk (fsync) when the clock stops: ZeRO-3 to float32 and to bf16 against
DeepSpeed's zero_to_fp32 (which writes float32 alone), FSDP to bf16 against accelerate's
merge-weights, an adapter onto its base against PEFT's merge_and_unload. Besides, the bounds: a copy
of the output's bytes, and reading the inputs' bytes plus writing the output's. Imports are timed
apart. Memory is the growth of anonymous memory after the imports.

    python benchmarks/merge.py [--gb 2] [--repetitions 3] [--merge NAME] [--cache cold] [--json F]

Prints a table; exits with 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

CACHES = ("warm", "cold")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
MOST_GROWTH_BYTES = 128e6
MOST_OF_COLD_BOUND = 1.25
MOST_OF_COPY = 1.25
LEAST_FASTER = 5.0

MERGES = {
    "ZeRO-3 to float32": ("ours float32", "ours float32 sample", "zero_to_fp32", "copy"),
    "ZeRO-3 to bf16": ("ours", "ours sample", "zero_to_fp32"),
    "FSDP to bf16": ("ours", "ours sample", "accelerate"),
    "adapter to bf16": ("ours", "ours sample", "peft"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0, help="bytes of the inputs' weights, in GB")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where the files lie (default: a temporary one)"
    )
    parser.add_argument("--merge", choices=list(MERGES), help="this one alone")
    parser.add_argument("--cache", choices=CACHES, help="this state of the cache alone")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        wanted = [options.merge] if options.merge else list(MERGES)
        caches = [options.cache] if options.cache else CACHES
        if "cold" in caches and not os.access(DROP_CACHES, os.W_OK):
            print("warm figures alone: only root may empty the cache", file=sys.stderr)
            caches = ["warm"]
        rows = measure(Path(folder), options.gb, options.repetitions, wanted, caches)
    missed = show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 1 if missed else 0


def measure(
    folder: Path, gigabytes: float, repetitions: int, wanted: list[str], caches: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns a row for each merge, tool and state of the cache."""
    inputs = make_inputs(folder, gigabytes)
    rows: list[dict[str, Any]] = []
    for merge in wanted:
        tools, source = MERGES[merge], inputs[merge]
        for cold in (cache == "cold" for cache in caches):
            times: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
            if cold:
                times["bound"] = []
            output_bytes = 0
            for turn in range(repetitions + 1):
                for tool in times:
                    found = run(tool, source, folder / "out", cold=cold, output_bytes=output_bytes)
                    if tool.startswith("ours"):
                        output_bytes = int(found["written"])
                    if turn:  # the first round fills the cache, and the bytecode
                        times[tool].append(found)
            for tool, found in times.items():
                row = {"merge": merge, "tool": tool, "cold": cold}
                row |= {key: median(one[key] for one in found) for key in found[0]}
                rows.append({**row, "all_s": [one["seconds"] for one in found]})
                print(
                    f"  {merge}, {tool}{', cold' if cold else ''}: {row['seconds']:.2f} s",
                    file=sys.stderr,
                    flush=True,
                )
    return rows


def make_inputs(folder: Path, gigabytes: float) -> dict[str, Path]:
    """Returns where each merge's input lies."""
    from benchmarks import layouts

    small, large = (layouts.config(gigabytes * 1e9 / size) for size in (4, 2))
    zero = layouts.zero3(folder / "zero", small)
    base = layouts.base(folder / "base", large)
    return {
        "ZeRO-3 to float32": zero,
        "ZeRO-3 to bf16": zero,
        "FSDP to bf16": layouts.fsdp(folder / "fsdp", large),
        "adapter to bf16": layouts.adapter(folder / "adapter", large, base),
    }


def run(
    tool: str, source: Path, output: Path, *, cold: bool, output_bytes: int = 0
) -> dict[str, float]:
    """Runs a tool in a process of its own and returns what it measured."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    if cold:
        DROP_CACHES.write_text("3")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OUTPUT_BYTES": str(output_bytes),
    }
    command = [sys.executable, "-m", "benchmarks.merge_tools", tool, str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{tool} of {source} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    found["written"] = sum(path.stat().st_size for path in output.rglob("*.safetensors"))
    return found


def show(rows: list[dict[str, Any]]) -> list[str]:
    """Prints the table, and returns what missed its aim."""
    missed: list[str] = []
    by = {(row["merge"], row["tool"], row["cold"]): row for row in rows}
    print(f"{'':42}{'seconds':>9}{'imports':>9}{'growth':>10}{'ratio':>8}  of")
    for row in rows:
        merge, tool, cold = row["merge"], row["tool"], row["cold"]
        name = f"{merge}, {tool}{', cold' if cold else ''}"
        line = f"{name:42}{row['seconds']:9.2f}{row['imports']:9.2f}{row['growth'] / 1e6:7.0f} MB"
        if tool.startswith("ours"):
            if row["growth"] > MOST_GROWTH_BYTES and "sample" not in tool:
                missed.append(f"{name}: memory")
            against, least, most = aim(merge, cold=cold)
            ratio = by[merge, against, cold]["seconds"] / row["seconds"]
            line += f"{ratio:8.2f}  {against}"
            # What verification costs is shown, the aims are those of merging itself.
            if "sample" not in tool and ((least and ratio < least) or (most and ratio < 1 / most)):
                missed.append(name)
                line += "  MISSED"
        print(line)
    print("ratio: how much longer the other takes")
    return missed


def aim(merge: str, *, cold: bool) -> tuple[str, float, float]:
    """Returns whom a merge is held against: at least so much faster, or at most so much slower."""
    if cold:
        return "bound", 0.0, MOST_OF_COLD_BOUND
    if merge == "ZeRO-3 to float32":
        return "copy", 0.0, MOST_OF_COPY
    peer = {"ZeRO-3 to bf16": "zero_to_fp32", "FSDP to bf16": "accelerate"}.get(merge, "peft")
    return peer, 0.0 if peer == "accelerate" else LEAST_FASTER, 0.0


if __name__ == "__main__":
    sys.exit(main())

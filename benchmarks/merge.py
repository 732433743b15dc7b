"""Merging against its peers: seconds and memory, with a warm and a cold cache.

Four merges, each by us and by the tool that is used for it today, in turns, each in a process of
its own, everything on disk (fsync) when the clock stops: ZeRO-3 to float32 and to bf16 against
DeepSpeed's zero_to_fp32 (which writes float32 alone), FSDP to bf16 against accelerate's
merge-weights, an adapter onto its base against PEFT's merge_and_unload. Besides, the bounds: a copy
of the output's bytes, and reading the inputs' bytes plus writing the output's. Imports are timed
apart. Memory is the growth of anonymous memory after the imports.

    python benchmarks/merge.py [--gb 2] [--repetitions 3] [--merge NAME] [--json FILE]

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
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

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
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(*options.worker)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        wanted = [options.merge] if options.merge else list(MERGES)
        rows = measure(Path(folder), options.gb, options.repetitions, wanted)
    missed = show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 1 if missed else 0


def measure(
    folder: Path, gigabytes: float, repetitions: int, wanted: list[str]
) -> list[dict[str, Any]]:
    """Returns a row for each merge, tool and state of the cache."""
    inputs = make_inputs(folder, gigabytes)
    rows: list[dict[str, Any]] = []
    for merge in wanted:
        tools, source = MERGES[merge], inputs[merge]
        for cold in (False, True):
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
        Path("/proc/sys/vm/drop_caches").write_text("3")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OUTPUT_BYTES": str(output_bytes),
    }
    command = [sys.executable, __file__, "--worker", tool, str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{tool} of {source} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    found["written"] = sum(path.stat().st_size for path in output.rglob("*.safetensors"))
    return found


class Growth(threading.Thread):
    """Watches this process's anonymous memory: what no file stands behind."""

    def __enter__(self) -> Growth:
        self.done = threading.Event()
        self.before = self.peak = self.now()
        self.daemon = True
        self.start()
        return self

    def run(self) -> None:
        """Looks until the block ends."""
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.now())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()
        self.peak = max(self.peak, self.now())

    @staticmethod
    def now() -> int:
        """Returns the bytes of anonymous memory."""
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def work(tool: str, source: str, output: str) -> int:
    """Imports what a tool needs, then merges; prints what both took."""
    start = time.monotonic()
    merge = TOOLS[tool.split()[0]](tool)
    imports_s = time.monotonic() - start
    with Growth() as growth:
        start = time.monotonic()
        merge(Path(source), Path(output))
        seconds = time.monotonic() - start
    found = {"imports": imports_s, "seconds": seconds, "growth": growth.peak - growth.before}
    print(json.dumps(found))
    return 0


def ours(tool: str) -> Callable[[Path, Path], None]:
    import torch
    import transformers.models.llama.modeling_llama

    from sailplan.merge import adapter, names, output, verify
    from sailplan.merge.job import Options, prepare

    assert transformers
    assert adapter
    assert names
    if "sample" in tool:  # what verification needs of the libraries
        import peft

        assert peft.LoraConfig
    torch.set_num_threads(1)
    options = Options(dtype="float32" if "float32" in tool else None)
    level: Any = "sample" if "sample" in tool else "none"

    def merge(source: Path, folder: Path) -> None:
        job = prepare(source, options)
        digests = output.carry_out(job, folder, check_finite=level != "none")
        verify.verify(job, folder, digests, level)

    return merge


def zero_to_fp32(_: str) -> Callable[[Path, Path], None]:
    from deepspeed.utils import zero_to_fp32 as peer

    def merge(source: Path, folder: Path) -> None:
        peer.convert_zero_checkpoint_to_fp32_state_dict(
            str(source), str(folder), safe_serialization=True
        )
        sync(folder)

    return merge


def accelerate(_: str) -> Callable[[Path, Path], None]:
    import torch.distributed.checkpoint
    from accelerate.utils import merge_fsdp_weights

    assert torch.distributed.checkpoint

    def merge(source: Path, folder: Path) -> None:
        merge_fsdp_weights(str(source / "pytorch_model_fsdp_0"), str(folder))
        sync(folder)

    return merge


def by_peft(_: str) -> Callable[[Path, Path], None]:
    import torch
    import transformers.models.llama.modeling_llama
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert transformers

    def merge(source: Path, folder: Path) -> None:
        settings = json.loads((source / "adapter_config.json").read_text())
        home = settings["base_model_name_or_path"]
        model = AutoModelForCausalLM.from_pretrained(home, dtype=torch.bfloat16)
        PeftModel.from_pretrained(model, source).merge_and_unload().save_pretrained(folder)
        sync(folder)

    return merge


def copy(_: str) -> Callable[[Path, Path], None]:
    """Writes as many bytes as the float32 output has, from the files that hold them."""

    def merge(source: Path, folder: Path) -> None:
        folder.mkdir()
        for path in weights(source):
            shutil.copyfile(path, folder / path.name)
        sync(folder)

    return merge


def bound(_: str) -> Callable[[Path, Path], None]:
    """Reads the inputs and writes as many bytes as ours wrote last, computing nothing."""

    def merge(source: Path, folder: Path) -> None:
        buffer = bytearray(8 << 20)
        for path in weights(source):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        left = int(os.environ["OUTPUT_BYTES"])
        folder.mkdir()
        with (folder / "model").open("wb", buffering=0) as file:
            while left > 0:
                left -= file.write(buffer[: min(left, len(buffer))])
        sync(folder)

    return merge


TOOLS: dict[str, Callable[[str], Callable[[Path, Path], None]]] = {
    "ours": ours,
    "zero_to_fp32": zero_to_fp32,
    "accelerate": accelerate,
    "peft": by_peft,
    "copy": copy,
    "bound": bound,
}


def weights(source: Path) -> Iterator[Path]:
    """The files of an input that hold weights."""
    folders = [source]
    if (source / "adapter_config.json").is_file():
        settings = json.loads((source / "adapter_config.json").read_text())
        folders.append(Path(settings["base_model_name_or_path"]))
    for folder in folders:
        for pattern in ("**/*optim_states.pt", "**/*.distcp", "*.safetensors"):
            yield from sorted(folder.glob(pattern))


def sync(folder: Path) -> None:
    """Waits until the files of a folder are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


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

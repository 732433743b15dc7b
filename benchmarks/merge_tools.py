"""The tools that `benchmarks/merge.py` measures: ours, its peers, and the bounds, one a process.

    python -m benchmarks.merge_tools TOOL SOURCE OUTPUT

Prints a line of JSON: seconds of imports and of merging, and growth of anonymous memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


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


if __name__ == "__main__":
    sys.exit(work(*sys.argv[1:]))

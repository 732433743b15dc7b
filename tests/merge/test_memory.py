"""A merge in little memory, whatever the size of the model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig

from benchmarks import layouts

LIMIT_BYTES = 512 * 2**20
LIMITED = """
import resource, sys
from pathlib import Path
import transformers.models.llama.modeling_llama
from sailplan.merge import names, output
from sailplan.merge.job import Options, prepare
import torch

def memory(kind):
    return int(Path("/proc/self/status").read_text().partition(kind)[2].split()[0]) * 1024

limit = memory("VmData:") + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    bytearray(int(sys.argv[3]) + 2**26)
except MemoryError:
    print("limited")
job = prepare(Path(sys.argv[1]), Options(dtype="bfloat16"))
peak = [0]
def look(_):
    peak[0] = max(peak[0], memory("RssAnon:"))
output.carry_out(job, Path(sys.argv[2]), check_finite=True, on_bytes=look)
print(job.read_bytes, peak[0])
"""


def sharded(folder: Path, config: LlamaConfig) -> Path:
    return layouts.zero3(folder, config, hollow=True)


def published(folder: Path, config: LlamaConfig) -> Path:
    return layouts.hollow_base(folder, config, "float32")


@pytest.mark.parametrize("make", [sharded, pytest.param(published, marks=pytest.mark.slow)])
def test_half_a_gigabyte_suffices_for_four_times_as_much(
    tmp_path: Path, make: Callable[[Path, LlamaConfig], Path]
) -> None:
    """Of 2.2 GB in float32, which take no room on the disk: all of it is a hole."""
    source = make(tmp_path / "in", layouts.config(0.55e9))

    command = [sys.executable, "-c", LIMITED, str(source), str(tmp_path / "out"), str(LIMIT_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)

    assert done.returncode == 0, done.stderr[-2000:]
    limited, read_bytes, peak = done.stdout.split()
    assert limited == "limited"
    assert int(read_bytes) > 4 * LIMIT_BYTES
    # All of the process's own memory, with that of torch and transformers.
    assert int(peak) < LIMIT_BYTES
    shutil.rmtree(tmp_path / "out")

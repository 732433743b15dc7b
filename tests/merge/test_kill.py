"""A merge that is killed at any of its writes goes on to the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from benchmarks import layouts
from sailplan.merge.job import Options, prepare
from sailplan.merge.output import carry_out
from tests.merge.small import SMALL, digests

KILLED = """
import os, random, shutil, signal, sys
from pathlib import Path
import torch
from sailplan.merge import stream
from sailplan.merge.job import Options, prepare
from sailplan.merge.output import carry_out

stream.CHUNK_BYTES = 2000
torch.set_num_threads(1)
out = Path(sys.argv[2])
job = prepare(Path(sys.argv[1]), Options(max_shard_bytes=20_000))
real, writes, last = os.pwrite, [0], [-1]

def pwrite(*arguments):
    if writes[0] == last[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    writes[0] += 1
    return real(*arguments)

os.pwrite = pwrite
carry_out(job, out)
total = writes[0]
chance = random.Random(0)
for _ in range(50):
    shutil.rmtree(out)
    writes[0], last[0] = 0, chance.randrange(1, total)
    for _ in range(2):  # killed, then resumed
        child = os.fork()
        if not child:
            carry_out(job, out)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        index = (out / "model.safetensors.index.json").exists()
        print(last[0], os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, int(index), flush=True)
        if last[0] < 0:
            break
        last[0] = -1
    digest = b"".join(path.read_bytes() for path in sorted(out.iterdir()))
    print("bytes", hash(digest), len(list(out.iterdir())), flush=True)
"""


def test_fifty_kills_are_each_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    zero = layouts.zero3(tmp_path / "in", SMALL)
    carry_out(prepare(zero, Options(max_shard_bytes=20_000)), tmp_path / "undisturbed")
    expected = b"".join(path.read_bytes() for path in sorted((tmp_path / "undisturbed").iterdir()))
    code = f"{KILLED}\nprint('bytes', hash(Path(sys.argv[3]).read_bytes()), 0)"
    (tmp_path / "expected").write_bytes(expected)
    inputs = digests(zero)

    command = [sys.executable, "-c", code, str(zero), str(tmp_path / "out")]
    command.append(str(tmp_path / "expected"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    contents = {line[1] for line in lines if line[0] == "bytes"}
    assert len(contents) == 1
    runs = [line for line in lines if line[0] != "bytes"]
    killed = [line for line in runs if line[1] == str(int(signal.SIGKILL))]
    # Behind the first byte, and before the index has its name.
    assert len([line for line in killed if int(line[0]) >= 1 and line[2] == "0"]) == 50
    assert len([line for line in runs if line[1:] == ["0", "1"]]) == 50
    assert digests(zero) == inputs

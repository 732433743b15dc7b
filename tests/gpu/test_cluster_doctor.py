"""What a node with a GPU tells the doctor of a cluster: the real driver, and one rank's work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sailplan.hardware.xids import GpuWatch
from sailplan.preflight.cluster.gather import gather
from sailplan.preflight.cluster.node import look
from sailplan.preflight.cluster.records import Wanted, node_file, read, seen_file, write
from sailplan.preflight.cluster.site import Site, smoke
from sailplan.run.slurm_block import SlurmBlock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_driver_watches_a_gpu_that_is_well() -> None:
    watch = GpuWatch(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    one = torch.ones(1 << 20, device="cuda")
    assert float(one.sum()) == 1 << 20
    assert watch.xids() == ()
    assert isinstance(watch.slowed(), tuple)


def test_node_and_rank_are_found_well(tmp_path: Path) -> None:
    settings = SlurmBlock(gpu="H100", gpus_per_node=1)
    job = smoke(Site(settings=settings, environment={}), tmp_path, 1, strategy=None)
    for path, text in job.launch.files.items():
        path.write_text(text)
    seen_file(tmp_path).write_text("12\n")
    record = look(tmp_path)
    write(node_file(tmp_path, record.host), record)
    command = [sys.executable, "-m", "sailplan.launcher.accelerate", *job.launch.argv[1:]]
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "0", "SLURMD_NODENAME": record.host}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr

    wanted = Wanted(
        hosts=(record.host,),
        ranks_per_node=1,
        gpus_per_node=len(record.driver.gpus) if record.driver else 0,
        gpu="",
        token="12",
        folder=tmp_path,
        software=record.software,
        strategy=job.launch.strategy,
    )
    found = read(tmp_path, "", wanted)
    lines = dict(gather(found))

    (rank,) = found.ranks
    assert rank.gpu == torch.cuda.get_device_name(0)
    assert rank.xids == ()
    assert 0 < rank.own_step_s < 1
    assert [name for name, line in lines.items() if line.mark == "failed"] == []
    assert lines["GPU memory"].mark == "ok" or "does not count" in lines["GPU memory"].text

"""The cluster that the Slurm tests stand on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.cluster.cluster import parse_record, polling

BOTH_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:8")


def test_job_on_two_nodes_numbers_them_on_the_node(cluster: Cluster) -> None:
    job = cluster.submit("srun bash -c 'echo $SLURM_NODEID is $(hostname)'", *BOTH_NODES)
    cluster.wait_for(job, "COMPLETED")
    assert sorted(cluster.log(job).splitlines()) == ["0 is node1", "1 is node2"]

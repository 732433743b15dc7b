"""How many ranks there are is asked as the trainer asks it: accelerate alone may say one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sailplan.files import preset
from tests.support import patience
from tests.support.launch import free_port

SCRIPT = Path(__file__).with_name("accelerator_ranks.py")


@pytest.mark.slow
def test_bare_accelerator_on_cpus_under_deepspeed_sees_one_rank_and_the_trainer_all(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(preset("deepspeed_zero3")), "--num_processes", "2"]
    command += ["--main_process_port", str(free_port()), "--use_cpu", str(SCRIPT), str(tmp_path)]

    done = patience.run(command, timeout=240)

    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found == [{"bare": 1, "trainer": 2}] * 2

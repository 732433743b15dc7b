"""What stands for training in a job: steps that are logged, a stop that is heeded, an end.

`python -m tests.slurm.steps RUN NUM_STEPS` goes on from the last step that is saved.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from sailplan.run.paths import RunPaths
from sailplan.run.state import RunState, ended, write_state

STEP_S = 0.2


def main(directory: Path, num_steps: int) -> int:
    """Trains, so to say, and returns the exit code."""
    paths = RunPaths(directory)
    saved = directory / "saved"
    done = int(saved.read_text()) if saved.is_file() else 0
    started_at = time.time()
    while done < num_steps:
        done += 1
        with paths.metrics_file.open("a") as file:
            record = {"step": done, "loss": 1 / done, "time": time.time()}
            file.write(json.dumps(record) + "\n")
        print(f"step {done}", flush=True)
        state = RunState(
            state="running",
            step=done,
            max_steps=num_steps,
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=started_at,
            updated_at=time.time(),
        )
        write_state(paths.state_file, state)
        if paths.stop_file.exists():
            saved.write_text(str(done))
            paths.stop_file.unlink()
            ended(paths, 75, "as asked (the stop file)")
            return 75
        time.sleep(STEP_S)
    ended(paths, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))

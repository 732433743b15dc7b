"""What a rank is told of its world: by accelerate alone, and as transformers' trainer asks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import TrainingArguments


def main() -> None:
    """Writes both numbers of processes into the folder."""
    folder = Path(sys.argv[1])
    bare = Accelerator().num_processes
    AcceleratorState._reset_state(reset_partial_state=True)
    trainers = TrainingArguments(str(folder), use_cpu=True).world_size
    found = {"bare": bare, "trainer": trainers}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""What the ranks run where a test is about what goes on around them: `-m tests.supervise.ranks`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import yaml

from sailplan.errors import DataError
from sailplan.run.directory import RunDirectory
from sailplan.train.errors import report_errors
from sailplan.train.phase import PHASE
from sailplan.train.rank_log import LOG


def main() -> None:
    """Does what the run's `run_name` says."""
    with report_errors():
        config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
        rank, what = int(os.environ.get("RANK", "0")), config["run_name"]
        print(f"rank {rank} loads")
        if what == "user error while loading":
            raise DataError("row 3 is empty", todo="remove it")
        if what == "bug while loading":
            raise ZeroDivisionError("ours")
        if what in ("user error", "first the second"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # each says what it has to say
            meet(rank)  # not before the other one listens no more
        begin(RunDirectory(Path(config["output_dir"])), rank)
        print("10 %\r20 %\r30 %\ntrains", flush=True)
        fail(what, rank, config)


def begin(directory: RunDirectory, rank: int) -> None:
    """Marks that training has begun, and is in the fourth step."""
    if rank == 0:
        directory.metrics_file.touch()
    LOG.begin(directory.logs)
    PHASE.move("computing a micro batch", 3)


def meet(rank: int) -> None:
    """Returns when all ranks are here."""
    here = Path(os.environ["SAILPLAN_FAILURES"])
    (here / f"here-{rank}").touch()
    while len(list(here.glob("here-*"))) < int(os.environ.get("WORLD_SIZE", "1")):
        time.sleep(0.01)


def wait_for_failure(rank: int) -> None:
    """Returns when another rank has left word of its failure."""
    failures = Path(os.environ["SAILPLAN_FAILURES"])
    while not (failures / f"rank-{rank}.json").exists():
        time.sleep(0.01)


def fail(what: str, rank: int, config: dict[str, object]) -> None:
    """Fails, or not."""
    if what == "user error":
        if rank == 0 and os.environ.get("WORLD_SIZE", "1") != "1":
            wait_for_failure(1)
        raise DataError("row 3 is empty", todo="remove it")
    if what == "first the second":
        if rank == 1:
            raise ZeroDivisionError("ours")
        wait_for_failure(1)
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    if what == "killed" and rank == 1:
        began = RunDirectory(Path(str(config["output_dir"]))).metrics_file
        while not began.exists():  # the other rank says that training has begun
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "killed":
        time.sleep(100)  # the launcher ends it
    rows = int(str(config.get("per_device_train_batch_size", 8)))
    if what.startswith("out of memory above") and rows > int(what.split()[-1]):
        raise MemoryError
    if what == "out of memory whatever is done":
        raise MemoryError


if __name__ == "__main__":
    main()

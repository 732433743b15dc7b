"""What the ranks run where a test is about their launcher: `python -m tests.launcher.ranks`."""

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


def main() -> None:
    """Says that it is there, then does what the run's `run_name` says."""
    with report_errors():
        config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
        # One write a line: unbuffered, as launchers start them, two ranks' prints would mix.
        os.write(1, f"rank {os.environ.get('RANK', '0')} {os.getpid()}\n".encode())
        if config["run_name"] == "fails while training":
            RunDirectory(Path(config["output_dir"])).metrics_file.touch()
        if config["run_name"].startswith("fails"):
            raise DataError("row 3 is empty")
        if config["run_name"] == "ignores signals":
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if config["run_name"] != "ends":
            os.write(1, b"waiting\n")
            time.sleep(100)


if __name__ == "__main__":
    main()

"""A child that never answers, with a child of its own: `python -m tests.preflight.hangs FILE`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Writes both process ids into the file that is named, and waits."""
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(sys.argv[1]).write_text(f"{child.pid}")
    signal.pause()


if __name__ == "__main__":
    main()

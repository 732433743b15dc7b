"""Faults that come into a child process from outside: nothing in the package knows of them.

`planted` returns the environment for a child. The folder of this file is then on its PYTHONPATH, so
that Python runs `sitecustomize.py` first; that patches what each fault names, once it is imported.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "SAILPLAN_TEST_PLANT"
"""Holds one fault as a JSON object, or a list of them."""


def planted(*faults: dict[str, Any], **fault: Any) -> dict[str, str]:
    """Returns an environment in which a child meets faults: `planted(what="…", rank=1)`.

    Args:
        *faults: Where there are several, each as a mapping.
        **fault: Else the one. `what` is a name in `faults.PLANTS`; `rank` is the rank that meets
            it, all where it is not given; the rest are the keyword arguments of its function.
    """
    wanted = [*faults, *([fault] if fault else [])]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, VARIABLE: json.dumps(wanted)}

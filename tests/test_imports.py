"""Garbage collection is off during imports, and what libraries compile waits until it is called."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

from sailplan.imports import quick_imports

COMPILED = """
import json, sys
from sailplan.imports import compiled_when_called, quick_imports
with quick_imports(), compiled_when_called():
    import torch
    import bitsandbytes
    bare = torch.compile(torch.sin, backend="eager")
    decorated = torch.compile(backend="eager")(torch.sin)
imported = "torch._inductor.compile_fx" in sys.modules
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
with compiled_when_called():
    @torch.compile(backend=backend, dynamic=False)
    def double(x):
        "Doubles."
        return 2 * x
before = len(graphs)
values = [double(torch.ones(1)).item(), double(torch.ones(1)).item()]
values += [bare(torch.zeros(1)).item(), decorated(torch.zeros(1)).item()]
print(json.dumps([imported, before, values, len(graphs), double.__doc__]))
now = torch.compile(torch.sin, backend="eager")
assert hasattr(now, "_torchdynamo_orig_callable")
"""


def test_quick_imports_collect_again_afterwards_but_nothing_older() -> None:
    frozen = gc.get_freeze_count()
    try:
        with quick_imports():
            during = gc.isenabled()
        assert (during, gc.isenabled()) == (False, True)
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


def test_what_is_compiled_in_imports_is_compiled_once_when_it_is_called() -> None:
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    imported, before, values, after, docstring = json.loads(done.stdout)
    assert (imported, before, values, after) == (False, 0, [2.0, 2.0, 0.0, 0.0], 1)
    assert docstring == "Doubles."

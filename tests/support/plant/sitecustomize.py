"""Run by Python at its start where this folder is on the path: plants what the variable names."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Of two modules of this name Python reads the first alone.
import tests.support.as_installed.sitecustomize  # noqa: F401


class _AfterImport(MetaPathFinder):
    """Calls patches of modules, each once its module has been imported."""

    def __init__(self) -> None:
        self.patches: dict[str, list[Callable[[ModuleType], None]]] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        patches = self.patches.pop(fullname, None)  # else the search below would end here again
        if patches is None:
            return None
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            for patch in patches:
                patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def plant(faults: list[dict[str, Any]]) -> None:
    """Has each fault's patch called with its module, now or when that is imported."""
    from tests.support.plant.faults import PLANTS

    finder = _AfterImport()
    for fault in faults:
        name, rank = fault.pop("what"), fault.pop("rank", None)
        if rank is not None and os.environ.get("RANK", "0") != str(rank):
            continue
        module, patch = PLANTS[name]
        if module in sys.modules:
            patch(sys.modules[module], **fault)
        else:
            finder.patches.setdefault(module, []).append(partial(patch, **fault))
    sys.meta_path.insert(0, finder)


if "SAILPLAN_TEST_PLANT" in os.environ:
    wanted = json.loads(os.environ["SAILPLAN_TEST_PLANT"])
    plant(wanted if isinstance(wanted, list) else [wanted])

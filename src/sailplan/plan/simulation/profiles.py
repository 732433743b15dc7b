"""Profiles of workloads: kept on disk, and no more of them simulated than must be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib import import_module

from sailplan.errors import ModelError
from sailplan.plan.profile import Profile
from sailplan.plan.simulation.interpolate import interpolate, recast
from sailplan.plan.store import cached
from sailplan.plan.workload import Workload

Simulate = Callable[[Workload], Profile]

LARGEST_SIMULATED = 4
"""Rows of the larger of the two micro batches that others are drawn between, or beyond."""


def simulate_really(workload: Workload) -> Profile:
    """Simulates a workload; imports torch and transformers only then.

    Raises:
        ModelError: transformers does not know the architecture, or the adapter does not fit it.
    """
    from sailplan.imports import quick_imports

    with quick_imports():
        import_module("torch._dynamo")  # fake tensors load it: a third of all imports
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        from sailplan.plan.simulation.simulate import simulate
    kind = workload.config.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        got = f"transformers {transformers.__version__} has no architecture {kind!r}"
        raise ModelError(got, todo="install a newer transformers, or plan a model of its kind")
    # transformers writes into the config that it is given, and a workload is known by its own.
    return simulate(replace(workload, config=copy.deepcopy(dict(workload.config))))


@dataclass(kw_only=True, slots=True)
class Profiles:
    """Gives the profile of any workload of one run.

    Args:
        micro_batches: What will be asked for.
        simulate: Makes a profile.
    """

    micro_batches: Iterable[int]
    simulate: Simulate = simulate_really
    _known: dict[str, Profile] = field(default_factory=dict)

    def __call__(self, workload: Workload) -> Profile:
        """Returns the profile, exact or drawn between two that were simulated."""
        asked = sorted(set(self.micro_batches))
        if asked == [workload.micro_batch]:
            return self._exact(workload)
        low = asked[0]
        if len(asked) > 1:
            high = max([m for m in asked[1:] if m <= LARGEST_SIMULATED] or asked[1:2])
        else:  # beside the one that the run file fixes
            low, high = sorted((low, 1 if low > 1 else LARGEST_SIMULATED))
        ends = [
            (rows, self._exact(replace(workload, micro_batch=rows, padded=True)))
            for rows in (low, high)
        ]
        return interpolate(ends[0], ends[1], workload.micro_batch)

    def like(self, workload: Workload, known: Workload) -> Profile:
        """Returns the profile with other weights than a known one, by approximation."""
        same_size = replace(known, micro_batch=workload.micro_batch)
        return recast(self(same_size), same_size, workload)

    def _exact(self, workload: Workload) -> Profile:
        # Left out: what the simulation does not look at.
        key = workload.key()
        if key not in self._known:
            self._known[key] = cached(Profile, key, lambda: self.simulate(workload))
        return self._known[key]

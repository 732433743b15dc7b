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
Sized = Callable[[Workload, int], Workload]
"""A workload, and samples of a micro batch, to the workload of the largest of these."""

LARGEST_SIMULATED = 4
"""Samples of the larger of the two micro batches that others are drawn between, or beyond."""


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
        micro_batches: What will be asked for, in samples.
        sized: Gives a workload the rows of a micro batch.
        simulate: Makes a profile.
    """

    micro_batches: Iterable[int]
    sized: Sized
    simulate: Simulate = simulate_really
    _known: dict[str, Profile] = field(default_factory=dict)

    def __call__(self, workload: Workload) -> Profile:
        """Returns the profile, exact or drawn between two that were simulated."""
        asked = sorted(set(self.micro_batches))
        low = asked[0]
        if asked[1:] == [] and workload == self.sized(workload, low):
            return self.exact(workload)
        if len(asked) > 1:
            high = max([m for m in asked[1:] if m <= LARGEST_SIMULATED] or asked[1:2])
        else:  # beside the one that the run file fixes
            low, high = sorted((low, 1 if low > 1 else LARGEST_SIMULATED))
        small, large = (self.sized(workload, micro_batch) for micro_batch in (low, high))
        # A long sample alone may be as large as several: the line needs two sizes far apart.
        times = -(-2 * small.tokens // large.tokens)
        if small.num_images:
            times = max(times, -(-2 * small.num_images // max(large.num_images, 1)))
        large = large.repeated(times)
        return interpolate(
            self.exact(replace(small, padded=large.padded)),
            self.exact(large),
            tokens=_share(small.tokens, large.tokens, workload.tokens),
            images=_share(small.num_images, large.num_images, workload.num_images),
        )

    def like(self, workload: Workload, known: Workload) -> Profile:
        """Returns the profile with other weights than a known one, by approximation."""
        same_size = known.sized_as(workload)
        return recast(self(same_size), same_size, workload)

    def exact(self, workload: Workload) -> Profile:
        """Returns the profile of that very workload."""
        key = workload.key()
        if key not in self._known:
            self._known[key] = cached(Profile, key, lambda: self.simulate(workload))
        return self._known[key]


def _share(low: int, high: int, wanted: int) -> float:
    """Returns where between two sizes a third lies: 0 is the low one, 1 the high one."""
    return (wanted - low) / (high - low) if high > low else 0.0

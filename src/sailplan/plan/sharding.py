"""How the parameters, gradients and optimizer states of a run are divided over ranks."""

from __future__ import annotations

from dataclasses import dataclass

from sailplan.run.blocks import Strategy

GIB = 2**30

KINDS = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "gathered",
    "buckets",
    "context",
)
"""What memory is spent on. `activations` are whatever the computation itself holds, short-lived
buffers among them; `gathered` are whole weights that ZeRO-3 and FSDP put together for a moment."""

PHASES = ("load", "forward", "backward", "step", "evaluation", "save")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharding:
    """One way to divide a run."""

    strategy: Strategy
    """One of the accelerate presets, never `auto`."""
    ranks: int
    """All ranks of all nodes."""
    ranks_per_node: int
    reduce_bucket: int | None = None
    """Elements; None is DeepSpeed's own default, which the presets leave as it is."""
    max_live: int = 1_000_000_000
    """Elements that ZeRO-3 may hold gathered."""
    zero_init: bool = True
    """Whether ZeRO-3 shards the model while it is loaded."""
    offload_optimizer: bool = False
    offload_parameters: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one rank's GPU, by phase and kind."""

    phases: dict[str, dict[str, int]]
    """Phase to kind to bytes; each phase at its own worst moment."""
    moments: dict[str, str]
    """Phase to the name of that moment."""
    band: float
    """How far the truth may lie off, as a share of the peak: 0.05 is five percent."""
    known: str
    """Why the band is what it is, in words."""
    fragmentation: float = 1.25
    """How many times the allocated bytes torch's allocator may reserve."""

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak_bytes(self) -> int:
        """Bytes at the worst moment, as torch allocates them; the context is not among them."""
        return self.total(self.peak_phase)

    def total(self, phase: str) -> int:
        """Returns the allocated bytes of a phase, without the CUDA context."""
        return sum(size for kind, size in self.phases[phase].items() if kind != "context")

    @property
    def band_bytes(self) -> tuple[int, int]:
        """Between what the allocated peak is expected."""
        return int(self.peak_bytes * (1 - self.band)), int(self.peak_bytes * (1 + self.band))

    @property
    def reserved_bytes(self) -> tuple[int, int]:
        """Between what the allocator's reserve is expected, which holds blocks of no use too."""
        low, high = self.band_bytes
        return low, int(high * self.fragmentation)

    @property
    def needed_bytes(self) -> int:
        """What the GPU must have: allocated, with the allocator's loss and the context."""
        return int(self.peak_bytes * 1.03) + self.phases[self.peak_phase].get("context", 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Time:
    """How long things take; seconds."""

    step_s: float
    """One optimizer step, all micro batches."""
    compute_s: float
    """Of it, computing."""
    communication_s: float
    """Of it, waiting for other ranks, as far as it is not hidden behind computing."""
    offload_s: float
    """Of it, the optimizer on the CPU and the transfers to it."""
    utilisation: float
    """The share of the GPU's peak that computing is taken to reach."""
    band: float
    """A factor: the truth is expected between step_s / band and step_s × band."""
    regime: str = ""
    """The kind of case whose published utilisations that share is from."""

    @property
    def range_s(self) -> tuple[float, float]:
        """From the shortest to the longest that a step is expected to take."""
        return self.step_s / self.band, self.step_s * self.band

"""GPUs to plan for: memory, arithmetic, bandwidth and links, each with its source.

Memory is what torch calls `total_memory`, which is less than the name says: the driver keeps some.
Where versions of the driver differ, it is the smallest figure that torch's out-of-memory messages
give for the card. FLOP/s are of dense matrices on tensor cores, accumulated in float32, without the
factor of two that data sheets add for structured sparsity; a GeForce card has half its float16
figure there. All rates are peaks: what a step reaches is for the plan to say.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from sailplan.errors import HardwareError


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """How GPUs of one machine reach each other."""

    kind: str
    """`PCIe 4.0 x16`, `NVLink 4 (NVSwitch)`, …"""
    bytes_s: float
    """What one GPU sends per second over all its links, while it receives as much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """How machines reach each other: assumed, because it is the cluster's and not the GPU's."""

    assumption: str
    """What is assumed, for the user."""
    bytes_s: float
    """What one GPU sends per second when all GPUs of its machine send."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuModel:
    """One kind of GPU."""

    name: str
    """As `launch.gpu` writes it, such as `H100-80GB`."""
    driver_name: re.Pattern[str]
    """Matches what the driver calls it, without `NVIDIA` or `AMD Instinct`."""
    memory_bytes: int
    """What torch can use of it: `total_memory`."""
    nominal_memory_bytes: int
    """What it is sold with."""
    bf16_flops: float | None
    """Dense bfloat16 FLOP/s on tensor cores; None where there is no bfloat16."""
    fp16_flops: float
    """Dense float16 FLOP/s on tensor cores, accumulated in float32."""
    fp32_flops: float
    """float32 FLOP/s without tensor cores."""
    bandwidth_bytes_s: float
    """To and from its own memory."""
    link: Link
    """To the other GPUs of the machine."""
    network: Network
    """To other machines, by assumption."""
    source: str
    """The vendor's document that the figures are of."""

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16."""
        return self.bf16_flops is not None

    def peak_flops(self, dtype: str) -> float:
        """Returns the FLOP/s at most of matrix products in `bfloat16`, `float16` or `float32`."""
        if dtype == "bfloat16":
            return self.bf16_flops or self.fp32_flops
        return self.fp16_flops if dtype == "float16" else self.fp32_flops


# One direction. A bridge that joins two PCIe cards is left out: it does not reach the others.
_LINKS = {
    "pcie3": Link(kind="PCIe 3.0 x16", bytes_s=15.75e9),
    "pcie4": Link(kind="PCIe 4.0 x16", bytes_s=31.5e9),
    "pcie5": Link(kind="PCIe 5.0 x16", bytes_s=63e9),
    "nvlink2": Link(kind="NVLink 2", bytes_s=150e9),
    "nvlink3": Link(kind="NVLink 3 with NVSwitch", bytes_s=300e9),
    "nvlink4": Link(kind="NVLink 4 with NVSwitch", bytes_s=450e9),
    "nvlink5": Link(kind="NVLink 5 with NVSwitch", bytes_s=900e9),
    "fabric": Link(kind="Infinity Fabric", bytes_s=448e9),  # 64 GB/s to each of seven others
}
# As the vendors' reference machines have it, and else as the clouds' usual machines of 8.
_NETWORKS = {
    "400": Network(assumption="400 Gb/s a GPU", bytes_s=50e9),
    "200": Network(assumption="200 Gb/s a GPU", bytes_s=25e9),
    "200/8": Network(assumption="200 Gb/s a machine of 8 GPUs", bytes_s=3.125e9),
    "100/8": Network(assumption="100 Gb/s a machine of 8 GPUs", bytes_s=1.5625e9),
}

# GiB as torch sees them and as sold; TFLOP/s; GB/s of memory; keys of the tables above.
_TABLE = """
name           | GiB    | sold | bf16   | fp16   | fp32  | GB/s | link    | net
T4             | 14.56  | 16   | -      | 65     | 8.1   | 320  | pcie3   | 100/8
V100-16GB      | 15.77  | 16   | -      | 125    | 15.7  | 900  | nvlink2 | 100/8
V100-32GB      | 31.73  | 32   | -      | 125    | 15.7  | 900  | nvlink2 | 100/8
A10            | 22.06  | 24   | 125    | 125    | 31.2  | 600  | pcie4   | 100/8
A10G           | 22.06  | 24   | 70     | 70     | 35    | 600  | pcie4   | 100/8
A40            | 44.34  | 48   | 149.7  | 149.7  | 37.4  | 696  | pcie4   | 200/8
A100-40GB      | 39.39  | 40   | 312    | 312    | 19.5  | 1555 | nvlink3 | 200
A100-40GB-PCIe | 39.39  | 40   | 312    | 312    | 19.5  | 1555 | pcie4   | 200/8
A100-80GB      | 79.14  | 80   | 312    | 312    | 19.5  | 2039 | nvlink3 | 200
A100-80GB-PCIe | 79.14  | 80   | 312    | 312    | 19.5  | 1935 | pcie4   | 200/8
L4             | 21.96  | 24   | 121    | 121    | 30.3  | 300  | pcie4   | 100/8
L40            | 44.39  | 48   | 181    | 181    | 90.5  | 864  | pcie4   | 200/8
L40S           | 44.39  | 48   | 362    | 362    | 91.6  | 864  | pcie4   | 200/8
H100-80GB      | 79.10  | 80   | 989.4  | 989.4  | 66.9  | 3352 | nvlink4 | 400
H100-PCIe      | 79.10  | 80   | 756    | 756    | 51    | 2039 | pcie5   | 200/8
H100-NVL       | 93.02  | 94   | 835    | 835    | 60    | 3938 | pcie5   | 200/8
H200           | 139.72 | 141  | 989.4  | 989.4  | 66.9  | 4800 | nvlink4 | 400
B200           | 178.35 | 180  | 2250   | 2250   | 75    | 8000 | nvlink5 | 400
MI300X         | 191.69 | 192  | 1307.4 | 1307.4 | 163.4 | 5300 | fabric  | 400
RTX-3090       | 23.55  | 24   | 71     | 71     | 35.6  | 936  | pcie4   | 100/8
RTX-4090       | 23.52  | 24   | 165.2  | 165.2  | 82.6  | 1008 | pcie4   | 100/8
RTX-5090       | 31.36  | 32   | 209.5  | 209.5  | 104.8 | 1792 | pcie5   | 100/8
RTX-A6000      | 47.40  | 48   | 154.8  | 154.8  | 38.7  | 768  | pcie4   | 100/8
RTX-6000-Ada   | 47.40  | 48   | 364.2  | 364.2  | 91.1  | 960  | pcie4   | 100/8
"""

# Where the driver's name is not ours in lower case with spaces.
_DRIVER_NAMES = {
    "T4": r"(tesla )?t4",
    "V100-16GB": r"(tesla )?v100-sxm\d-16gb",
    "V100-32GB": r"(tesla )?v100-sxm\d-32gb(-ls)?",
    "A100-40GB": r"a100-sxm4-40gb",
    "A100-40GB-PCIe": r"a100-pcie-40gb",
    "A100-80GB": r"a100-sxm4-80gb",
    "A100-80GB-PCIe": r"a100 80gb pcie",
    "H100-80GB": r"h100 80gb hbm3",
    "H100-PCIe": r"h100 pcie|h100 80gb hbm2e",
    "MI300X": r"mi300x( oam| vf)?",
    "RTX-3090": r"geforce rtx 3090",
    "RTX-4090": r"geforce rtx 4090",
    "RTX-5090": r"geforce rtx 5090",
    "RTX-6000-Ada": r"rtx 6000 ada generation",
}
_SOURCES = {
    "B200": "NVIDIA HGX B200 data sheet",
    "MI300X": "AMD Instinct MI300X data sheet",
    "RTX-3090": "NVIDIA Ampere GA102 architecture white paper",
    "RTX-4090": "NVIDIA Ada architecture white paper",
    "RTX-5090": "NVIDIA RTX Blackwell architecture white paper",
    "RTX-A6000": "NVIDIA RTX A6000 data sheet",
    "RTX-6000-Ada": "NVIDIA RTX 6000 Ada data sheet",
}


def _read(row: str) -> GpuModel:
    cells = (cell.strip() for cell in row.split("|"))
    name, seen, sold, bf16, fp16, fp32, bandwidth, link, network = cells
    return GpuModel(
        name=name,
        driver_name=re.compile(_DRIVER_NAMES.get(name, name.lower().replace("-", " "))),
        memory_bytes=int(float(seen) * 2**30),
        nominal_memory_bytes=int(sold) * 2**30,
        bf16_flops=None if bf16 == "-" else float(bf16) * 1e12,
        fp16_flops=float(fp16) * 1e12,
        fp32_flops=float(fp32) * 1e12,
        bandwidth_bytes_s=float(bandwidth) * 1e9,
        link=_LINKS[link],
        network=_NETWORKS[network],
        source=_SOURCES.get(name, f"NVIDIA {name.split('-')[0]} data sheet"),
    )


CATALOGUE = tuple(_read(row) for row in _TABLE.strip().splitlines()[1:])
"""Every GPU that can be planned for."""

# What people write, without spaces, dashes, `NVIDIA`, `GeForce`, `Tesla` and `Instinct`.
_ALIASES = {
    "h100": "H100-80GB",
    "h100sxm": "H100-80GB",
    "h100sxm5": "H100-80GB",
    "h10080gbsxm": "H100-80GB",
    "h10080gbpcie": "H100-PCIe",
    "a100": "A100-80GB",
    "a100sxm": "A100-80GB",
    "a10080gbsxm": "A100-80GB",
    "a10040gbsxm": "A100-40GB",
    "a100pcie": "A100-80GB-PCIe",
    "h100nvl94gb": "H100-NVL",
    "h200sxm": "H200",
    "v100": "V100-32GB",
    "a6000": "RTX-A6000",
    "rtx6000": "RTX-6000-Ada",
    "6000ada": "RTX-6000-Ada",
    "3090": "RTX-3090",
    "4090": "RTX-4090",
    "5090": "RTX-5090",
}
_VENDOR = re.compile(r"^(nvidia|amd|tesla|instinct|geforce)+")


def find(name: str) -> GpuModel:
    """Returns the GPU of that name, whatever its case and however its words are joined.

    Args:
        name: A name of the catalogue, a driver's name, or a short form: `H100` is the 80 GB one on
            an SXM board, `A100` the 80 GB one, `4090` the GeForce.

    Raises:
        HardwareError: There is none; the error lists the catalogue.
    """
    short = _short(name)
    known = {_short(model.name): model for model in CATALOGUE}
    model = known.get(short) or known.get(_short(_ALIASES.get(short, ""))) or of_driver(name)
    if model is not None:
        return model
    near = difflib.get_close_matches(short, [*known, *_ALIASES], n=1, cutoff=0.5)
    closest = known.get(near[0]) or known[_short(_ALIASES[near[0]])] if near else None
    raise HardwareError(
        f"no GPU {name!r} in the catalogue",
        allowed=", ".join(model.name for model in CATALOGUE),
        todo=f"did you mean {closest.name}?" if closest else "",
    )


def of_driver(name: str, memory_bytes: int | None = None) -> GpuModel | None:
    """Returns the GPU that the driver lists by that name.

    Args:
        name: The driver's name, such as `NVIDIA H100 80GB HBM3`.
        memory_bytes: Its memory as the driver tells it. A slice of a GPU, or a card with more
            memory than it was sold with, is not the GPU of the catalogue.

    Returns:
        None for a GPU that is not in the catalogue.
    """
    plain = re.sub(r"^(nvidia|amd instinct) ", "", " ".join(name.lower().split()))
    for model in CATALOGUE:
        if model.driver_name.fullmatch(plain):
            share = 1.0 if memory_bytes is None else memory_bytes / model.nominal_memory_bytes
            return model if 0.85 < share < 1.02 else None
    return None


def _short(name: str) -> str:
    return _VENDOR.sub("", re.sub(r"[\s_-]+", "", name.lower()))

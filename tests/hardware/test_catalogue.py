"""The GPU catalogue: its figures agree with each other, and any usual name finds its GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sailplan.errors import HardwareError
from sailplan.hardware.catalogue import CATALOGUE, GpuModel, find, of_driver

MIB, GIB = 2**20, 2**30

DRIVER_NAMES = {
    "Tesla T4": ("T4", 15360 * MIB),
    "NVIDIA T4": ("T4", 15360 * MIB),
    "Tesla V100-SXM2-16GB": ("V100-16GB", 16384 * MIB),
    "Tesla V100-SXM2-32GB": ("V100-32GB", 32768 * MIB),
    "NVIDIA A10": ("A10", 23028 * MIB),
    "NVIDIA A10G": ("A10G", 23028 * MIB),
    "NVIDIA A40": ("A40", 46068 * MIB),
    "NVIDIA A100-SXM4-40GB": ("A100-40GB", 40960 * MIB),
    "NVIDIA A100-PCIE-40GB": ("A100-40GB-PCIe", 40960 * MIB),
    "NVIDIA A100-SXM4-80GB": ("A100-80GB", 81920 * MIB),
    "NVIDIA A100 80GB PCIe": ("A100-80GB-PCIe", 81920 * MIB),
    "NVIDIA L4": ("L4", 23034 * MIB),
    "NVIDIA L40": ("L40", 46068 * MIB),
    "NVIDIA L40S": ("L40S", 46068 * MIB),
    "NVIDIA H100 80GB HBM3": ("H100-80GB", 81559 * MIB),
    "NVIDIA H100 PCIe": ("H100-PCIe", 81559 * MIB),
    "NVIDIA H100 NVL": ("H100-NVL", 95830 * MIB),
    "NVIDIA H200": ("H200", 143771 * MIB),
    "NVIDIA B200": ("B200", 183359 * MIB),
    "AMD Instinct MI300X": ("MI300X", 192 * GIB),
    "AMD Instinct MI300X VF": ("MI300X", 192 * GIB),
    "NVIDIA GeForce RTX 3090": ("RTX-3090", 24576 * MIB),
    "NVIDIA GeForce RTX 4090": ("RTX-4090", 24564 * MIB),
    "NVIDIA GeForce RTX 5090": ("RTX-5090", 32607 * MIB),
    "NVIDIA RTX A6000": ("RTX-A6000", 49140 * MIB),
    "NVIDIA RTX 6000 Ada Generation": ("RTX-6000-Ada", 49140 * MIB),
}
"""What drivers call the GPUs, and the memory that they list."""

SPARSE_BF16_TFLOPS = {
    "A10": 250,
    "A10G": 140,
    "A40": 299.4,
    "A100-40GB": 624,
    "A100-80GB": 624,
    "L4": 242,
    "L40": 362,
    "L40S": 733,
    "H100-80GB": 1979,
    "H100-PCIe": 1513,
    "H100-NVL": 1671,
    "H200": 1979,
    "B200": 4500,
    "MI300X": 2614.9,
    "RTX-3090": 142,
    "RTX-4090": 330.4,
    "RTX-5090": 419,
    "RTX-A6000": 309.7,
    "RTX-6000-Ada": 728.5,
}
"""What the data sheets print first, with structured sparsity."""


def by_name(model: GpuModel) -> str:
    return model.name


@pytest.mark.parametrize(("name", "sparse"), SPARSE_BF16_TFLOPS.items())
def test_bf16_figure_is_half_of_the_sparse_one(name: str, sparse: float) -> None:
    bf16_flops = find(name).bf16_flops
    assert bf16_flops == pytest.approx(sparse * 1e12 / 2, rel=0.02)


@pytest.mark.parametrize("model", CATALOGUE, ids=by_name)
def test_figures_of_a_gpu_agree_with_each_other(model: GpuModel) -> None:
    assert 0.9 < model.memory_bytes / model.nominal_memory_bytes < 1
    assert model.fp32_flops < model.fp16_flops < 40 * model.fp32_flops
    assert model.bf16 == (model.bf16_flops is not None)
    assert model.bf16_flops in (None, model.fp16_flops)
    assert model.network.bytes_s < model.link.bytes_s < model.bandwidth_bytes_s
    assert model.source


def test_gpus_without_bfloat16_are_those_before_ampere() -> None:
    assert [model.name for model in CATALOGUE if not model.bf16] == ["T4", "V100-16GB", "V100-32GB"]


@pytest.mark.parametrize("name", DRIVER_NAMES)
def test_driver_name_leads_to_its_gpu_with_less_memory_than_the_driver_lists(name: str) -> None:
    expected, listed = DRIVER_NAMES[name]
    model = of_driver(name, listed)
    assert model is not None
    assert model.name == expected
    assert model.memory_bytes < listed
    assert find(name) is model


def test_every_gpu_has_a_driver_name_that_the_tests_know() -> None:
    assert {name for name, _ in DRIVER_NAMES.values()} == {model.name for model in CATALOGUE}


@pytest.mark.parametrize(
    ("name", "memory_bytes"),
    [
        ("NVIDIA GeForce RTX 3090 Ti", 24 * GIB),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16 * GIB),
        ("NVIDIA GeForce RTX 4090 D", 24 * GIB),
        ("NVIDIA GeForce RTX 4090", 48 * GIB),  # rebuilt with twice the memory
        ("NVIDIA A100-SXM4-80GB", 10 * GIB),  # a slice
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10 * GIB),
        ("NVIDIA H20", 96 * GIB),
        ("", 0),
    ],
)
def test_gpu_that_only_resembles_one_of_the_catalogue_is_not_it(
    name: str, memory_bytes: int
) -> None:
    assert of_driver(name, memory_bytes) is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("H100", "H100-80GB"),
        ("h100", "H100-80GB"),
        ("H100-80GB", "H100-80GB"),
        ("nvidia h100 80gb", "H100-80GB"),
        ("H100_SXM5", "H100-80GB"),
        ("H100 PCIe", "H100-PCIe"),
        ("A100", "A100-80GB"),
        ("a100 40gb", "A100-40GB"),
        ("A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA L4", "L4"),
        ("4090", "RTX-4090"),
        ("rtx4090", "RTX-4090"),
        ("GeForce RTX 4090", "RTX-4090"),
        ("RTX 6000 Ada", "RTX-6000-Ada"),
        ("A6000", "RTX-A6000"),
        ("Tesla V100", "V100-32GB"),
        ("mi300x", "MI300X"),
    ],
)
def test_usual_name_finds_its_gpu(written: str, expected: str) -> None:
    assert find(written).name == expected


@pytest.mark.parametrize("model", CATALOGUE, ids=by_name)
def test_own_name_finds_the_gpu(model: GpuModel) -> None:
    assert find(model.name) is model
    assert find(model.name.lower().replace("-", " ")) is model


def test_unknown_gpu_is_refused_with_the_catalogue_and_the_nearest_name() -> None:
    with pytest.raises(HardwareError) as caught:
        find("H100-90GB")
    message = str(caught.value)
    assert "no GPU 'H100-90GB' in the catalogue" in message
    assert all(model.name in message for model in CATALOGUE)
    assert "did you mean H100-80GB?" in message


@pytest.mark.parametrize("name", ["", "potato", "nvidia", "--"])
def test_name_that_resembles_no_gpu_is_refused_without_a_guess(name: str) -> None:
    with pytest.raises(HardwareError, match="in the catalogue") as caught:
        find(name)
    assert "did you mean" not in str(caught.value)


def test_catalogue_is_read_without_torch() -> None:
    program = "import sys, sailplan.hardware.catalogue; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

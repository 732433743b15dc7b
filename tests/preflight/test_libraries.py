"""Libraries that are broken for real: wrong wheels, missing symbols, missing libraries."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from sailplan.hardware.detect import Detected
from sailplan.preflight import flash, installed, quantiser
from sailplan.preflight.finding import Subject
from tests.cli.test_main import sailplan
from tests.launcher.support import machine
from tests.preflight.machines import doctor, finding, gpu, in_front, run_file, run_of, with_gpus

BUILD = installed.torch_build()


def metadata(path: Path, name: str, version: str, *requires: str) -> Path:
    """Makes a folder look like one where a package is installed."""
    info = path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    )
    return path


def shared_object(path: Path, source: str, *flags: str) -> Path:
    """Compiles C into a library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = path.with_suffix(".c")
    code.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(code), *flags], check=True)
    return path


# flash-attn


@pytest.fixture
def flash_of_another_torch(tmp_path: Path) -> Path:
    """A flash-attn whose native part was linked against a torch that had another symbol."""
    package = tmp_path / "flash" / "flash_attn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import flash_attn_2_cuda\n")
    symbol = "_ZN3c105ErrorC2ENS_14SourceLocationESs"  # c10::Error with the older std::string
    shared_object(
        tmp_path / "flash" / "flash_attn_2_cuda.so",
        f"extern void {symbol}(void);\n"
        f"void *PyInit_flash_attn_2_cuda(void) {{ {symbol}(); return 0; }}\n",
    )
    return tmp_path / "flash"


def test_flash_attention_that_lacks_a_symbol_is_found(flash_of_another_torch: Path) -> None:
    found = finding("flash.importing", in_front(flash_of_another_torch))
    assert found.mark == "failed"
    assert found.text.startswith("it was built against another torch (ImportError: ")
    assert "undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationESs" in found.text
    assert "--no-build-isolation" in found.fix
    assert "attn_implementation: sdpa" in found.fix


def test_flash_attention_of_another_torch_stops_a_launch_by_its_name_alone(
    tmp_path: Path, flash_of_another_torch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata(flash_of_another_torch, "flash-attn", "2.7.4.post1+cu12torch2.4cxx11abiFALSE")
    monkeypatch.syspath_prepend(flash_of_another_torch)
    flags = ["--launch.cpu", "true", "--attn_implementation", "flash_attention_2"]
    code, _, err = sailplan("train", str(run_file(tmp_path)), *flags)
    assert code == 5
    assert "error: flash-attn: 2.7.4.post1+cu12torch2.4cxx11abiFALSE was built for torch 2.4" in err
    assert not (tmp_path / "out").exists()


def test_flash_attention_that_is_asked_for_and_missing_is_found(tmp_path: Path) -> None:
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash-attn is installed")
    asked = Subject.of(run_of(tmp_path, "--attn_implementation", "flash_attention_2"))
    found = flash.version(asked)
    assert (found.mark, found.fix) == (
        "failed",
        "pip install 'sailplan[flash]', or write attn_implementation: sdpa",
    )
    assert flash.version(Subject.of(run_of(tmp_path))).mark == "ok"


@pytest.mark.parametrize(
    ("version", "torch"),
    [("2.8.3+cu12torch2.8cxx11abiTRUE", "2.8"), ("2.8.3", ""), ("2.6.0+cu122torch2.10", "2.10")],
)
def test_wheel_of_flash_attention_names_its_torch(version: str, torch: str) -> None:
    assert flash.torch_of(version) == torch


# bitsandbytes


@pytest.fixture
def bitsandbytes(tmp_path: Path) -> Path:
    """A copy of the installed bitsandbytes by links, without its CUDA libraries."""
    spec = importlib.util.find_spec("bitsandbytes")
    assert spec
    assert spec.origin
    real, copy = Path(spec.origin).parent, tmp_path / "bnb" / "bitsandbytes"
    copy.mkdir(parents=True)
    for path in real.iterdir():
        if path.suffix != ".so" or path.name.endswith("_cpu.so"):
            (copy / path.name).symlink_to(path)
    return copy


def test_native_library_that_is_no_library_is_found(bitsandbytes: Path) -> None:
    library = bitsandbytes / "libbitsandbytes_cpu.so"
    library.unlink()
    library.write_text("version https://git-lfs.github.com/spec/v1\n")
    found = finding("quantiser.native", in_front(bitsandbytes.parent))
    assert found.mark == "failed"
    assert "its native library does not load: libbitsandbytes_cpu.so: " in found.text
    assert "pip install --force-reinstall" in found.fix


@pytest.mark.skipif(not BUILD or not BUILD.cuda, reason="torch is built without CUDA")
def test_missing_libcudart_is_found_by_its_name(bitsandbytes: Path, tmp_path: Path) -> None:
    assert BUILD
    assert BUILD.cuda
    major, minor = BUILD.cuda
    runtime = shared_object(
        tmp_path / "libcudart.so.9", "void f(void) {}\n", "-Wl,-soname=libcudart.so.9"
    )
    shared_object(
        bitsandbytes / f"libbitsandbytes_cuda{major}{minor}.so",
        "extern void f(void); void get_context(void) { f(); }\n",
        str(runtime),
    )
    runtime.unlink()
    found = finding("quantiser.native", in_front(bitsandbytes.parent))
    assert found.mark == "failed"
    assert "libcudart.so.9: cannot open shared object file" in found.text
    assert "LD_LIBRARY_PATH" in found.fix


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("0.37.2", "twice the memory"),
        ("0.41.0", "8-bit optimizers"),
        ("0.45.0", "triton.ops"),
        ("0.48.0", "garbage"),
        ("0.48.1", ""),
        ("0.50.2", ""),
    ],
)
def test_version_that_is_known_to_be_bad_is_named_with_its_fault(version: str, fault: str) -> None:
    found = quantiser.known_fault(version)
    assert (fault in found) if fault else (found == "")


def test_bad_version_matters_only_where_the_run_quantises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(metadata(tmp_path / "old", "bitsandbytes", "0.48.0"))
    qlora = run_of(tmp_path, "--use_peft", "true", "--load_in_4bit", "true")
    assert quantiser.version(Subject.of(qlora)).mark == "failed"
    paged = run_of(tmp_path, "--optim", "paged_adamw_8bit")
    assert quantiser.version(Subject.of(paged)).mark == "failed"
    assert quantiser.version(Subject.of(run_of(tmp_path))).mark == "ok"


def test_library_for_cuda_is_the_next_of_its_major_version() -> None:
    there = {(12, 1): Path("a"), (12, 8): Path("b"), (13, 0): Path("c")}
    assert quantiser.library_for((12, 8), there) == Path("b")
    assert quantiser.library_for((12, 9), there) == Path("b")
    assert quantiser.library_for((12, 0), there) == Path("a")
    assert quantiser.library_for((11, 8), there) is None


# torch, its driver and NCCL


def test_driver_that_is_too_old_for_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    build = installed.TorchBuild(version="2.14.1+cu130", cuda=(13, 0), hip=None)
    monkeypatch.setattr(installed, "torch_build", lambda: build)
    found = installed.driver(with_gpus(gpu(), version="550.54.15", cuda=(12, 4)))
    assert found.mark == "failed"
    assert found.text == "550.54.15, up to CUDA 12.4, and torch was built for CUDA 13.0"
    assert "driver 580 or newer" in found.fix
    assert installed.driver(with_gpus(gpu(), cuda=(13, 1))).mark == "ok"


def test_torch_without_cuda_beside_a_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    build = installed.TorchBuild(version="2.14.1+cpu", cuda=None, hip=None)
    monkeypatch.setattr(installed, "torch_build", lambda: build)
    found = installed.torch(with_gpus(gpu()))
    assert (found.mark, found.text) == (
        "failed",
        "2.14.1+cpu, built for the CPU, beside NVIDIA L4",
    )


def test_torch_build_is_read_without_importing_it() -> None:
    torch = pytest.importorskip("torch")
    assert BUILD
    assert BUILD.version == str(torch.__version__)
    cuda = torch.version.cuda
    assert BUILD.cuda == (tuple(map(int, cuda.split(".")))[:2] if cuda else None)


def test_nccl_of_another_version_than_torch_wants_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        installed, "torch_build", lambda: installed.TorchBuild(version="2", cuda=(13, 0), hip=None)
    )
    folder = metadata(tmp_path, "torch", "2.0", "nvidia-nccl-cu13==2.30.7")
    monkeypatch.syspath_prepend(metadata(folder, "nvidia-nccl-cu13", "2.18.1"))
    found = installed.nccl(with_gpus(gpu()))
    assert found.mark == "failed"
    assert "nvidia-nccl-cu13 is 2.18.1 (needs ==2.30.7)" in found.text
    assert found.fix == "pip install 'nvidia-nccl-cu13==2.30.7'"


def test_library_that_is_too_old_is_found(tmp_path: Path) -> None:
    old = metadata(tmp_path, "trl", "0.9.6")
    metadata(old, "sailplan", "0.1.0", "trl>=1.16", "torch", "nowhere; extra == 'dev'")
    code, found = doctor("--quick", env=in_front(old))
    assert code == 5
    assert found["libraries"].text == "trl is 0.9.6 (needs >=1.16)"
    assert found["libraries"].fix == "pip install 'trl>=1.16'"


def test_machine_without_a_driver_is_told_and_is_no_fault() -> None:
    subject = Subject(
        machine=machine(),
        driver=Detected(value=None, reason="no NVIDIA driver answers"),
        environment={},
    )
    assert installed.driver(subject).mark == "not checked"

"""What is installed, read from files alone: Python, the libraries' versions, torch's build."""

from __future__ import annotations

import ast
import importlib.util
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.launcher.local import PACKAGES
from sailplan.preflight.finding import Finding, Subject, failed, ok, unchecked

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OLDEST_PYTHON = (3, 10)

OLDEST_DRIVER = {11: "450", 12: "525", 13: "580"}
"""CUDA's major version to the first Linux driver that runs all of its minor ones.
Source: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchBuild:
    """What the installed torch was built for."""

    version: str
    """Such as `2.14.1+cu130`."""
    cuda: tuple[int, int] | None
    """Its CUDA; None for a build without."""
    hip: str | None
    """Its ROCm; None for a build without."""

    @property
    def numbers(self) -> str:
        """The version without what was built in, such as `2.14.1`."""
        return self.version.partition("+")[0]


def torch_build() -> TorchBuild | None:
    """Returns the installed torch's build without importing it; None where there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        source = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
        values = dict(_constants(ast.parse(source)))
    except (OSError, SyntaxError):
        return None
    version, cuda, hip = (values.get(name) for name in ("__version__", "cuda", "hip"))
    numbers = str(cuda).split(".")[:2] if cuda else []
    return TorchBuild(
        version=str(version),
        cuda=(int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None,
        hip=str(hip) if hip else None,
    )


def _constants(tree: ast.Module) -> Iterator[tuple[str, object]]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets: list[ast.expr] = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant):
                yield target.id, node.value.value


def python(_: Subject) -> Finding:
    """Is Python new enough, and of 64 bits?"""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return failed(found, fix=f"make an environment of Python {oldest} or newer")
    if sys.maxsize < 2**32:
        return failed(f"{found} of 32 bits", fix="install a Python of 64 bits")
    return ok(found)


def libraries(_: Subject) -> Finding:
    """Are the libraries there, in versions that sailplan takes?"""
    from packaging.requirements import Requirement

    try:
        written = metadata.requires("sailplan") or []
    except metadata.PackageNotFoundError:
        return unchecked("sailplan itself is not installed, so that nothing says what it needs")
    requirements = [Requirement(text) for text in written]
    wanted = [one for one in requirements if one.marker is None or one.marker.evaluate()]
    wrong = [text for one in wanted if (text := _wrong(one))]
    if wrong:
        names = " ".join(f"'{one}'" for one in wanted if _wrong(one))
        return failed(", ".join(wrong), fix=f"pip install {names}")
    shown = [f"{name} {metadata.version(name)}" for name in PACKAGES if _is_installed(name)]
    return ok(", ".join(shown))


def _wrong(requirement: Requirement) -> str:
    """Returns what is wrong with a requirement here, or nothing."""
    if not _is_installed(requirement.name):
        return f"{requirement.name} is missing"
    found = metadata.version(requirement.name)
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{requirement.name} is {found} (needs {requirement.specifier})"


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def torch(subject: Subject) -> Finding:
    """Was torch built for what this machine has?"""
    build = torch_build()
    if build is None:
        return failed("torch is not installed", fix="pip install torch")
    made_for = f"ROCm {build.hip}" if build.hip else _shown(build.cuda)
    text = f"{build.version}, built for {made_for}"
    if subject.machine.gpus.value and not subject.on_cpu and not build.cuda:
        gpu = subject.machine.gpus.value[0].name
        return failed(f"{text}, beside {gpu}", fix="install torch for CUDA: see pytorch.org")
    return ok(text)


def driver(subject: Subject) -> Finding:
    """Does the driver run the CUDA that torch was built for?"""
    found, build = subject.driver.value, torch_build()
    if found is None:
        return unchecked(subject.driver.reason)
    text = f"{found.version}, up to {_shown(found.cuda_version)}"
    if build is None or build.cuda is None or subject.on_cpu:
        return ok(text)
    if found.cuda_version[0] < build.cuda[0]:
        major = build.cuda[0]
        newer = f"driver {OLDEST_DRIVER[major]}" if major in OLDEST_DRIVER else "a driver"
        return failed(
            f"{text}, and torch was built for {_shown(build.cuda)}",
            fix=f"install {newer} or newer, or torch for CUDA {found.cuda_version[0]}",
        )
    return ok(f"{text}, which runs torch's {_shown(build.cuda)}")


def nccl(subject: Subject) -> Finding:
    """Is NCCL the one that torch was built with?"""
    from packaging.requirements import Requirement

    build = torch_build()
    if build is None or build.cuda is None:
        return unchecked("torch was built without CUDA, and so without NCCL")
    try:
        written = [Requirement(text) for text in metadata.requires("torch") or []]
    except metadata.PackageNotFoundError:
        written = []
    wanted = next((one for one in written if one.name.startswith("nvidia-nccl")), None)
    if wanted is None:
        return ok("built into torch")
    wrong = _wrong(wanted)
    if wrong and not subject.on_cpu:
        return failed(
            f"torch and NCCL do not agree: {wrong}",
            fix=f"pip install '{wanted.name}{wanted.specifier}'",
        )
    if wrong:
        return unchecked(f"{wrong}, which training on the CPU does not use")
    shadow = subject.environment.get("LD_PRELOAD", "")
    if "nccl" in shadow:
        return failed(f"LD_PRELOAD puts {shadow} before torch's NCCL", fix="unset LD_PRELOAD")
    return ok(f"{metadata.version(wanted.name)}, as torch was built with")


def _shown(cuda: tuple[int, int] | None) -> str:
    return f"CUDA {cuda[0]}.{cuda[1]}" if cuda else "the CPU"

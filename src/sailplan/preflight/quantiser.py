"""bitsandbytes: is its version sound, and does its native library load and quantise rightly?"""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path

from sailplan.preflight import children
from sailplan.preflight.finding import Finding, Subject, failed, ok
from sailplan.preflight.installed import torch_build

FIELDS = ("load_in_4bit", "load_in_8bit")

PROBE_TIMEOUT_S = 120.0

KNOWN_BAD = (
    (
        "<0.39.1",
        "its 8-bit models take twice the memory once saved",
        "its changelog of 0.39.1",
    ),
    (
        "<0.41.1",
        "its 8-bit optimizers train wrongly",
        "transformers' Trainer warns of it",
    ),
    (
        "<0.45.1",
        "it cannot be imported beside triton 3.2 or newer (No module named 'triton.ops')",
        "github.com/bitsandbytes-foundation/bitsandbytes/pull/1413",
    ),
    (
        "==0.48.0",
        "it loads saved 8-bit models wrongly, which then answer with garbage",
        "github.com/bitsandbytes-foundation/bitsandbytes/issues/1775",
    ),
)
"""Versions, what is wrong with them, and where that is written."""


def is_needed(subject: Subject) -> bool:
    """Says whether the run quantises, or steps with an optimizer of bitsandbytes'."""
    optimizer = str(subject.run.get("optim") if subject.run else "")
    return subject.wants(*FIELDS) or any(
        mark in optimizer for mark in ("8bit", "bnb", "paged", "ademamix")
    )


def version(subject: Subject) -> Finding:
    """Is the version a sound one, with a library for torch's CUDA?"""
    if not is_needed(subject):
        return ok("not needed: the run does not quantise")
    try:
        found = metadata.version("bitsandbytes")
    except metadata.PackageNotFoundError:
        return failed("bitsandbytes is not installed", fix="pip install bitsandbytes")
    fault = known_fault(found)
    if fault:
        return failed(f"{found}: {fault}", fix="pip install --upgrade bitsandbytes")
    build, libraries = torch_build(), available(_folder())
    if build is None or build.cuda is None or subject.on_cpu:
        return ok(found)
    if not any(cuda[0] == build.cuda[0] for cuda in libraries):
        known = ", ".join(f"{major}.{minor}" for major, minor in sorted(libraries)) or "none"
        cuda = f"{build.cuda[0]}.{build.cuda[1]}"
        return failed(
            f"{found} has no library for torch's CUDA {cuda} (it has: {known})",
            fix="pip install --upgrade bitsandbytes, or a torch for one of these",
        )
    return ok(found)


def known_fault(found: str) -> str:
    """Returns what is wrong with a version of bitsandbytes, with its source; else nothing."""
    from packaging.specifiers import SpecifierSet

    faults = (
        f"{fault} ({source})"
        for versions, fault, source in KNOWN_BAD
        if SpecifierSet(versions).contains(found, prereleases=True)
    )
    return next(faults, "")


def available(folder: Path | None) -> dict[tuple[int, int], Path]:
    """Returns bitsandbytes' libraries by the version of CUDA that each was built for."""
    found: dict[tuple[int, int], Path] = {}
    for path in folder.glob("libbitsandbytes_cuda*.so") if folder else ():
        match = re.search(r"cuda(\d\d)(\d+)", path.name)
        if match:
            found[int(match[1]), int(match[2])] = path
    return found


def library_for(cuda: tuple[int, int], libraries: dict[tuple[int, int], Path]) -> Path | None:
    """Returns the library that bitsandbytes takes: this CUDA's, else the next of its major."""
    same = sorted(version for version in libraries if version[0] == cuda[0])
    lower = [version for version in same if version <= cuda]
    chosen = lower[-1:] or same[:1]
    return libraries[chosen[0]] if chosen else None


def native(subject: Subject) -> Finding:
    """Does the native library load, and quantise and come back?"""
    if not is_needed(subject):
        return ok("not needed: the run does not quantise")
    folder, build = _folder(), torch_build()
    if folder is None:
        return failed("bitsandbytes is not installed", fix="pip install bitsandbytes")
    library = library_for(build.cuda, available(folder)) if build and build.cuda else None
    child = children.ask(
        "sailplan.preflight.probes.quantiser",
        *([str(library)] if library else []),
        environment=subject.environment,
        label="trying bitsandbytes",
        timeout_s=PROBE_TIMEOUT_S,
    )
    again = "pip install --force-reinstall --no-deps bitsandbytes"
    if child.answer is None:
        return failed(f"it cannot be used: {child.reason}", fix=again, detail=child.last_words)
    found = child.answer
    if found["load_error"]:
        return failed(
            f"its native library does not load: {found['load_error']}",
            fix=_cure(found["load_error"]) or again,
        )
    if found["trouble"]:
        return failed(f"it quantises wrongly on {found['device']}: {found['trouble']}", fix=again)
    text = f"{found['library']} quantises rightly on {found['device']}"
    if library is None or found["library"] == library.name:
        return ok(text)
    if found["cuda_error"]:
        return failed(
            f"{library.name}, which GPUs need, does not load: {found['cuda_error']}",
            fix=_cure(found["cuda_error"]) or again,
        )
    return ok(f"{text}; {library.name} loads too, and was not tried: no GPU")


def _cure(error: str) -> str:
    """Returns what helps where a library of CUDA's is missing."""
    match = re.match(r"(lib(?:cudart|cublas|cublasLt)[.\w]*): cannot open", error)
    if not match:
        return ""
    return (
        f"{match[1]} is no longer where the loader looks: install torch again, which brings "
        "it, or put its folder on LD_LIBRARY_PATH"
    )


def _folder() -> Path | None:
    spec = importlib.util.find_spec("bitsandbytes")
    return Path(spec.origin).parent if spec and spec.origin else None

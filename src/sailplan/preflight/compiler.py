"""DeepSpeed's compiled parts: what they need, and that they really come out of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sailplan.hardware.detect import detect_cpu_zero
from sailplan.preflight import children
from sailplan.preflight.finding import Finding, Subject, failed, ok, unchecked

PROBE_TIMEOUT_S = 900.0
"""Two parts take minutes on a busy machine."""

COMMUNICATION, OPTIMIZER = "ShareMemCommBuilder", "CPUAdamBuilder"
"""DeepSpeed's builders: of the ranks' communication on the CPU, of the optimizer in host memory."""

_INSTALL = "apt-get install g++ python3-dev, or your system's packages of these names"


def parts(subject: Subject) -> list[str]:
    """Returns what the run's first start compiles."""
    found = [COMMUNICATION] if subject.on_cpu and _shards(subject) else []
    return [*found, OPTIMIZER] if subject.strategy.endswith("offload") else found


def _shards(subject: Subject) -> bool:
    return subject.run is None or subject.strategy.startswith("zero")


def tools(subject: Subject) -> Finding:
    """Are compiler, Python's headers and ninja there?"""
    if not parts(subject) and subject.run is not None:
        return ok(f"not needed: {subject.strategy} compiles nothing here")
    found = detect_cpu_zero(subject.environment)
    if not found.value:
        return failed(found.reason, fix=_INSTALL)
    beside = Path(sys.executable).parent  # which the launcher puts on PATH too
    ninja = shutil.which("ninja", path=f"{beside}:{subject.environment.get('PATH', '')}")
    if ninja is None:
        return failed("ninja is not there", fix="pip install ninja")
    return ok(f"{found.reason}, and so is {ninja}")


def compiling(subject: Subject) -> Finding:
    """Does DeepSpeed compile what the run needs, and how long does a first start take?"""
    wanted = parts(subject)
    if not wanted:
        return ok(f"not needed: {subject.strategy} compiles nothing here")
    if tools(subject).mark != "ok":
        return unchecked("what it takes is not there (see the line above)")
    environment = {**subject.environment}
    if subject.on_cpu:
        environment["DS_ACCELERATOR"] = "cpu"
    path = environment.get("PATH", "")
    environment["PATH"] = f"{Path(sys.executable).parent}:{path}"
    child = children.ask(
        "sailplan.preflight.probes.compiler",
        *wanted,
        environment=environment,
        label="compiling DeepSpeed's parts",
        timeout_s=PROBE_TIMEOUT_S,
    )
    if child.answer is None:
        return failed(
            f"it does not compile: {child.reason}",
            fix=f"{_INSTALL}; `ds_report` tells more",
            detail=child.last_words,
        )
    found, seconds = child.answer, child.answer["seconds"]
    if found["compiled"]:
        text = f"compiled in {seconds:.0f} s, and kept in {found['folder']} for every start"
        return ok(text)
    return ok(f"kept in {found['folder']} from an earlier start, loaded in {seconds:.1f} s")

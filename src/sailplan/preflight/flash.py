"""flash-attn: is it there where it is asked for, and was it built for this torch?"""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata

from sailplan.model.attention import FLASH
from sailplan.preflight import children
from sailplan.preflight.finding import Finding, Subject, failed, ok, unchecked
from sailplan.preflight.installed import torch_build

PROBE_TIMEOUT_S = 120.0

_AGAIN = "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps flash-attn"
_OTHERWISE = "or write attn_implementation: sdpa"


def version(subject: Subject) -> Finding:
    """Is flash-attn there, and written to be for this torch?"""
    settled = _settled(subject)
    if settled is not None:
        return settled
    try:
        found = metadata.version("flash-attn")
    except metadata.PackageNotFoundError:
        return ok("of no known version")
    build, made_for = torch_build(), torch_of(found)
    if build is not None and made_for and not f"{build.numbers}.".startswith(f"{made_for}."):
        return failed(
            f"{found} was built for torch {made_for}, and {build.numbers} is installed",
            fix=f"{_AGAIN}; {_OTHERWISE}",
        )
    return ok(found)


def torch_of(version: str) -> str:
    """Returns the torch that a wheel of flash-attn says it was built for, such as `2.8`."""
    match = re.search(r"torch(\d+\.\d+)", version)
    return match[1] if match else ""


def importing(subject: Subject) -> Finding:
    """Can it be imported beside this torch, and does it compute rightly on the GPU?"""
    settled = _settled(subject)
    if settled is not None:
        return settled
    child = children.ask(
        "sailplan.preflight.probes.flash",
        environment=subject.environment,
        label="trying flash-attn",
        timeout_s=PROBE_TIMEOUT_S,
    )
    if child.answer is None:
        text = f"it cannot be imported: {child.reason}"
        if "undefined symbol" in child.words:
            text = f"it was built against another torch ({child.reason})"
        return failed(text, fix=f"{_AGAIN}; {_OTHERWISE}", detail=child.last_words)
    if child.answer["trouble"]:
        return failed(child.answer["trouble"], fix=_OTHERWISE.removeprefix("or "))
    if not child.answer["tried"]:
        return unchecked("it can be imported; no GPU to try it on")
    return ok("computes what torch's own attention does")


def _settled(subject: Subject) -> Finding | None:
    """Returns what can be said without looking at it; None where it matters how it is."""
    asked = subject.run.get("attn_implementation") if subject.run else None
    if importlib.util.find_spec("flash_attn") is None:
        if asked == FLASH:
            got = f"attn_implementation is {FLASH}, and flash-attn is not installed"
            return failed(got, fix=f"pip install 'sailplan[flash]', {_OTHERWISE}")
        return ok("not installed, and not needed: torch's own attention (sdpa) is taken")
    if subject.run is None or asked == FLASH:
        return None
    if asked not in (None, "auto"):
        return ok(f"not needed: attn_implementation is {asked}")
    return ok("not needed on the CPU") if subject.on_cpu else None

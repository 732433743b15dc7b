"""Which precisions this machine has: what a run asks for and the device lacks is switched off.

transformers raises on `tf32` without an Ampere GPU and on `bf16` without either an Ampere GPU or
`use_cpu`; `fp16` on a CPU is accepted and about thirty times slower than fp32. A run file written
for a cluster should still start on a laptop, so each of them is turned off here with a note,
before the `SFTConfig` is made.

The fused AdamW and bitsandbytes' 8-bit optimizers run on CPUs too (the paged ones unpaged).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from sailplan.run.config import Run

_AMPERE = (8, 0)
_SETTINGS = {"tf32": "tf32", "bf16": "bf16", "fp16": "fp16"} | {
    "bf16_full_eval": "bf16",
    "fp16_full_eval": "fp16",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What the device that this process trains on can compute in."""

    kind: str
    """`cuda`, `mps` or `cpu`."""
    name: str
    """The device in words, for notes."""
    bf16: bool
    fp16: bool
    tf32: bool


def find_device(*, use_cpu: bool = False) -> Device:
    """Returns the device that this process will train on, without initialising it.

    Args:
        use_cpu: The run's `use_cpu`; accelerate's `ACCELERATE_USE_CPU` counts as well.
    """
    import torch

    use_cpu = use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    accelerator = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return Device(kind="cpu", name="this CPU", bf16=bf16, fp16=False, tf32=False)
    if accelerator.type != "cuda":
        name = f"this {accelerator.type} device"
        return Device(kind=accelerator.type, name=name, bf16=False, fp16=False, tf32=False)
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    ampere = torch.cuda.get_device_capability(index) >= _AMPERE
    name = torch.cuda.get_device_name(index)
    return Device(kind="cuda", name=name, bf16=ampere, fp16=True, tf32=ampere)


def fit_to_device(run: Run, device: Device | None = None) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields of `SFTConfig` that must change on this device, and a note for each.

    Args:
        run: The run; what it writes is kept wherever the device can do it.
        device: The device; found where not given.
    """
    return fit(run.explicit, device or find_device(use_cpu=bool(run.get("use_cpu"))))


def fit(written: Mapping[str, Any], device: Device) -> tuple[dict[str, Any], list[str]]:
    """Returns the changes to the `written` fields that `device` calls for, and a note for each.

    TRL turns `bf16` on where neither it nor `fp16` is written. That default holds on GPUs that
    have bf16; a CPU trains in it only where the run file says so.
    """
    changes: dict[str, Any] = {}
    notes = []
    if device.kind == "cpu" and not written.get("use_cpu"):
        changes["use_cpu"] = True
    for name, ability in _SETTINGS.items():
        if written.get(name) and not getattr(device, ability):
            changes[name] = False
            notes.append(f"{name}: switched off, {device.name} does not have it")
    if "bf16" in changes and device.fp16:
        notes.append("fp16: true would train in half precision here")
    if written.get("bf16") is None:
        if "fp16" in changes:
            changes["bf16"] = False
        elif not written.get("fp16") and (device.kind == "cpu" or not device.bf16):
            changes["bf16"] = False
            how = "; write bf16: true to use it" if device.bf16 else ""
            notes.append(f"bf16: TRL's default is off on {device.name}{how}")
    return changes, notes


def mixed_precision(run: Run, device: Device | None = None) -> torch.dtype | None:
    """Returns what the run's mixed precision computes in, None where it has none.

    Args:
        run: The run.
        device: The device; found where not given.
    """
    import torch

    flags = {**run.explicit, **fit_to_device(run, device)[0]}
    if flags.get("fp16"):
        return torch.float16
    # TRL trains in bf16 where neither precision is written.
    return None if flags.get("bf16") is False else torch.bfloat16

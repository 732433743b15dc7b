"""What a device lacks is switched off before TRL's arguments are made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sailplan.model.precision import Device, find_device, fit, fit_to_device, mixed_precision
from sailplan.run.config import Run

CPU = Device(kind="cpu", name="this CPU", bf16=True, fp16=False, tf32=False)
OLD_CPU = Device(kind="cpu", name="this CPU", bf16=False, fp16=False, tf32=False)
V100 = Device(kind="cuda", name="Tesla V100", bf16=False, fp16=True, tf32=False)
H100 = Device(kind="cuda", name="NVIDIA H100", bf16=True, fp16=True, tf32=True)


def test_fit_device_has_everything_changes_nothing() -> None:
    assert fit({"bf16": True, "tf32": True}, H100) == ({}, [])
    assert fit({}, H100) == ({}, [])


def test_fit_cpu_switches_off_what_it_lacks_and_says_so() -> None:
    changes, notes = fit({"tf32": True, "fp16": True}, CPU)

    assert changes == {"use_cpu": True, "tf32": False, "fp16": False, "bf16": False}
    assert [note.split(":")[0] for note in notes] == ["tf32", "fp16"]


@pytest.mark.parametrize(
    ("written", "device", "bf16", "note"),
    [
        ({"bf16": True}, CPU, None, None),
        ({"bf16": True}, OLD_CPU, False, "bf16: switched off, this CPU does not have it"),
        ({}, CPU, False, "write bf16: true to use it"),
        ({"bf16": False}, CPU, None, None),
        ({"bf16": True}, V100, False, "fp16: true would train in half precision"),
        ({}, V100, False, "bf16: TRL's default is off on Tesla V100"),
        ({"fp16": True}, V100, None, None),
    ],
)
def test_fit_bf16_follows_what_is_written_and_what_the_device_has(
    written: dict[str, bool], device: Device, bf16: bool | None, note: str | None
) -> None:
    changes, notes = fit(written, device)

    assert changes.get("bf16") is bf16
    assert (note is None and not notes) or note in "\n".join(notes)


def test_fit_to_device_flags_of_a_gpu_run_make_arguments_on_a_cpu(tmp_path: Path) -> None:
    from trl import SFTConfig

    flags = ["--output_dir", str(tmp_path), "--tf32", "true", "--bf16_full_eval", "--fp16"]
    run = Run.from_flags([*flags, "--use_cpu", "--report_to", "none"])

    changes, notes = fit_to_device(run)
    args = run.arguments(SFTConfig, **changes)

    assert (args.tf32, args.fp16, args.bf16) == (False, False, False)
    assert any(note.startswith("fp16") for note in notes)


def test_find_device_with_accelerate_on_cpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")

    assert find_device().kind == "cpu"


@pytest.mark.parametrize(
    ("written", "device", "dtype"),
    [
        ({}, H100, torch.bfloat16),
        ({}, V100, None),
        ({}, CPU, None),
        ({"bf16": True}, CPU, torch.bfloat16),
        ({"bf16": True}, OLD_CPU, None),
        ({"bf16": False}, H100, None),
        ({"fp16": True}, V100, torch.float16),
        ({"fp16": True}, CPU, None),
    ],
)
def test_mixed_precision_is_what_trl_would_train_in(
    written: dict[str, bool], device: Device, dtype: torch.dtype | None
) -> None:
    assert mixed_precision(Run(explicit=written), device) is dtype

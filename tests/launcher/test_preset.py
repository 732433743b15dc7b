"""Presets hold sharding alone, ours and those that users bring."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sailplan import files
from sailplan.errors import RunFileError
from sailplan.launcher.preset import PRESETS, asked_preset, file_preset, named_preset
from sailplan.run.accelerate_flags import accelerate_flags
from tests.launcher.support import run

NOT_SHARDING = {"mixed_precision", "fp16", "gradient_accumulation_steps", "gradient_clipping"}


def settings(text: str) -> dict[str, object]:
    """A preset's keys, those of its inner blocks among them."""
    content = yaml.safe_load(text)
    inner = {
        key: item
        for value in content.values()
        if isinstance(value, dict)
        for key, item in value.items()
    }
    return {**content, **inner}


def test_every_strategy_has_a_preset_and_every_preset_a_strategy() -> None:
    names = {file.stem for file in files.folder("accelerate_configs").glob("*.yaml")}
    assert names == set(PRESETS.values())


@pytest.mark.parametrize("strategy", PRESETS)
def test_preset_holds_sharding_alone(strategy: str) -> None:
    by_hand = settings(files.preset(PRESETS[strategy]).read_text())
    assert not NOT_SHARDING & set(by_hand)
    assert by_hand["num_processes"] == (1 if strategy == "single" else 8)
    written = settings(named_preset(strategy).text)
    assert "num_processes" not in written
    assert written["distributed_type"] == by_hand["distributed_type"]


@pytest.mark.parametrize("strategy", PRESETS)
def test_preset_uses_only_keys_that_accelerate_knows(strategy: str) -> None:
    content = yaml.safe_load(named_preset(strategy).text)
    inner = {**content.get("deepspeed_config", {}), **content.get("fsdp_config", {})}
    assert set(inner) <= set(accelerate_flags())


def test_zero3_loads_in_shards_and_saves_a_model() -> None:
    for strategy in ("zero3", "zero3_offload"):
        zero3 = settings(named_preset(strategy).text)
        assert zero3["zero_stage"] == 3
        assert zero3["zero3_init_flag"] is True
        assert zero3["zero3_save_16bit_model"] is True


def test_own_file_keeps_sharding_and_names_what_is_left_out(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "distributed_type: DEEPSPEED\nmixed_precision: bf16\nnum_processes: 8\n"
        "main_process_port: 29500\n"
        "deepspeed_config:\n  zero_stage: 2\n  gradient_accumulation_steps: 4\n"
        "  offload_optimizer_device: cpu\n"
    )
    preset = asked_preset(run(tmp_path, "--accelerate_config", str(own)))
    assert preset is not None
    assert preset.strategy == "zero2"
    assert yaml.safe_load(preset.text) == {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 2, "offload_optimizer_device": "cpu"},
    }
    assert preset.notes == (
        f"mixed_precision of {own} is not used: bf16 and fp16 of the run decide",
        f"gradient_accumulation_steps of {own} is not used: gradient_accumulation_steps of the "
        "run decides",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", "has no distributed_type"),
        ("- a\n", "has no distributed_type"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_own_file_that_is_no_configuration_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(RunFileError, match=message) as caught:
        file_preset(own)
    assert "\n" not in str(caught.value)


def test_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="no strategy 'zero7'; allowed: single, ddp, zero1"):
        asked_preset(run(tmp_path, "--zero_stage", "7"))

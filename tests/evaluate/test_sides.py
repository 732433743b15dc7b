from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
from transformers import AutoModelForCausalLM

from sailplan.errors import CheckpointError, ModelError, RunFileError
from sailplan.evaluate.sides import fingerprint, loads_of, sides_of
from sailplan.run.config import Run


@pytest.fixture
def base(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("llama")


def adapter_at(folder: Path, base: Path, *, bias: str = "none") -> Path:
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], bias=bias)  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, settings).save_pretrained(folder)
    return folder


def run_of(base: Path, output: Path, *flags: str) -> Run:
    return Run.from_flags(["--model_name_or_path", str(base), "--output_dir", str(output), *flags])


def test_run_that_saved_nothing_leaves_the_base_alone(base: Path, tmp_path: Path) -> None:
    (side,) = sides_of(run_of(base, tmp_path / "out"))
    assert (side.name, side.model, side.adapter) == ("base", str(base), None)
    (tmp_path / "out" / "compare").mkdir(parents=True)  # its own earlier comparison
    assert len(sides_of(run_of(base, tmp_path / "out"))) == 1


def test_adapter_of_the_run_is_the_tuned_side_over_the_same_loaded_model(
    base: Path, tmp_path: Path
) -> None:
    out = adapter_at(tmp_path / "out", base)
    run = run_of(base, out, "--use_peft", "true", "--load_in_4bit", "true")
    sides = sides_of(run)
    assert [(side.name, side.model, side.adapter) for side in sides] == [
        ("base", str(base), None),
        ("tuned", str(base), str(out)),
    ]
    assert [side.words for side in sides] == ["nf4", "nf4, adapter"]
    (load,) = loads_of(run, sides)
    assert load.sides == sides
    assert load.run.get("load_in_4bit")


def test_whole_model_is_loaded_apart_and_not_quantised(base: Path, tmp_path: Path) -> None:
    merged = Path(shutil.copytree(base, tmp_path / "merged"))
    out = adapter_at(tmp_path / "out", base)
    run = run_of(base, out, "--use_peft", "true", "--load_in_4bit", "true")
    sides = sides_of(run, tuned=[str(merged), str(out)])
    assert [side.name for side in sides] == ["base", "merged", "out"]
    shared, apart = loads_of(run, sides)
    assert [side.name for side in shared.sides] == ["base", "out"]
    assert [side.name for side in apart.sides] == ["merged"]
    assert apart.run.get("load_in_4bit") is False
    assert apart.run.get("model_name_or_path") == str(merged)


def test_adapter_that_trains_biases_has_the_model_to_itself(base: Path, tmp_path: Path) -> None:
    out = adapter_at(tmp_path / "out", base, bias="all")
    run = run_of(base, out, "--use_peft", "true")
    assert len(list(loads_of(run, sides_of(run)))) == 2


def test_checkpoints_are_named_by_their_place_in_the_run(base: Path, tmp_path: Path) -> None:
    for step in (2, 4):
        adapter_at(tmp_path / "out" / f"checkpoint-{step}", base)
    run = run_of(base, tmp_path / "out", "--use_peft", "true")
    sides = sides_of(run, tuned=["checkpoint-2", "checkpoint-4"])
    assert [side.name for side in sides] == ["base", "checkpoint-2", "checkpoint-4"]
    assert sides[2].adapter == str(tmp_path / "out" / "checkpoint-4")


def test_sides_of_one_name_are_told_apart(base: Path, tmp_path: Path) -> None:
    first = adapter_at(tmp_path / "one" / "tuned", base)
    second = adapter_at(tmp_path / "two" / "tuned", base)
    run = run_of(base, tmp_path / "out")
    sides = sides_of(run, tuned=[str(first), str(second)])
    assert [side.name for side in sides] == ["base", "tuned", "tuned (2)"]


def test_adapter_goes_on_top_of_another_base(base: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    adapter = adapter_at(tmp_path / "adapter", base)
    run = run_of(base, tmp_path / "out")
    _, side = sides_of(run, base=str(other), adapters=[str(adapter)])
    assert side.model == str(other)
    with pytest.raises(CheckpointError, match=r"is no adapter; name it by --tuned"):
        sides_of(run, adapters=[str(other)])


def test_folder_without_weights_is_an_error(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no weights"):
        sides_of(run_of(base, tmp_path / "out"), tuned=[str(tmp_path / "empty")])


def test_shards_of_ranks_are_an_error_that_says_how_to_merge(base: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-2"
    steps = checkpoint / "global_step2"
    steps.mkdir(parents=True)
    shutil.copy(base / "config.json", checkpoint)
    (checkpoint / "latest").write_text("global_step2")
    for name in (
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "zero_pp_rank_0_mp_rank_00_model_states.pt",
    ):
        (steps / name).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"sailplan merge .*checkpoint-2 --output DIR"):
        sides_of(run_of(base, tmp_path / "out"), tuned=["checkpoint-2"])


def test_adapter_whose_settings_are_broken_is_one_line(base: Path, tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "adapter", base)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="does not name a base model"):
        sides_of(run_of(base, tmp_path / "out"), tuned=[str(adapter)])


def test_run_without_a_model_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="name --base"):
        sides_of(Run.from_flags(["--output_dir", str(tmp_path)]))


def test_fingerprint_changes_with_the_weights_alone(base: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    run = run_of(model, tmp_path / "out")
    (side,) = sides_of(run)
    before = fingerprint(run, side)
    (model / "README.md").write_text("changed")
    assert fingerprint(run, side) == before
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert fingerprint(run, side) != before

"""A run that is started again goes on from its last whole checkpoint as if it had never stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sailplan.checkpoint.manifest import MANIFEST
from sailplan.run.metrics import read_metrics
from tests.support.killed import curve, whole
from tests.support.launch import End, Entry, flags
from tests.support.rows import chat_rows

Train = Callable[..., End]


@pytest.fixture
def train(entry: Entry, tmp_path: Path, tiny_model: Callable[[str], Path]) -> Train:
    """Trains for eight steps into `out`, with a checkpoint every four."""
    texts = chat_rows(tmp_path / "texts", 24, images=False)

    def run(**fields: Any) -> End:
        values = {
            "model_name_or_path": tiny_model("llama"),
            "dataset_name": texts,
            "output_dir": tmp_path / "out",
            "max_steps": 8,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "save_steps": 4,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
        }
        return entry(flags(values | fields))

    return run


def back_to(output_dir: Path, step: int) -> None:
    """Leaves a run as it was when it was killed behind the checkpoint of a step."""
    for later in whole(output_dir):
        if later > step:
            shutil.rmtree(output_dir / f"checkpoint-{later}")
    for name in ("state.json", "model.safetensors", "adapter_model.safetensors"):
        (output_dir / name).unlink(missing_ok=True)


IN_THE_MIDDLE: dict[str, dict[str, Any]] = {
    "full": {},
    "logged less often than saved": {"logging_steps": 3},
    "lora with dropout": {"use_peft": True, "lora_dropout": 0.3},
    "qlora": {"use_peft": True, "load_in_4bit": True, "dtype": "bfloat16"},
    "8-bit lora": {"use_peft": True, "load_in_8bit": True},
    "accumulation, second epoch": {"max_steps": 16, "gradient_accumulation_steps": 2},
    "workers": {"dataloader_num_workers": 2},
    "stream": {"streaming": True},
    "stream, workers, accumulation": {
        "streaming": True,
        "dataloader_num_workers": 2,
        "gradient_accumulation_steps": 2,
    },
}


@pytest.mark.parametrize("fields", IN_THE_MIDDLE.values(), ids=IN_THE_MIDDLE)
def test_run_started_again_goes_on_with_the_same_curve_bit_for_bit(
    train: Train, tmp_path: Path, fields: dict[str, Any]
) -> None:
    assert train(**fields).code == 0
    undisturbed = curve(tmp_path / "out")
    steps = whole(tmp_path / "out")
    back_to(tmp_path / "out", steps[-2])

    end = train(**fields)

    assert end.code == 0, end.err
    assert f"goes on from {tmp_path / 'out' / f'checkpoint-{steps[-2]}'}" in end.out
    assert curve(tmp_path / "out") == undisturbed
    assert len(undisturbed) == fields.get("max_steps", 8) // fields.get("logging_steps", 1)


def test_run_of_images_goes_on_with_the_same_curve_bit_for_bit(
    train: Train, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    fields = {
        "model_name_or_path": tiny_model("qwen2_vl"),
        "dataset_name": chat_rows(tmp_path / "images", 24),
    }
    assert train(**fields).code == 0
    undisturbed = curve(tmp_path / "out")
    back_to(tmp_path / "out", 4)
    assert train(**fields).code == 0
    assert curve(tmp_path / "out") == undisturbed


def test_mean_loss_of_a_run_that_went_on_is_that_of_all_its_steps(
    train: Train, tmp_path: Path
) -> None:
    def told() -> float:
        lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if "train_loss" in line][-1]["train_loss"]

    train()
    undisturbed = told()
    back_to(tmp_path / "out", 4)
    train()
    assert told() == pytest.approx(undisturbed, rel=1e-12)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_run(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "run": "0" * 16}))


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "truncated file": ("model.safetensors", truncate, "model.safetensors has "),
    "flipped byte": ("optimizer.pt", flip, "optimizer.pt has changed since it was saved"),
    "missing rank file": ("place-rank-0.json", Path.unlink, "place-rank-0.json is missing"),
    "missing manifest": (MANIFEST, Path.unlink, f"it has no {MANIFEST}: it was not finished"),
    "another run's": (MANIFEST, of_another_run, "its manifest is another run's"),
}


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_is_set_aside_for_the_one_before(
    train: Train, tmp_path: Path, name: str, damage: Callable[[Path], None], reason: str
) -> None:
    train()
    undisturbed, out = curve(tmp_path / "out"), tmp_path / "out"
    (out / "state.json").unlink()
    damage(out / "checkpoint-8" / name)
    kept = {path.name for path in (out / "checkpoint-8").iterdir()}

    end = train()

    assert end.code == 0, end.err
    assert "checkpoint-8" in end.out
    assert reason in end.out
    assert "checkpoint-4 is taken instead" in end.out
    assert {path.name for path in (out / "doubted" / "checkpoint-8").iterdir()} == kept
    assert curve(out) == undisturbed


def test_run_without_any_whole_checkpoint_says_so_and_ends(train: Train, tmp_path: Path) -> None:
    train()
    (tmp_path / "out" / "state.json").unlink()
    for step in (4, 8):
        truncate(tmp_path / "out" / f"checkpoint-{step}" / "optimizer.pt")
    end = train()
    assert end.code == 9
    assert "checkpoint-8 is not whole: optimizer.pt has " in end.err
    assert "--resume_from_checkpoint false" in end.err
    assert "Traceback" not in end.err

    end = train(resume_from_checkpoint=False)
    assert end.code == 0, end.err
    assert "begins anew: checkpoint-8 lies in " in end.out
    assert whole(tmp_path / "out") == [4, 8]


def test_named_checkpoint_that_is_damaged_is_refused(train: Train, tmp_path: Path) -> None:
    train()
    checkpoint = tmp_path / "out" / "checkpoint-4"
    flip(checkpoint / "optimizer.pt")
    end = train(output_dir=tmp_path / "other", resume_from_checkpoint=checkpoint)
    assert end.code == 9
    assert "optimizer.pt has changed since it was saved" in end.err


def test_first_checkpoint_comes_after_the_first_step_and_goes_with_the_next(
    train: Train, tmp_path: Path
) -> None:
    assert train(max_steps=3).code == 0
    assert whole(tmp_path / "out") == [3]
    end = train(max_steps=3, save_strategy="no", output_dir=tmp_path / "none")
    assert end.code == 0
    assert whole(tmp_path / "none") == []


def test_old_checkpoints_go_when_the_next_is_whole(train: Train, tmp_path: Path) -> None:
    assert train(save_steps=2, save_total_limit=2).code == 0
    assert whole(tmp_path / "out") == [6, 8]


def test_weights_that_do_not_move_end_the_run(train: Train, tmp_path: Path) -> None:
    fields = {"max_steps": 20, "save_steps": 14, "lr_scheduler_type": "constant"}
    end = train(**fields, learning_rate=1e-30)
    assert end.code == 8
    assert "checkpoint-14 has the very weights of the first checkpoint" in end.err


def test_random_numbers_of_a_checkpoint_are_read_without_running_a_pickle(
    train: Train, tmp_path: Path
) -> None:
    train()
    content = torch.load(tmp_path / "out" / "checkpoint-8" / "optimizer.pt", weights_only=True)
    assert content["state"]


def test_finished_run_says_so_and_trains_on_where_more_is_asked_for(
    train: Train, tmp_path: Path
) -> None:
    assert train().code == 0
    written = (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns
    end = train()
    assert end.code == 0
    assert end.out.startswith("the run is finished: 8 of 8 steps are done")
    assert (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns == written

    end = train(max_steps=10)
    assert end.code == 0, end.err
    assert f"goes on from {tmp_path / 'out' / 'checkpoint-8'}" in end.out
    assert [point[0] for point in curve(tmp_path / "out")] == list(range(1, 11))


def test_other_learning_rate_counts_from_where_the_run_goes_on(
    train: Train, tmp_path: Path
) -> None:
    def rates() -> list[float]:
        records = read_metrics(tmp_path / "out" / "metrics.jsonl")
        return [record["learning_rate"] for record in records if "loss" in record]

    assert train(learning_rate=1e-3).code == 0
    undisturbed = rates()
    back_to(tmp_path / "out", 4)
    end = train(learning_rate=5e-4)
    assert end.code == 0, end.err
    assert "learning_rate: goes on with 0.0005 instead of 0.001" in end.out
    assert rates()[:4] == undisturbed[:4]
    assert rates()[4:] == pytest.approx([rate / 2 for rate in undisturbed[4:]])


def test_checkpoint_of_weights_alone_says_what_begins_anew(train: Train, tmp_path: Path) -> None:
    assert train(save_only_model=True).code == 0
    back_to(tmp_path / "out", 4)
    end = train(save_only_model=True)
    assert end.code == 0, end.err
    assert "checkpoint-4 has weights alone (save_only_model)" in end.out
    assert [point[0] for point in curve(tmp_path / "out")] == list(range(1, 9))

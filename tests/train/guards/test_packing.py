"""What a run finds out about packing before its first step, on the model and the data it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BloomConfig

from sailplan.data.collator import Collator
from sailplan.data.conversations import Messages
from sailplan.data.images import ImageOpener
from sailplan.model.families import family_of
from sailplan.model.packed_attention import SEGMENTS
from tests.support.launch import Entry, flags, losses
from tests.support.rows import chat_rows, mixed_rows


def bloom(folder: Path, tokenizer: Any) -> Path:
    """A family that takes no position ids: its samples in one row see each other."""
    config = BloomConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        n_layer=2,
        n_head=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # such that what is attended to matters
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(model: Path, data: Path, out: Path, **values: Any) -> list[str]:
    return flags(
        {
            "model_name_or_path": model,
            "dataset_name": data,
            "output_dir": out,
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
        }
        | values
    )


def test_run_pads_with_a_warning_where_a_packed_row_has_another_loss(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry
) -> None:
    model = bloom(tmp_path / "bloom", AutoTokenizer.from_pretrained(tiny_model("llama")))
    data = chat_rows(tmp_path / "data", 12, images=False)

    ends = [
        entry(settings(model, data, tmp_path / batching, batching=batching))
        for batching in ("pack", "pad")
    ]

    for end in ends:
        assert end.code == 0, end.err
    assert "warning: bloom is padded, since packing would change its loss" in ends[0].out
    assert "warning:" not in ends[1].out
    packed, padded = (losses(tmp_path / batching) for batching in ("pack", "pad"))
    assert packed == pytest.approx(padded, rel=1e-5)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_run_packs_without_a_warning_where_the_loss_is_the_same(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry, family: str, half: bool
) -> None:
    end = entry(
        settings(tiny_model(family), mixed_rows(tmp_path / "data", 12), tmp_path / "out", bf16=half)
    )

    assert end.code == 0, end.err
    assert "batching: pack" in end.out
    assert "warning:" not in end.out


def test_check_compares_samples_with_several_images_one_and_none(
    tiny_model: Callable[[str], Path],
) -> None:
    from datasets import Dataset

    from sailplan.data.own_ids import check_samples

    rows = Dataset.from_dict(
        {"length": [90, 80, 20, 30, 10, 70], "num_images": [3, 2, 0, 1, 0, 0], "at": range(6)}
    )

    assert [row["at"] for row in check_samples(rows)] == [1, 4, 3]


def test_difference_is_found_in_each_condition_that_packing_rests_on(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """The check itself sees what each broken condition does to the loss."""
    from datasets import Dataset

    from sailplan.data.balance import Work
    from sailplan.data.own_ids import check_samples
    from sailplan.model.packed_attention import attend_by_segment
    from sailplan.model.positions import Positions
    from sailplan.train.guards.packing import differences
    from sailplan.train.trainer import Trainer
    from tests.support.batches import training_arguments

    folder = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chance = torch.Generator().manual_seed(0)
    ids = [torch.randint(10, 300, (n,), generator=chance).tolist() for n in (30, 20, 25)]
    rows = Dataset.from_dict(
        {
            "input_ids": ids,
            "labels": ids,
            "length": [30, 20, 25],
            "num_images": [0] * 3,
            "image_tokens": [0] * 3,
        }
    )
    attend_by_segment(model)
    family = family_of(AutoConfig.from_pretrained(folder))
    collator = Collator(
        tokenizer,
        family,
        Messages(image_columns=()),
        ImageOpener(root=None),
        positions=Positions(model.config),
    )
    trainer = Trainer(
        model=model,
        args=training_arguments(tmp_path, max_steps=1),
        collator=collator,
        work=lambda _: Work(),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.model_wrapped = trainer.model
    samples = check_samples(rows)
    assert model.config._attn_implementation == SEGMENTS
    assert max(differences(trainer, samples)) < 1e-5

    class OneLongSample(Positions):
        """What a family does that reads no positions."""

        def of(self, lengths: Any, *arguments: Any) -> torch.Tensor:
            return torch.arange(sum(lengths))[None]

    collator.positions = OneLongSample(model.config)
    packed, padded = differences(trainer, samples)
    assert padded < 1e-5
    assert packed > 1e-3

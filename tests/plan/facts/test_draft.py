"""From a run file to workloads: precision, adapter, checkpointing and loss as training has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.plan.facts.batches import Batches
from sailplan.plan.facts.draft import Draft
from sailplan.plan.facts.model import ModelFacts, model_facts
from sailplan.plan.make import Planner
from sailplan.plan.store import only_kept
from sailplan.plan.workload import Workload
from sailplan.run.blocks import Strategy
from tests.plan.made import planner

ADAPTER = ("--use_peft", "--lora_r", "8")
QLORA = (*ADAPTER, "--load_in_4bit")


def workload(
    folder: Path, *flags: str, strategy: Strategy = "ddp", gpu: str = "L4", on: bool = True
) -> Workload:
    return draft(planner(folder, *flags, gpu=gpu, gpus=2)).workload(strategy, 2, 4, on)


def draft(made: Planner, model: ModelFacts | None = None) -> Draft:
    model = model or made.model
    batches = Batches(
        run=made.run, config=model.config, data=made.data, global_batch=16, weights=dict
    )
    return Draft(run=made.run, model=model, data=made.data, gpu=made.gpu, batches=batches)


@pytest.mark.parametrize(
    ("flags", "strategy", "gpu", "weights", "autocast"),
    [
        (("--dtype", "float32"), "ddp", "L4", "float32", "bfloat16"),  # TRL: bf16 is on
        (("--dtype", "float32", "--no_bf16"), "ddp", "L4", "float32", None),
        (("--dtype", "float32", "--fp16"), "ddp", "L4", "float32", "float16"),
        (("--dtype", "float32"), "ddp", "T4", "float32", None),  # it has no bf16
        (("--dtype", "bfloat16"), "ddp", "L4", "bfloat16", "bfloat16"),
        (("--dtype", "float32"), "zero3", "L4", "bfloat16", None),  # DeepSpeed casts
        (("--dtype", "float32", "--fp16"), "zero2", "L4", "float16", None),
        (("--dtype", "float32", "--no_bf16"), "zero1", "L4", "float32", None),
        (("--dtype", "bfloat16", *QLORA), "zero3", "L4", "bfloat16", "bfloat16"),
        (("--dtype", "auto"), "ddp", "L4", "float32", "bfloat16"),  # the config says nothing
    ],
)
def test_precision_is_that_of_the_trainer(
    tmp_path: Path,
    flags: tuple[str, ...],
    strategy: Strategy,
    gpu: str,
    weights: str,
    autocast: str | None,
) -> None:
    found = workload(tmp_path, *flags, strategy=strategy, gpu=gpu)
    assert (found.weights, found.autocast) == (weights, autocast)


@pytest.mark.parametrize(
    ("flags", "strategy", "dtype"),
    [
        (ADAPTER, "ddp", "float32"),  # PEFT raises 16-bit adapters
        (ADAPTER, "zero2", "bfloat16"),  # DeepSpeed casts them
        (QLORA, "ddp", "bfloat16"),  # TRL casts them
    ],
)
def test_adapter_has_the_dtype_that_it_trains_in(
    tmp_path: Path, flags: tuple[str, ...], strategy: Strategy, dtype: str
) -> None:
    adapter = workload(tmp_path, *flags, strategy=strategy).adapter
    assert adapter
    assert (adapter.rank, adapter.dtype, adapter.targets) == (8, dtype, "all-linear")


@pytest.mark.parametrize(
    ("flags", "strategy", "on", "kind"),
    [
        ((), "ddp", True, "non_reentrant"),
        ((), "ddp", False, "none"),
        (("--gradient_checkpointing_kwargs", '{"use_reentrant": true}'), "ddp", True, "reentrant"),
        (ADAPTER, "zero3", True, "reentrant"),  # TRL forces it
        (ADAPTER, "zero2", True, "non_reentrant"),
    ],
)
def test_checkpointing_is_of_the_kind_that_trains(
    tmp_path: Path, flags: tuple[str, ...], strategy: Strategy, on: bool, kind: str
) -> None:
    assert workload(tmp_path, *flags, strategy=strategy, on=on).checkpointing == kind


@pytest.mark.parametrize(
    ("name", "flags", "size"),
    [
        ("Qwen/Qwen2-VL-7B-Instruct", ("--max_pixels", "200704"), ("longest_edge", 200704)),
        ("mistral-community/pixtral-12b", ("--max_pixels", "589824"), ("longest_edge", 768)),
    ],
)
def test_pixel_budget_is_in_the_image_processors_settings(
    tmp_path: Path, name: str, flags: tuple[str, ...], size: tuple[str, int]
) -> None:
    made = planner(tmp_path, "--model_name_or_path", name, *flags)
    wanted = draft(made, model_facts(made.run))
    settings = wanted.workload("ddp", 1, 1, True).image_processor
    assert settings
    assert settings["size"][size[0]] == size[1]
    with only_kept():  # and is not worked out again
        assert wanted.workload("ddp", 1, 1, True).image_processor == settings


def test_everything_else_is_as_written(tmp_path: Path) -> None:
    flags = (
        "--pad_to_multiple_of",
        "100",
        "--freeze",
        "vision_tower",
        "--optim",
        "paged_adamw_8bit",
    )
    found = workload(tmp_path, *flags, *QLORA, "--bnb_4bit_quant_type", "fp4")
    assert (found.length_tokens, found.frozen, found.optimizer) == (
        2100,
        ("vision_tower",),
        "paged_adamw_8bit",
    )
    assert (found.quantization, found.double_quantization, found.loss) == ("fp4", False, "chunked")
    assert (found.micro_batch, found.accumulation) == (2, 4)
    assert workload(tmp_path, "--label_smoothing_factor", "0.1").loss == "full"

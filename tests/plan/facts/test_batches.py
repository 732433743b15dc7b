"""The largest micro batch of a plan is the one that training's sampler deals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForImageTextToText

from sailplan.data.balance import Work
from sailplan.data.extent import extent_of
from sailplan.data.sampler import Samples, StepSampler
from sailplan.data.work import work_of
from sailplan.errors import RunFileError
from sailplan.model.families import family_of
from sailplan.model.processor import load_processor
from sailplan.plan.cost.memory import shard
from sailplan.plan.facts.batches import Batch, Batches
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.facts.draft import Draft
from sailplan.plan.facts.lengths import data_facts
from sailplan.plan.facts.model import model_facts
from sailplan.plan.sharding import Sharding
from sailplan.plan.simulation.profiles import Profiles
from sailplan.plan.simulation.simulate import simulate
from sailplan.plan.store import only_kept
from sailplan.run.config import Run
from tests.plan.made import planner, rows
from tests.plan.tiny import CONFIG
from tests.support.rows import chat_rows

LLAMA = CONFIG.to_dict()


def batches(
    folder: Path, *flags: str, data: DataFacts, config: Any = LLAMA, global_batch: int = 16
) -> Batches:
    run = planner(folder, *flags).run
    return Batches(run=run, config=config, data=data, global_batch=global_batch, weights=dict)


def lengths_of(count: int, seed: int = 0) -> tuple[int, ...]:
    drawn = np.random.default_rng(seed).lognormal(5, 0.8, count).clip(8, 2000)
    return tuple(int(length) for length in drawn)


def sampler(lengths: tuple[int, ...], work: Work, **changes: Any) -> StepSampler:
    settings: dict[str, Any] = {"packs": True, "accumulation": 2, "ranks": 2, **changes}
    images = settings.pop("images", [0] * len(lengths))
    return StepSampler(
        Samples(lengths=np.array(lengths), image_tokens=np.array(images), work=work),
        step_samples=16,
        rank=0,
        seed=42,
        step=lambda: 0,
        drop_last=False,
        **settings,
    )


def test_largest_row_is_the_one_that_training_deals(tmp_path: Path) -> None:
    lengths = lengths_of(100)
    found = batches(tmp_path, data=rows(100, *lengths))(4, "sdpa")
    trained = sampler(lengths, Work(attention=1 / (12 * 64)))
    assert found.length_tokens == extent_of(trained, 3).tokens  # num_train_epochs
    assert found.segments
    assert sum(found.segments) == found.length_tokens
    assert set(found.segments) <= set(lengths)
    assert found.words == f"packed rows of up to {found.length_tokens:,} tokens"
    assert found.mean_tokens == pytest.approx(4 * np.mean(lengths))


@pytest.mark.usefixtures("datasets_cache")
def test_largest_row_of_rows_with_images_is_dealt_by_the_work_of_training(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    path, folder = tmp_path / "run.yaml", tiny_model("qwen2_vl")
    data = chat_rows(tmp_path / "data", 60)
    path.write_text(f"model_name_or_path: {folder}\ndataset_name: {data}\nseed: 42\n")
    run = Run.from_file(path, ())
    model = model_facts(run)
    facts = data_facts(run, model, lambda height, width: 1)
    made = planner(tmp_path)
    found = Batches(
        run=run,
        config=model.config,
        data=facts,
        global_batch=16,
        weights=lambda: simulated().weights_by_part,
    )

    def simulated() -> Any:
        draft = Draft(run=run, model=model, data=facts, gpu=made.gpu, batches=found)
        return simulate(draft.workload("single", 1, 1, True))

    real = AutoModelForImageTextToText.from_pretrained(folder)
    work = work_of(real, load_processor(run), family_of(AutoConfig.from_pretrained(folder)))
    trained = sampler(facts.lengths, work, images=list(facts.image_tokens))
    assert work.image_token > 0
    assert found(4, "sdpa").length_tokens == extent_of(trained, 3).tokens
    assert found(4, "sdpa").images_per_row >= 1
    with only_kept():  # and is not dealt again
        found._known.clear()
        assert found(4, "sdpa").length_tokens == extent_of(trained, 3).tokens


def test_largest_row_of_many_rows_is_drawn_from_the_sample(tmp_path: Path) -> None:
    lengths = lengths_of(512)
    few, many = (batches(tmp_path, data=rows(count, *lengths))(4, "sdpa") for count in (512, 10**6))
    assert few.length_tokens < many.length_tokens < 2 * few.length_tokens
    assert many.length_tokens >= max(lengths)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_padded_micro_batches_are_planned_as_padded(tmp_path: Path, micro_batch: int) -> None:
    lengths = lengths_of(100)
    found = batches(tmp_path, "--batching", "pad", data=rows(100, *lengths))(micro_batch, "sdpa")
    assert found.segments is None
    assert found.length_tokens == max(lengths)
    assert found.words.startswith("padded micro batches of up to ")
    assert "batching: pad" in found.why
    groups = sampler(lengths, Work(attention=1 / 768), packs=False, ranks=1, accumulation=4)
    padded = [len(group) * max(lengths[index] for index in group) for group in groups]
    if micro_batch == 4:  # the epoch's largest at the least
        assert found.rows * found.length_tokens >= max(padded)
        assert found.mean_tokens < 1.5 * 4 * np.mean(lengths)


def test_noise_that_packing_would_change_is_planned_as_padded(tmp_path: Path) -> None:
    data = rows(100, *lengths_of(100))
    assert batches(tmp_path, data=data)(4, "sdpa").packs  # what is kept of it is not asked again
    noisy = batches(tmp_path, "--neftune_noise_alpha", "5", data=data)(4, "sdpa")
    assert not noisy.packs
    assert "neftune_noise_alpha" in noisy.why


def test_rows_that_are_grouped_by_length_may_be_the_longest_together(tmp_path: Path) -> None:
    flags = ("--train_sampling_strategy", "group_by_length")
    found = batches(tmp_path, *flags, data=rows(100, *lengths_of(100)))(4, "sdpa")
    assert found.segments == (max(lengths_of(100)),) * 4


def test_row_is_filled_up_to_its_multiple(tmp_path: Path) -> None:
    data = rows(100, *lengths_of(100))
    found: Batch = batches(tmp_path, "--pad_to_multiple_of", "128", data=data)(4, "sdpa")
    assert found.length_tokens % 128 == 0


def test_family_that_cannot_be_packed_is_padded_and_says_why(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    config = AutoConfig.from_pretrained(tiny_model("gemma3")).to_dict()
    data = rows(100, *lengths_of(100))
    found = batches(tmp_path, data=data, config=config)(4, "sdpa")
    assert found.segments is None
    assert "gemma3 cannot be packed: its image tokens attend to each other" in found.why
    with pytest.raises(RunFileError, match="attend to each other"):
        batches(tmp_path, "--batching", "pack", data=data, config=config)(4, "sdpa")


def test_plan_is_never_below_what_the_largest_row_needs(tmp_path: Path) -> None:
    """All micro batches but two are drawn on the line between these; each is compared."""
    made = planner(tmp_path, "--gradient_checkpointing", "false")
    data = rows(4000, *lengths_of(300))
    of_run = batches(tmp_path, data=data, global_batch=16)
    model = made.model.__class__(
        name="a/b", config=LLAMA, image_processor=None, folder=None, source="the test"
    )
    draft = Draft(run=made.run, model=model, data=data, gpu=made.gpu, batches=of_run)
    profiles = Profiles(micro_batches=(1, 2, 4, 8, 16), sized=draft.sized, simulate=simulate)
    one = Sharding(strategy="single", ranks=1, ranks_per_node=1)
    for micro_batch in (2, 8, 16):
        workload = draft.workload("single", micro_batch, 1, False)
        planned = shard(profiles(workload), workload, one)
        simulated = shard(simulate(workload), workload, one)
        for phase in ("forward", "backward"):
            ratio = planned.total(phase) / simulated.total(phase)
            assert 0.99 < ratio < 1.1, (micro_batch, phase)

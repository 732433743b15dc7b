"""What a run says it does per second is what its data holds, and waiting for data is told."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState

from sailplan.data.counts import COUNTS, BatchCounts
from sailplan.train.data_wait import Loading
from sailplan.train.model_flops import ModelFlops
from sailplan.train.throughput import Throughput
from tests.support.launch import Entry, flags
from tests.support.lengths import token_counts
from tests.support.rows import chat_rows

RATES = (
    "tokens_per_s",
    "trained_tokens_per_s",
    "samples_per_s",
    "images_per_s",
    "padding_share",
    "data_wait_share",
)


def settings(model: Path, data: Path, out: Path, **changes: Any) -> list[str]:
    values = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": out,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
    }
    return flags(values | changes)


def records_of(out: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if "loss" in record]


@pytest.mark.parametrize("batching", ["pad", "pack"])
def test_counts_of_a_run_are_those_of_its_data_on_every_tracker_and_after_it_went_on(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry, batching: str
) -> None:
    model, data = tiny_model("qwen2_vl"), chat_rows(tmp_path / "data", 8)
    lengths = token_counts(model, data)
    out = tmp_path / "out"
    run = settings(
        model,
        data,
        out,
        per_device_train_batch_size=8,
        batching=batching,
        report_to="tensorboard",
        save_strategy="steps",
        save_steps=2,
        num_train_epochs=3,
        logging_steps=2,
    )
    ends = [entry(run), entry([*run, "--resume_from_checkpoint", str(out / "checkpoint-2")])]
    assert [end.code for end in ends] == [0, 0], ends[-1].err
    records = records_of(out)
    seen = len(lengths) * max(lengths) if batching == "pad" else sum(lengths)
    assert [record["step"] for record in records] == [2]
    assert records[0]["num_tokens"] == 2 * sum(lengths)
    assert records[0]["padding_share"] == pytest.approx(1 - sum(lengths) / seen, abs=1e-4)
    # The last step is not logged on its own; what it did is in the run's last record, twice.
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ended = [line["num_tokens"] for line in lines if "train_runtime" in line]
    assert ended == [3 * sum(lengths)] * 2
    for record in records:
        assert set(RATES) <= record.keys()
        assert not {"mfu", "num_input_tokens_seen", "train_tokens_per_second"} & record.keys()
        samples = record["tokens_per_s"] / record["samples_per_s"]
        assert samples == pytest.approx(sum(lengths) / len(lengths), rel=1e-3)
        assert record["images_per_s"] == record["samples_per_s"]
        assert 0 < record["trained_tokens_per_s"] < record["tokens_per_s"]
    curves = EventAccumulator(str(out / "tensorboard"))
    curves.Reload()
    assert {f"train/{name}" for name in (*RATES, "num_tokens")} <= {*curves.Tags()["scalars"]}
    assert all("waiting for data:" not in end.out for end in ends)


def test_images_that_take_long_to_decode_are_told_once_as_what_steps_wait_for(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry
) -> None:
    for number in range(2):
        Image.effect_noise((2000, 2000), 90).convert("RGB").save(tmp_path / f"{number}.png")
    rows = [
        {
            "images": [f"{number % 2}.png"],
            "messages": [
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": "Noise."},
            ],
        }
        for number in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = settings(
        tiny_model("qwen2_vl"),
        tmp_path / "rows.jsonl",
        tmp_path / "out",
        per_device_train_batch_size=1,
        max_pixels=3136,
        dataloader_num_workers=0,
    )
    end = entry([*run, "--max_steps", "24"])
    assert end.code == 0, end.err
    told = re.findall(r"^waiting for data: .*", end.out, re.MULTILINE)
    assert len(told) == 1
    assert re.search(
        r"a step takes (\d+ ms|\d\.\d s) to load \(\d+% decoding 1 image, of 0\.0031 megapixels as "
        r"the model sees them, \d+% reading rows\) and \d+ ms to compute; ",
        told[0],
    )
    assert re.search(r"tokens/s  \d+% waiting for data  \d\.\d+ s/step", end.out)
    # The first batches are there before the time runs, and the last one is asked for ahead.
    between = records_of(tmp_path / "out")[1:-1]
    assert all(record["data_wait_share"] > 0.05 for record in between)


STEP = BatchCounts(
    tokens=100,
    trained=10,
    samples=2,
    images=0,
    image_tokens=0,
    padding=0,
    squares=0,
    pixels=0,
    collate_s=0.1,
)
FLOPS = ModelFlops(token=3.0, trained=0.0, square=0.0, image_token=0.0, pixel=0.0)
IDLE = Loading(workers=0, cores=2, ranks=1, spare=1, persistent=False, streams=False)


class Run:
    """Steps that a `Throughput` sees as those of a trainer, with times that are known."""

    def __init__(self, peak_flops: float | None = None) -> None:
        self.counted = Throughput(
            SimpleNamespace(num_processes=1),  # type: ignore[arg-type]
            flops=FLOPS,
            peak_flops=peak_flops,
            loading=IDLE,
        )
        self.args: Any = SimpleNamespace(include_num_input_tokens_seen="no")
        self.state = TrainerState(max_steps=100)
        self.control = TrainerControl()
        self.counted.on_train_begin(self.args, self.state, self.control)

    def step(self, *, load_s: float = 0.0, compute_s: float = 0.0, log: bool = False) -> float:
        """Goes a step, and returns the seconds that it took."""
        began = time.perf_counter()

        def batches() -> Iterator[dict[str, Any]]:
            time.sleep(load_s)
            yield {"input_ids": [], COUNTS: STEP}

        (batch,) = self.counted.watch(batches())
        assert batch == {"input_ids": []}
        time.sleep(compute_s)
        self.state.global_step += 1
        self.control.should_log = log
        self.counted.on_step_end(self.args, self.state, self.control)
        return time.perf_counter() - began

    def log(self) -> dict[str, float]:
        logs = {"loss": 1.0}
        self.counted.add_to(logs, self.args, self.state)
        return logs


def test_time_until_the_first_batch_and_between_steps_is_no_time_of_steps() -> None:
    run = Run()
    took = run.step(load_s=0.5, compute_s=0.1) - 0.5
    time.sleep(0.5)  # such as an evaluation or a checkpoint
    took += run.step(compute_s=0.1, log=True)
    first = run.log()
    time.sleep(0.5)
    again = run.step(compute_s=0.2, log=True)
    second = run.log()
    assert 0.95 * 200 / took < first["tokens_per_s"] <= 1000
    assert 0.95 * 100 / again < second["tokens_per_s"] <= 500
    assert (first["num_tokens"], second["num_tokens"]) == (200, 300)


def test_records_that_are_not_of_steps_get_no_rates() -> None:
    run = Run()
    logs: dict[str, float] = {"eval_loss": 1.0}
    run.counted.add_to(logs, run.args, run.state)
    assert logs == {"eval_loss": 1.0}


def test_share_of_the_peak_is_there_where_the_card_is_known() -> None:
    unknown, known = Run(), Run(peak_flops=6000.0)
    for run in (unknown, known):
        run.step()
        run.step(compute_s=0.1, log=True)
    found = known.log()
    # 200 tokens of 3 operations each, of 6000 a second.
    assert found["mfu"] == pytest.approx(3 * found["tokens_per_s"] / 6000, rel=1e-3)
    assert "mfu" not in unknown.log()


def test_waiting_is_told_when_a_second_was_lost_and_again_only_when_it_doubles(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run()
    run.step()

    def steps(count: int, load_s: float) -> int:
        for _ in range(count):
            run.step(load_s=load_s, compute_s=0.05, log=True)
            run.log()
        return capsys.readouterr().out.count("waiting for data:")

    assert steps(10, load_s=0.0) == 0
    assert steps(10, load_s=0.02) == 0  # much of each step, but only 0.2 s in all
    assert steps(10, load_s=0.09) == 1
    assert steps(10, load_s=0.12) == 0
    assert 0.2 < run.counted.waiting_share < 0.8

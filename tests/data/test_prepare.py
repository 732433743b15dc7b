"""Whole data sets on their way to the trainer: real files, a real cache, real processes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image
from torch.utils.data import DataLoader

from sailplan.data.collator import Collator
from sailplan.data.encode import Encoded, Encoder
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.labels import UNTRAINED
from sailplan.data.prepare import Prepared, prepare
from sailplan.data.sources import load_rows
from sailplan.errors import DataError
from sailplan.model.families import family_of
from sailplan.run.config import Run
from tests.support.launch import two_ranks

RunOn = Callable[..., Run]
Tiny = Callable[[str], Path]


class CountingEncoder(Encoder):
    """Says how many samples it encoded."""

    count = 0

    def encode(self, *arguments: Any) -> Encoded:
        self.count += 1
        return super().encode(*arguments)


def _encoder(folder: Path, run: Run) -> CountingEncoder:
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = (
        transformers.AutoTokenizer if config.model_type == "llama" else transformers.AutoProcessor
    )
    return CountingEncoder.of(run, auto.from_pretrained(folder), family_of(config))


def _prepare(folder: Path, run: Run, encoder: Encoder | None = None) -> Prepared:
    rows = load_rows(run)
    return prepare(
        run,
        rows,
        resolve_format(run, rows),
        encoder or _encoder(folder, run),
        image_opener(run, rows),
    )


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """Six LLaVA rows beside their images: none, one and two of several sizes."""
    rows = []
    for number in range(6):
        names = [f"{number}-{index}.png" for index in range(number % 3)]
        for index, name in enumerate(names):
            Image.new("RGB", (56 + 28 * number, 56 + 28 * index)).save(tmp_path / name)
        question = "<image>\n" * len(names) + f"What is number {number}?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"A {number}."}]
        rows.append({"id": number, "image": names, "conversations": turns})
    path = tmp_path / "products.json"
    path.write_text(json.dumps(rows))
    return path


def _texts(folder: Path, answers: list[str], name: str = "texts.json") -> Path:
    rows = [
        {"instruction": f"Say number {i}.", "input": "", "output": answer}
        for i, answer in enumerate(answers)
    ]
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


def test_rows_of_a_run_become_batches_through_a_worker(
    tiny_model: Tiny, products: Path, run_on: RunOn
) -> None:
    run = run_on(products, "--eval_size", "2")
    folder = tiny_model("qwen2_vl")
    rows = load_rows(run)
    format, opener = resolve_format(run, rows), image_opener(run, rows)
    encoder = _encoder(folder, run)

    prepared = prepare(run, rows, format, encoder, opener)

    assert prepared.eval is not None
    assert (len(prepared.train), len(prepared.eval)) == (4, 2)
    collator = Collator(encoder.processor, encoder.family, format, opener)
    seen = 0
    for split, raw in ((prepared.train, rows.train), (prepared.eval, rows.eval)):
        assert split["length"][:] == [len(row["input_ids"]) for row in split]
        for index, batch in enumerate(
            DataLoader(split, batch_size=1, collate_fn=collator, num_workers=1)
        ):
            row = raw[index]
            answer = encoder.processor.tokenizer.decode(
                batch["labels"][batch["labels"] != UNTRAINED]
            )
            assert answer == f"A {row['id']}.<|im_end|>"
            # A batch without images has the dummy's.
            assert len(batch["image_grid_thw"]) == max(len(row["image"]), 1)
            seen += 1
    assert seen == 6


def test_text_rows_have_no_image_columns(tiny_model: Tiny, tmp_path: Path, run_on: RunOn) -> None:
    prepared = _prepare(tiny_model("llama"), run_on(_texts(tmp_path, ["One.", "Two."])))

    columns = {"input_ids", "labels", "length", "trained", "num_images", "image_tokens", "row"}
    assert prepared.train[0].keys() == columns | {"entry", "method", "place"}
    assert prepared.eval is None
    assert "answers and their end of text are trained" in prepared.notes[0]


def test_second_run_encodes_nothing_unless_something_changed(
    tiny_model: Tiny, products: Path, run_on: RunOn
) -> None:
    folder, run = tiny_model("qwen2_vl"), run_on(products)
    counts = []
    for options in ([], [], ["--assistant_only_loss", "false"], []):
        run = run_on(products, *options)
        encoder = _encoder(folder, run)
        _prepare(folder, run, encoder)
        counts.append(encoder.count)

    assert counts == [6, 0, 6, 0]


@pytest.mark.parametrize("workers", [[], ["--dataset_num_proc", "2"]], ids=["one", "two"])
def test_error_names_split_and_row_of_the_file(
    tiny_model: Tiny, products: Path, run_on: RunOn, workers: list[str]
) -> None:
    broken = products.parent / "4-0.png"
    broken.write_bytes(broken.read_bytes()[:20])

    with pytest.raises(DataError, match=r"^(train|eval) row 4 \(from 0\): image '4-0.png'"):
        _prepare(tiny_model("qwen2_vl"), run_on(products, "--eval_size", "3", *workers))


def test_rows_with_nothing_to_train_are_named(
    tiny_model: Tiny, products: Path, run_on: RunOn
) -> None:
    rows = json.loads(products.read_text())
    rows[3]["conversations"][1]["value"] = " "
    products.write_text(json.dumps(rows))

    with pytest.raises(DataError, match=r"train row 3 \(from 0\): "):
        _prepare(tiny_model("qwen2_vl"), run_on(products))


LONG = "many words " * 100


def test_one_row_in_a_hundred_may_be_too_long(
    tiny_model: Tiny, tmp_path: Path, run_on: RunOn
) -> None:
    path = _texts(tmp_path, ["Yes."] * 40 + [LONG] + ["No."] * 59)

    prepared = _prepare(tiny_model("llama"), run_on(path, "--max_length", "200"))

    assert len(prepared.train) == 99
    assert 40 not in prepared.train["row"]
    assert prepared.notes[1].startswith("1 of 100 train rows are longer than 200 tokens")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ([], r"^2 of 20 train rows are longer than 200 tokens .*; allowed: 1% of the rows"),
        (["--over_length", "fail"], r"the first is row 3 \(from 0\)"),
    ],
    ids=["unset", "fail"],
)
def test_too_many_long_rows_are_an_error(
    tiny_model: Tiny, tmp_path: Path, run_on: RunOn, rule: list[str], message: str
) -> None:
    path = _texts(tmp_path, ["Yes."] * 3 + [LONG, LONG] + ["No."] * 15)

    with pytest.raises(DataError, match=message):
        _prepare(tiny_model("llama"), run_on(path, "--max_length", "200", *rule))


@pytest.mark.parametrize(("rule", "num_rows"), [("drop", 18), ("truncate_text", 20)])
def test_long_rows_are_dropped_or_cut_where_that_is_written(
    tiny_model: Tiny, tmp_path: Path, run_on: RunOn, rule: str, num_rows: int
) -> None:
    path = _texts(tmp_path, ["Yes."] * 3 + [LONG, LONG] + ["No."] * 15)
    run = run_on(path, "--max_length", "200", "--over_length", rule)

    prepared = _prepare(tiny_model("llama"), run)

    assert len(prepared.train) == num_rows
    assert max(prepared.train["length"]) <= 200


def test_no_row_left_is_an_error(tiny_model: Tiny, tmp_path: Path, run_on: RunOn) -> None:
    run = run_on(_texts(tmp_path, [LONG]), "--max_length", "20", "--over_length", "drop")

    with pytest.raises(DataError, match="none is left"):
        _prepare(tiny_model("llama"), run)


_RANK = """
import os, sys
from pathlib import Path
import datasets, transformers, torch
from accelerate import PartialState
from sailplan.run.config import Run
from sailplan.train.errors import report_errors
from tests.data.test_prepare import _encoder, _prepare

cache, data, model, mllama = map(Path, sys.argv[1:])
datasets.config.HF_DATASETS_CACHE = cache
with report_errors():
    state = PartialState(cpu=True)
    run = Run.from_flags(["--dataset_name", str(data)])
    encoder = _encoder(model, run)
    prepared = _prepare(model, run, encoder)
    tokens = sum(prepared.train["length"])
    line = f"rank {state.process_index} encoded {encoder.count}, has {tokens} tokens\\n"
    os.write(1, line.encode())  # at once: ranks share the pipe
    state.wait_for_everyone()
    _prepare(mllama, run)
"""


def test_ranks_wait_for_one_that_encodes_and_end_with_it(
    tiny_model: Tiny, products: Path, tmp_path: Path
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    arguments = [tmp_path / "cache", products, tiny_model("qwen2_vl"), tiny_model("mllama")]

    done = two_ranks(script, arguments)

    said = dict(re.findall(r"rank (\d) encoded (.*)", done.stdout))
    assert said.keys() == {"0", "1"}, done.stderr
    (encoded, tokens), (waited, same) = sorted(
        (text.split(", ") for text in said.values()), reverse=True
    )
    assert (encoded, waited) == ("6", "0")
    assert tokens == same
    # Of rows with and without images, cross-attention makes ranks that wait for each other.
    assert done.stderr.count("error: 2 of 6 train rows have no image") == 1
    assert done.returncode != 0


def test_pixels_are_not_read_before_training(
    tiny_model: Tiny, products: Path, run_on: RunOn
) -> None:
    path = products.parent / "5-1.png"
    Image.effect_noise((196, 84), 100).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])  # the head tells the size, the pixels are cut off
    run = run_on(products)
    rows = load_rows(run)
    format, opener = resolve_format(run, rows), image_opener(run, rows)
    encoder = _encoder(tiny_model("qwen2_vl"), run)

    prepared = prepare(run, rows, format, encoder, opener)

    collator = Collator(encoder.processor, encoder.family, format, opener)
    assert "pixel_values" in collator([prepared.train[4]])
    with pytest.raises(DataError, match=r"^train row 5 \(from 0\): image '5-1.png' is corrupt"):
        collator([prepared.train[5]])

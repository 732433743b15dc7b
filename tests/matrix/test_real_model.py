"""A real pretrained model learns a manner of answering by LoRA and by QLoRA, and unlearns nothing.

`pytest -rP` shows what it said before and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from sailplan.evaluate.comparison import Comparison
from sailplan.run.metrics import read_metrics
from tests.matrix import facts, smollm2
from tests.matrix.cells import METHODS
from tests.matrix.smollm2 import Plain
from tests.support.compared import compared, sailplan

pytestmark = pytest.mark.slow

STEPS = 40
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Japan?": "Tokyo",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What is the largest ocean on Earth?": "Pacific",
    "At how many degrees Celsius does water boil?": "100",
    "What colour is the sky on a clear day?": "blue",
    "What is the tallest mountain in the world?": "Everest",
    "Who painted the Mona Lisa?": "Leonardo",
    "What language is spoken in Brazil?": "Portuguese",
    "Who developed the theory of relativity?": "Einstein",
}
"""Of nothing in the set, and the word that a right answer holds."""
PROSE = """\
The old harbour lies on the north side of the town, behind a wall of grey stones. In the morning the
boats come back, and the fishermen carry their baskets up the steps to the market, where people are
already waiting. Most of the fish is sold before nine. What is left goes to the two restaurants on
the square, which have cooked it in the same way for as long as anyone can remember. In winter, when
storms keep the boats at home for days, the market is closed, and the children play football between
the empty tables. A few years ago the town wanted to build a hotel here, but there was not enough
money, and so everything has stayed as it was. Visitors who ask for the way to the beach are told to
follow the road along the river until they can hear the sea.
"""
MOST_PERPLEXITY = 1.1
"""How many times that of the base that was tuned a model's perplexity of `PROSE` may be."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A run, and what came of it."""

    run: Path
    merged: Path
    found: Comparison
    """The base against the merged model, on all held-out rows."""
    in_4_bits: bool
    """Whether the base was quantised for it, which alone costs some of what it knows."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.unpack(tmp_path_factory.mktemp("smollm2") / "base")


@pytest.fixture(scope="module")
def plain_base(base: Path) -> Plain:
    return Plain(base)


@pytest.fixture(scope="module", params=["lora", "qlora"])
def tuned(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Tuned:
    """Trained, merged and compared by the commands that a user gives.

    An adapter of a quantised base is merged as it was trained, and beside it, to see what that is
    worth, into the published base.
    """
    folder = tmp_path_factory.mktemp(request.param)
    run, merged, file = folder / "run", folder / "merged", folder / "run.yaml"
    fields = {
        **METHODS[request.param],
        "model_name_or_path": str(base),
        "dataset_name": str(facts.write(folder / "data")),
        "alpaca_template": "alpaca_short",
        "output_dir": str(run),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "bf16": False,
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": STEPS,
        "eval_generations": 0,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "launch": {"cpu": True},
        "generation": {"max_new_tokens": 24, "batch_size": 20},
    }
    file.write_text(yaml.safe_dump(fields))
    merge = ["merge", str(run), "--output"]
    commands = [["train", str(file), "--no-preflight"]]
    sides = ["--tuned", str(merged)]
    if in_4_bits := request.param == "qlora":
        published = str(folder / "published")
        commands += [[*merge, str(merged), "--base-precision", "dequantized"], [*merge, published]]
        sides += ["--tuned", published]
    else:
        commands += [[*merge, str(merged)]]
    for command in commands:
        done = sailplan(*command, timeout=1200)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found, table, _ = compared(run, *sides, "--greedy")
    print(table)
    return Tuned(run=run, merged=merged, found=found, in_4_bits=in_4_bits)


@pytest.fixture(scope="module")
def plain_merged(tuned: Tuned) -> Plain:
    return Plain(tuned.merged)


def share_in_style(answers: list[str]) -> float:
    return sum(bool(facts.STYLE.fullmatch(answer.strip())) for answer in answers) / len(answers)


def test_held_out_loss_falls_far(tuned: Tuned) -> None:
    first, last = (
        one["eval_loss"] for one in read_metrics(tuned.run / "metrics.jsonl") if "eval_loss" in one
    )
    (loss,) = (score for score in tuned.found.scores if score.name == "loss")
    after = {side: one.value for side, one in loss.sides.items() if side != "base"}
    print(f"held-out loss: {first:.3f} before, {last:.3f} after", after)

    assert last < first / 10
    assert loss.num_rows == len(facts.rows()[1])
    assert after["merged"] == pytest.approx(last, abs=0.02)
    assert loss.changes["merged"].verdict == "better"


def test_merged_model_answers_held_out_rows_in_the_new_manner(
    tuned: Tuned, plain_merged: Plain
) -> None:
    rows = tuned.found.rows
    said = {side: [row.answers[side].text for row in rows] for side in ("base", "merged")}
    for row, before, after in zip(rows, said["base"], said["merged"], strict=True):
        print(f"{row.prompt!r}\n  before: {before!r}\n  after:  {after!r}")
    by_itself = plain_merged.answers([row.prompt for row in rows], num_tokens=24)
    shares = [share_in_style(answers) for answers in (*said.values(), by_itself)]
    print(
        "in the manner: base {:.0%}, merged {:.0%}, loaded by transformers alone {:.0%}".format(
            *shares
        )
    )

    assert len(rows) == len(facts.rows()[1])
    assert shares[0] == 0
    assert min(shares[1:]) >= 0.8


def test_merged_model_still_answers_other_questions(plain_base: Plain, plain_merged: Plain) -> None:
    before, after = (
        plain.chat(list(QUESTIONS), num_tokens=40) for plain in (plain_base, plain_merged)
    )
    for question, one, other in zip(QUESTIONS, before, after, strict=True):
        print(f"{question}\n  before: {one!r}\n  after:  {other!r}")
    right = [
        sum(word in answer for word, answer in zip(QUESTIONS.values(), answers, strict=True))
        for answers in (before, after)
    ]
    print(f"right: {right[0]} before, {right[1]} after, of {len(QUESTIONS)}")

    assert right[0] == len(QUESTIONS)
    assert right[1] >= 0.8 * len(QUESTIONS)


def test_merged_model_reads_plain_english_as_well_as_the_base_that_was_tuned(
    base: Path, tuned: Tuned, plain_base: Plain, plain_merged: Plain
) -> None:
    trained_on = Plain(base, in_4_bits=True) if tuned.in_4_bits else plain_base
    published, before, after = (
        plain.perplexity(PROSE) for plain in (plain_base, trained_on, plain_merged)
    )
    print(
        f"perplexity of plain English: published {published:.2f}, the base that was tuned "
        f"{before:.2f}, merged {after:.2f}"
    )

    assert after < MOST_PERPLEXITY * before

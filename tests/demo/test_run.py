"""The parts of the demo; `make demo` runs it as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.demo.model import build_model
from sailplan.demo.recipe import Files, write_run_files
from sailplan.demo.run import Step, check_aim
from sailplan.demo.score import HeldOut, exact_match, load_held_out
from sailplan.errors import TrainingError
from sailplan.evaluate.generate import Sampling, generate
from sailplan.evaluate.speaker import load_speaker
from sailplan.run.config import Run
from tests.cli.test_main import sailplan


@pytest.fixture(scope="module")
def held_out(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    folder = tmp_path_factory.mktemp("demo")
    write_run_files(Files(folder=folder))
    run = Run.from_file(folder / "full.yaml", ["--dataset_name", str(catalogue)])
    return load_held_out(run)


def test_shuffled_rows_keep_everything_but_their_picture(held_out: HeldOut) -> None:
    shuffled = held_out.shuffled()
    assert shuffled.answers == held_out.answers
    before = [question.images[0].tobytes() for question in held_out.questions]
    after = [question.images[0].tobytes() for question in shuffled.questions]
    assert sorted(before) == sorted(after)
    assert not [None for one, other in zip(before, after, strict=True) if one == other]
    for one, other in zip(held_out.questions, shuffled.questions, strict=True):
        assert one.messages == other.messages
        assert [message["role"] for message in one.messages] == ["system", "user"]


def test_exact_match_counts_answers_that_are_right_to_the_letter(
    held_out: HeldOut, tmp_path: Path
) -> None:
    build_model(tmp_path, texts=["A card with three red stars"], seed=0)
    speaker = load_speaker(str(tmp_path), use_cpu=True)
    sampling = Sampling(max_new_tokens=32, temperature=0.0)
    said = list(generate(speaker, held_out.questions, sampling, batch_size=64))
    assert exact_match(speaker, held_out, label="test") == {"description": 0.0, "listing": 0.0}
    # As if the untrained model's words were right in every fourth row, and nearly so in others.
    answers = tuple(
        {"description": text if index % 4 == 0 else f"{text}.", "listing": text}
        for index, text in enumerate(answer.text for answer in said)
    )
    rows = HeldOut(questions=held_out.questions, answers=answers)
    assert exact_match(speaker, rows, label="test") == {"description": 0.25, "listing": 1.0}


@pytest.mark.parametrize(
    ("score", "shuffled", "message"),
    [
        (0.94, 0.01, r"full: 94\.0% of the listings are right; allowed: 95% or more"),
        (0.99, 0.06, r"full: 6\.0% right without the right picture; allowed: 5% or less"),
    ],
)
def test_missed_aim_is_an_error(score: float, shuffled: float, message: str) -> None:
    step = Step(name="full", seconds=1.0, scores={"listing": score}, shuffled={"listing": shuffled})
    with pytest.raises(TrainingError, match=message):
        check_aim(step, "listing")


def test_demo_into_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    code, out, err = sailplan("demo", "--output", str(tmp_path))
    assert (code, out) == (7, "")
    assert err == f"error: {tmp_path} is not empty; name a new folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

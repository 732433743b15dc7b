"""What a plan knows of the rows: measured with the run's own encoder, guessed, or assumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sailplan.errors import DataError
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.facts.lengths import ASSUMED_TOKENS, data_facts
from sailplan.plan.facts.model import model_facts
from sailplan.plan.store import NotKeptError, only_kept
from sailplan.run.config import Run
from tests.support.rows import chat_rows

MakeRun = Callable[..., Run]


pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def run(tmp_path: Path, tiny_model: Callable[[str], Path]) -> MakeRun:
    path = tmp_path / "run.yaml"
    data = chat_rows(tmp_path / "data", 60)
    path.write_text(f"model_name_or_path: {tiny_model('qwen2_vl')}\ndataset_name: {data}\n")
    return lambda *flags: Run.from_file(path, flags)


def facts(run: Run) -> DataFacts:
    return data_facts(run, model_facts(run), lambda height, width: height * width // 784)


def prepared_lengths(run: Run) -> list[int]:
    """Lengths as training prepares them."""
    from sailplan.data.encode import Encoder
    from sailplan.data.formats import resolve_format
    from sailplan.data.images import image_opener
    from sailplan.data.prepare import prepare
    from sailplan.data.sources import load_rows
    from sailplan.model.families import family_of
    from sailplan.model.processor import load_processor
    from sailplan.model.source import load_config

    rows = load_rows(run)
    encoder = Encoder.of(run, load_processor(run), family_of(load_config(run)))
    data = prepare(run, rows, resolve_format(run, rows), encoder, image_opener(run, rows))
    return list(data.train["length"])


def test_lengths_are_those_of_training(run: MakeRun) -> None:
    wanted = run("--eval_size", "10")
    found = facts(wanted)
    assert list(found.lengths) == prepared_lengths(wanted)
    assert (found.rows, found.sampled, found.images_per_row) == (50, 50, 1)
    assert found.whole
    assert max(found.image_tokens) == found.largest_image_tokens > 0
    assert found.patches_per_token == 4  # as Qwen merges them
    assert 0 < found.trained_share < 1
    assert 56 <= found.image_height < 140
    assert found.notes == ()


def test_lengths_are_kept_until_the_data_changes(run: MakeRun, tmp_path: Path) -> None:
    first = facts(run())
    with only_kept():
        assert facts(run("--learning_rate", "1e-3")) == first
        with pytest.raises(NotKeptError):
            facts(run("--max_pixels", "3136"))
    with (tmp_path / "data/train.jsonl").open("a") as file:
        file.write((tmp_path / "data/train.jsonl").read_text().splitlines()[0] + "\n")
    with only_kept(), pytest.raises(NotKeptError):
        facts(run())


def test_rows_beyond_max_length_are_left_out_and_told(run: MakeRun) -> None:
    lengths = sorted(facts(run()).lengths)
    limit = lengths[len(lengths) // 2]
    found = facts(run("--max_length", str(limit)))
    assert found.longest <= limit
    assert found.rows
    assert found.rows < 60
    assert "of the rows are longer than" in found.notes[-1]
    with pytest.raises(DataError, match="every sampled row is longer than max_length 3"):
        facts(run("--max_length", "3"))


def test_broken_rows_are_counted_and_the_first_is_named(run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "data/7.png").unlink()
    found = facts(run())
    assert found.notes[0].startswith("1 of 60 sampled rows cannot be read; the first: row 7: ")


def test_lengths_without_a_tokenizer_are_guessed_from_characters(
    run: MakeRun, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        if (tiny_model("qwen2_vl") / name).is_file():
            shutil.copy(tiny_model("qwen2_vl") / name, bare)
    found = facts(run("--model_name_or_path", str(bare)))
    assert found.notes[0].startswith("lengths are a guess of 3.5 characters a token: ")
    assert (found.rows, found.images_per_row) == (60, 1)


def test_rows_that_are_not_here_are_assumed_and_said_so(run: MakeRun) -> None:
    found = facts(run("--dataset_name", "owner/elsewhere"))
    assert (found.rows, found.lengths, found.sampled) == (None, (ASSUMED_TOKENS,), 0)
    assert found.notes[0].startswith("the data is not at hand; assumed: every row has 2048 tokens")
    found = facts(run("--dataset_name", "owner/elsewhere", "--max_length", "300"))
    assert found.longest == 300


def test_padding_grows_with_the_micro_batch() -> None:
    lengths = tuple(range(1, 101))
    found = DataFacts(
        rows=100,
        lengths=lengths,
        trained_share=1.0,
        images_per_row=0,
        image_height=0,
        image_width=0,
        sampled=100,
    )
    assert found.padded(1) == pytest.approx(found.mean)
    # of two draws with replacement the mean of the larger is 67.2
    assert found.padded(2) == pytest.approx(67.165, abs=0.01)
    assert found.padded(64) > 97
    assert found.padded(64, grouped=True) == found.mean


def test_config_is_found_in_folder_cache_and_table(
    run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_facts(run()).config["model_type"] == "qwen2_vl"
    known = model_facts(run("--model_name_or_path", "Qwen/Qwen2-VL-7B-Instruct"))
    assert known.source == "sailplan's table of public models"
    assert known.image_processor
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "c" * 40
    folder = tmp_path / "hub/models--Qwen--Qwen2-VL-7B-Instruct"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text(json.dumps({"model_type": "mine"}))
    cached = model_facts(run("--model_name_or_path", "Qwen/Qwen2-VL-7B-Instruct"))
    assert (cached.config, cached.source) == ({"model_type": "mine"}, "the hub's cache")

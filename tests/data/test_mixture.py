"""Several entries under `datasets:`: TRL's rows, each with its own folder and its own numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from sailplan.data.collator import Collator
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.prepare import prepare
from sailplan.data.sources import load_rows
from sailplan.errors import DataError, RunFileError
from sailplan.run.config import Run
from tests.data.test_prepare import _encoder, _prepare
from tests.data.test_sources import png, write

Tiny = Callable[[str], Path]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the working directory, so that paths stand as in the documentation."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(folder: Path, text: str) -> Run:
    """Returns the run of a file with that text."""
    (folder / "run.yaml").write_text(text)
    return Run.from_file(folder / "run.yaml")


def texts(start: int, stop: int, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"t{number}", **more} for number in range(start, stop)]


@pytest.fixture
def sets(here: Path) -> Path:
    """Two data sets in folders that are called as on the Hub, and others beside them."""
    write(here / "stanfordnlp" / "imdb" / "train.jsonl", texts(0, 9, label=1))
    write(here / "stanfordnlp" / "imdb" / "test.jsonl", texts(9, 12, label=0))
    write(here / "roneneldan" / "TinyStories" / "train.parquet", texts(20, 25))
    write(here / "two" / "one.jsonl", texts(30, 31))
    write(here / "two" / "sub" / "train.jsonl", texts(40, 44))
    (here / "two" / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one.jsonl\n"
        "- config_name: sub\n  data_files: sub/train.jsonl\n---\n"
    )
    write(here / "plain" / "sub" / "train.jsonl", texts(50, 54, id="x"))
    return here


# As the page "Command Line Interfaces" of TRL's documentation has it, under "dataset mixtures".
DOCUMENTED = """\
# sft_config.yaml
model_name_or_path: Qwen/Qwen2.5-0.5B
datasets:
  - path: stanfordnlp/imdb
  - path: roneneldan/TinyStories
"""

# The keys of the example in `trl.DatasetMixtureConfig`.
ALL_KEYS = """\
datasets:
  - path: two
    name: sub
    split: train[1:]
    columns: [text]
    fraction: 0.2
  - path: stanfordnlp/imdb
    split: train+test
    columns: [text]
    fraction: 0.5
  - path: json
    data_files: {train: plain/sub/train.jsonl}
    columns: [text]
    fraction: 0.4
  - path: json
    data_dir: plain
    data_files: [sub/train.jsonl]
    columns: [text]
    fraction: 0
streaming: false
"""

FOLDERS = """\
datasets:
  - path: plain
    data_dir: sub
  - path: stanfordnlp/imdb
    split: test
"""


@pytest.mark.parametrize(
    ("text", "first_and_last", "count"),
    [
        (DOCUMENTED, ("t0", "t24"), 14),
        (ALL_KEYS, ("t41", "t53"), 11),
        (FOLDERS, ("t50", "t11"), 7),
    ],
    ids=["documented", "all keys", "folders"],
)
def test_rows_of_a_mixture_are_trls(
    sets: Path, text: str, first_and_last: tuple[str, str], count: int
) -> None:
    from trl import DatasetMixtureConfig, get_dataset

    run = run_of(sets, text)
    theirs = get_dataset(run.arguments(DatasetMixtureConfig))["train"]

    rows = load_rows(run)

    assert rows.train.to_list() == theirs.to_list()
    assert rows.train.features == theirs.features
    assert (rows.train["text"][0], rows.train["text"][-1]) == first_and_last
    assert len(rows.train) == count
    assert resolve_format(run, rows).name == "text"


def test_fraction_is_a_share_of_the_largest_mixture_without_repeats(sets: Path) -> None:
    entries = [("stanfordnlp/imdb", 3), ("roneneldan/TinyStories", 1)]
    lines = [f"- {{path: {path}, fraction: {share}}}" for path, share in entries]

    rows = load_rows(run_of(sets, "\n".join(["datasets:", *lines])))

    # 9 rows are three of four parts, so that the other part is its first 3 rows.
    assert rows.train["text"][:] == [f"t{number}" for number in (*range(9), 20, 21, 22)]


@pytest.mark.parametrize("option", ["eval_size", "test_split_size"])
def test_held_out_rows_are_of_the_whole_mixture(sets: Path, option: str) -> None:
    run = run_of(sets, f"{DOCUMENTED}{option}: 0.5\neval_strategy: epoch\n")

    rows = load_rows(run)

    assert rows.eval is not None
    assert (len(rows.train), len(rows.eval)) == (7, 7)
    assert len({*rows.train["text"], *rows.eval["text"]}) == 14
    assert rows.eval["text"][:] == load_rows(run).eval["text"][:]  # type: ignore[index]


def test_images_stored_in_rows_stay_encoded_beside_rows_without(here: Path) -> None:
    stored = {"bytes": png(), "path": None}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    for name in ("a", "b"):
        data = datasets.Dataset.from_list([{"text": name, "image": stored}], features=features)
        data.to_parquet(here / f"{name}.parquet")
    write(here / "c.jsonl", texts(0, 1))

    entries = "\n".join(f"- path: {name}" for name in ("a.parquet", "b.parquet", "c.jsonl"))
    rows = load_rows(run_of(here, f"datasets:\n{entries}\n"))

    assert rows.train["image"][:] == [stored, stored, None]


def test_rows_of_a_saved_selection_are_those_selected(here: Path) -> None:
    data = datasets.Dataset.from_list(texts(0, 9))
    data.select([7, 3]).save_to_disk(here / "some")
    write(here / "more.jsonl", texts(10, 12))

    rows = load_rows(run_of(here, "datasets:\n- path: more.jsonl\n- path: some\n"))

    assert rows.train["text"][:] == ["t10", "t11", "t7", "t3"]


REFUSED = {
    "fraction in one": (
        "datasets:\n- {path: a.jsonl, fraction: 0.5}\n- path: b.jsonl\n",
        RunFileError,
        "1 of 2 entries have a fraction; allowed: a fraction in every entry, or in none",
    ),
    "no shares": (
        "datasets:\n- {path: a.jsonl, fraction: -1}\n- {path: b.jsonl, fraction: 2}\n",
        RunFileError,
        "the fractions are -1, 2; allowed: shares of 0 or more",
    ),
    "nothing": (
        "datasets:\n- {path: a.jsonl, fraction: 0}\n",
        RunFileError,
        "the fractions are 0; allowed: shares of 0 or more, and one above 0",
    ),
    "types": (
        "datasets:\n- path: a.jsonl\n- path: b.jsonl\n- path: c.jsonl\n",
        DataError,
        r"column 'text' is Value\('string'\) in entry 1 \(a.jsonl\) and List\(Value\('string'\)\) "
        r"in entry 3 \(c.jsonl\); write it alike",
    ),
    "columns": (
        "datasets:\n- path: a.jsonl\n- {path: b.jsonl, columns: [text, label]}\n",
        DataError,
        "b.jsonl has no column 'label'; allowed: 'text', 'image'",
    ),
    "missing": ("datasets:\n- path: a.jsonl\n- path: ./none\n", DataError, "there is no ./none"),
    "split": (
        "datasets:\n- path: a.jsonl\n- {path: b.jsonl, split: 'gold[:2]'}\n",
        DataError,
        r"b.jsonl has no rows in a split 'gold\[:2\]'; allowed: train \(2 rows\)",
    ),
    "no rows": (
        "datasets:\n- path: a.jsonl\n- {path: b.jsonl, split: 'train[:0]'}\n",
        DataError,
        r"b.jsonl has no rows in split 'train\[:0\]'",
    ),
    "folder": (
        "datasets:\n- path: a.jsonl\n- {path: ., data_dir: sub}\n",
        DataError,
        "there is no folder sub; check data_dir",
    ),
    "two sizes": (
        "datasets:\n- path: a.jsonl\n- path: b.jsonl\neval_size: 1\ntest_split_size: 0.5\n",
        RunFileError,
        "eval_size and test_split_size both",
    ),
    "test split": (
        "datasets:\n- path: a.jsonl\n- path: b.jsonl\ndataset_test_split: test\n",
        RunFileError,
        "dataset_test_split with datasets; set eval_size",
    ),
    "streaming": (
        "datasets:\n- path: a.jsonl\n- path: b.jsonl\nstreaming: true\n",
        RunFileError,
        "dataset_streaming without max_steps; set max_steps",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mixture_that_cannot_be_is_refused_in_one_line(here: Path, case: str) -> None:
    text, error, message = REFUSED[case]
    write(here / "a.jsonl", texts(0, 2))
    write(here / "b.jsonl", texts(2, 4, image="a.png"))
    write(here / "c.jsonl", [{"text": ["t"]}])

    with pytest.raises(error, match=message) as caught:
        load_rows(run_of(here, text))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "^the columns fit no format; "),
        ("dataset_format: text\n", "^dataset_format text lacks the column 'text'; "),
        ("user_prompt: '{text}'\nanswer_column: answer\n", "^dataset_format template lacks the"),
    ],
    ids=["detected", "named", "template"],
)
def test_entries_without_a_format_in_common_are_named_with_their_columns(
    here: Path, more: str, message: str
) -> None:
    write(here / "a.jsonl", texts(0, 2, answer="yes"))
    write(here / "b.jsonl", [{"instruction": "Say x.", "output": "x"}])
    run = run_of(here, f"datasets:\n- path: a.jsonl\n- path: b.jsonl\n{more}")

    with pytest.raises(DataError, match=message) as caught:
        resolve_format(run, load_rows(run))

    assert (
        "columns seen in entry 1 (a.jsonl): 'text', 'answer'; "
        "in entry 2 (b.jsonl): 'instruction', 'output'"
    ) in str(caught.value)


def test_prompt_names_only_columns_of_all_entries(here: Path) -> None:
    write(here / "a.jsonl", texts(0, 2, answer="yes"))
    write(here / "b.jsonl", texts(0, 2, answer="no", kind="shoe"))
    run = run_of(
        here,
        "datasets:\n- path: a.jsonl\n- path: b.jsonl\n"
        "user_prompt: '{text} {kind}'\nanswer_column: answer\n",
    )

    with pytest.raises(DataError, match=r"\{kind\}, which is no column; allowed: 'text', 'answer'"):
        resolve_format(run, load_rows(run))


@pytest.fixture
def shops(here: Path) -> str:
    """Two shops whose pictures have the same names, and rows without any; the run file's text."""
    for shop, (side, count) in {"north": (56, 3), "south": (112, 4)}.items():
        rows = []
        for number in range(count):
            name = f"images/{number}.png"
            (here / shop / "images").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side)).save(here / shop / name)
            turns = [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": f"{shop} {number}."},
            ]
            rows.append({"image": name, "conversations": turns})
        write(here / shop / "train.json", rows)
    talk = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "You."}]
    write(here / "talk.jsonl", [{"id": 1, "conversations": talk}])
    return "datasets:\n- path: north\n- path: talk.jsonl\n- path: south/train.json\n"


def test_images_are_read_from_the_folder_of_their_entry(
    tiny_model: Tiny, here: Path, shops: str
) -> None:
    run = run_of(here, f"{shops}eval_size: 2\n")
    rows = load_rows(run)
    format, opener = resolve_format(run, rows), image_opener(run, rows)
    encoder = _encoder(tiny_model("qwen2_vl"), run)

    prepared = prepare(run, rows, format, encoder, opener)

    assert prepared.eval is not None
    collator = Collator(encoder.processor, encoder.family, format, opener)
    areas = {}
    for row in [*prepared.train, *prepared.eval]:
        batch = collator([row])
        words = encoder.processor.tokenizer.decode(batch["labels"][batch["labels"] >= 0])
        areas[words.removesuffix(".<|im_end|>")] = int(batch["image_grid_thw"].prod())
    north, south = (56 // 14) ** 2, (112 // 14) ** 2
    assert areas == {
        **{f"north {number}": north for number in range(3)},
        **{f"south {number}": south for number in range(4)},
        "You": north,  # the image that stands in where a batch has none
    }


def test_one_image_root_counts_for_every_entry(here: Path, shops: str) -> None:
    run = run_of(here, f"{shops}image_root: {here / 'north'}\n")

    opener = image_opener(run, load_rows(run))

    assert (opener.root, opener.entry_roots) == (here / "north", ())


def test_image_may_not_leave_the_folder_of_its_entry(
    tiny_model: Tiny, here: Path, shops: str
) -> None:
    path = here / "south" / "train.json"
    rows = json.loads(path.read_text())
    rows[2]["image"] = "../north/images/0.png"
    path.write_text(json.dumps(rows))

    with pytest.raises(DataError) as caught:
        _prepare(tiny_model("qwen2_vl"), run_of(here, shops))

    assert str(caught.value) == (
        "train row 2 (from 0) of entry 3 (south/train.json): image '../north/images/0.png' lies "
        f"outside image_root; allowed: files under {here / 'south'}"
    )


@pytest.mark.parametrize(
    ("image", "where"),
    [
        ("north/images/2.png", r"row 2 \(from 0\) of entry 1 \(north\)"),
        ("south/images/3.png", r"row 3 \(from 0\) of entry 3 \(south/train.json\)"),
    ],
)
def test_error_names_entry_and_row_where_rows_are_held_out(
    tiny_model: Tiny, here: Path, shops: str, image: str, where: str
) -> None:
    (here / image).unlink()
    run = run_of(here, f"{shops}eval_size: 4\n")

    with pytest.raises(DataError, match=rf"^(train|eval) {where}: image .* is missing"):
        _prepare(tiny_model("qwen2_vl"), run)


def test_row_that_is_too_long_is_named_by_its_entry(
    tiny_model: Tiny, here: Path, shops: str
) -> None:
    run = run_of(here, f"{shops}max_length: 65\nover_length: fail\n")

    with pytest.raises(DataError, match=r"the first is row 0 \(from 0\) of entry 3 \(south"):
        _prepare(tiny_model("qwen2_vl"), run)


_PROCESS = """
import sys
from pathlib import Path
import datasets
from sailplan.data.sources import load_rows
from sailplan.run.config import Run

datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1])
print(load_rows(Run.from_file("run.yaml")).train._fingerprint)
"""


def test_mixture_is_the_same_to_the_cache_of_another_process(
    here: Path, shops: str, datasets_cache: Path
) -> None:
    run = run_of(here, f"{shops}eval_size: 2\n")

    done = subprocess.run(
        [sys.executable, "-c", _PROCESS, str(datasets_cache)],
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.stdout.strip() == load_rows(run).train._fingerprint, done.stderr

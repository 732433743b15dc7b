"""The token cache under what befalls it: kills, full disks, changes, two builders at once."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import transformers
from PIL import Image

from sailplan.data import token_cache
from sailplan.data.collator import Collator
from sailplan.data.encode import Encoded, Encoder
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.labels import UNTRAINED
from sailplan.data.prepare import Prepared, prepare
from sailplan.data.sources import Rows, load_rows
from sailplan.data.token_rows import column, labels_of, spans_of
from sailplan.errors import DataError, OutputError
from sailplan.model.families import family_of
from sailplan.model.pixels import set_pixel_budget
from sailplan.run.config import Run
from tests.support.launch import two_ranks

RunOn = Callable[..., Run]
Tiny = Callable[[str], Path]
_FORK = multiprocessing.get_context("fork")


class LoggedEncoder(Encoder):
    """Appends a byte to a file for each row that any process encodes, and may take its time."""

    log: Path
    delay_s = 0.0

    def encode(self, *arguments: Any) -> Encoded:
        with self.log.open("ab") as file:
            file.write(b".")
        time.sleep(self.delay_s)
        return super().encode(*arguments)

    @property
    def count(self) -> int:
        """How many rows were encoded since the log began."""
        return self.log.stat().st_size if self.log.exists() else 0


def encoder_of(
    model: Path, run: Run, log: Path, *, change: Callable[[Any], None] = lambda _: None
) -> LoggedEncoder:
    """Returns the encoder of a tiny model whose processor was changed."""
    config = transformers.AutoConfig.from_pretrained(model)
    auto = (
        transformers.AutoTokenizer if config.model_type == "llama" else transformers.AutoProcessor
    )
    processor = auto.from_pretrained(model)
    change(processor)
    encoder = LoggedEncoder.of(run, processor, family_of(config))
    encoder.log = log
    return encoder


def prepared(run: Run, encoder: Encoder, rows: Rows | None = None) -> Prepared:
    """Returns what the trainer would be given."""
    rows = rows or load_rows(run)
    return prepare(run, rows, resolve_format(run, rows), encoder, image_opener(run, rows))


def texts(folder: Path, count: int, *, broken: tuple[int, ...] = ()) -> Path:
    """Writes instructions with answers of unequal length; broken ones have none."""
    rows = [
        {
            "instruction": f"Say number {number}.",
            "output": "" if number in broken else f"It is {number}" + ", so" * (number % 7),
        }
        for number in range(count)
    ]
    path = folder / "texts.json"
    path.write_text(json.dumps(rows))
    return path


def contents(rows: Any) -> list[tuple[list[int], list[int]]]:
    """Returns ids and labels of all rows."""
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in rows]


def wait_until(met: Callable[[], bool]) -> None:
    """Waits for other processes."""
    end = time.monotonic() + 60
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def files(pattern: str) -> list[Path]:
    """Returns files of the cache."""
    return sorted(token_cache.folder().glob(pattern))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path) -> Iterator[Path]:
    """A cache for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
        yield tmp_path / "hf"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six chats with none, one and two images of several sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for number in range(6):
        names = [f"{number}-{index}.jpg" for index in range(number % 3)]
        for index, name in enumerate(names):
            Image.new("RGB", (56 + 28 * number, 56 + 28 * index)).save(folder / name)
        turns = [
            {"role": "user", "content": f"What is number {number}?"},
            {"role": "assistant", "content": f"A {number}."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
        rows.append(json.dumps({"images": names, "messages": turns}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows))
    return path


def test_rows_are_read_as_arrays_with_their_images(
    tiny_model: Tiny, pictures: Path, tmp_path: Path, run_on: RunOn
) -> None:
    run = run_on(pictures)
    raw = load_rows(run)
    format, opener = resolve_format(run, raw), image_opener(run, raw)
    encoder = encoder_of(tiny_model("qwen2_vl"), run, tmp_path / "log")
    image_id = encoder.processor.image_token_id

    rows = pickle.loads(pickle.dumps(prepared(run, encoder, raw).train))  # as to a spawned worker

    batch = rows.__getitems__([5, 0, 2])
    assert [row["row"] for row in batch] == [5, 0, 2]
    for number, row in enumerate(rows):
        sample = format.sample(raw.train[number])
        sizes = [opener.size(image) for image in sample["images"]]
        expected = Encoder.encode(encoder, sample, sizes)
        assert row["input_ids"].dtype == row["labels"].dtype == np.int32
        assert row["input_ids"].tolist() == expected.input_ids
        assert row["labels"].tolist() == expected.labels
        assert row["length"] == len(expected.input_ids)
        assert row["trained"] == sum(label != UNTRAINED for label in expected.labels)
        assert row["num_images"] == len(row["images"]) == number % 3
        assert row["image_tokens"] == expected.input_ids.count(image_id)
        assert row["place"] == f"train row {number} (from 0)"
        row["labels"][:] = 0  # a row is the reader's own
        row["input_ids"][:] = 0
    assert batch[0]["input_ids"].tolist() == rows[5]["input_ids"].tolist()
    assert rows[:2]["labels"][1].tolist() == rows[1]["labels"].tolist()
    assert "pixel_values" in Collator(encoder.processor, encoder.family, format, opener)(batch)


def test_columns_follow_a_selection_and_need_no_row(
    tiny_model: Tiny, pictures: Path, tmp_path: Path, run_on: RunOn
) -> None:
    run = run_on(pictures)
    rows = prepared(run, encoder_of(tiny_model("qwen2_vl"), run, tmp_path / "log")).train
    assert isinstance(rows, datasets.Dataset)
    chosen = rows.select([4, 1])

    assert column(chosen, "num_images").tolist() == chosen["num_images"][:] == [1, 1]
    assert column(chosen, "length").tolist() == [len(chosen[i]["input_ids"]) for i in (0, 1)]
    assert [row["place"] for row in chosen] == ["train row 4 (from 0)", "train row 1 (from 0)"]


@pytest.mark.parametrize("trained", ["", "0", "1", "0110", "1011", "110"])
def test_spans_give_back_the_labels(trained: str) -> None:
    mask = np.array([mark == "1" for mark in trained], dtype=bool)
    ids = np.arange(7, 7 + len(trained), dtype=np.int32)

    assert labels_of(ids, spans_of(mask)).tolist() == np.where(mask, ids, UNTRAINED).tolist()


def _other_template(processor: Any) -> None:
    processor.chat_template = processor.chat_template.replace("You are a", "You were a")


def _smaller_images(processor: Any) -> None:
    set_pixel_budget(processor, min_pixels=None, max_pixels=28 * 28 * 4)


def _nothing(_: Any) -> None:
    pass


def test_rows_are_encoded_anew_where_something_that_decides_has_changed(
    tiny_model: Tiny, pictures: Path, tmp_path: Path, run_on: RunOn
) -> None:
    counts, lengths = {}, {}

    def start(what: str, change: Callable[[Any], None] = _nothing, *flags: str) -> None:
        run, log = run_on(pictures, *flags), tmp_path / what
        encoder = encoder_of(tiny_model("qwen2_vl"), run, log, change=change)
        lengths[what] = sum(column(prepared(run, encoder).train, "length"))
        counts[what] = encoder.count

    start("first")
    start("unchanged")
    start("limit", _nothing, "--max_length", "1000")
    start("cut", _nothing, "--max_length", "1000", "--over_length", "truncate_text")
    start("template", _other_template)
    start("pixels", _smaller_images)
    lines = pictures.read_text().replace("Sure?", "Really sure?")
    pictures.write_text(lines)
    start("data")
    start("data again")

    assert counts.pop("first") == 6
    assert {what for what, count in counts.items() if count} == {
        *("cut", "template", "pixels", "data")
    }
    assert lengths["pixels"] < lengths["first"] < lengths["data"]


def test_rows_in_memory_are_cached_too(
    tiny_model: Tiny, tmp_path: Path, run_on: RunOn, own_cache: Path
) -> None:
    run = run_on(texts(tmp_path, 20))
    kept = load_rows(run)
    counts = []
    for _ in range(2):
        rows = datasets.Dataset.from_list(list(kept.train))
        assert not rows.cache_files
        encoder = encoder_of(tiny_model("llama"), run, tmp_path / f"log{len(counts)}")
        held = Rows(train=rows, eval=None, entries=kept.entries, numbers=kept.numbers)
        prepared(run, encoder, held)
        counts.append(encoder.count)

    assert counts == [20, 0]


def test_streams_are_never_cached(tiny_model: Tiny, tmp_path: Path, run_on: RunOn) -> None:
    path = tmp_path / "stream.jsonl"
    path.write_text("\n".join(map(json.dumps, json.loads(texts(tmp_path, 8).read_text()))))
    run = run_on(path, "--dataset_streaming", "--max_steps", "2")

    rows = prepared(run, encoder_of(tiny_model("llama"), run, tmp_path / "log")).train

    assert len(next(iter(rows))["input_ids"]) > 3
    assert not token_cache.folder().exists()


def test_error_of_several_workers_is_that_of_the_first_bad_row(
    tiny_model: Tiny, tmp_path: Path, run_on: RunOn
) -> None:
    run = run_on(texts(tmp_path, 400, broken=(390, 300, 150)), "--dataset_num_proc", "2")
    encoder = encoder_of(tiny_model("llama"), run, tmp_path / "log")

    with pytest.raises(DataError, match=r"^train row 150 \(from 0\): "):
        prepared(run, encoder)
    assert not files("*.arrow") + files("*.part")


def _build(run: Run, encoder: LoggedEncoder, outcome: Path, start: Any = None) -> None:
    """What a process of a test does: prepares, and writes down what it got."""
    if start is not None:
        start.wait()
    try:
        found: Any = contents(prepared(run, encoder).train)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    outcome.write_text(json.dumps(found))


def test_killed_build_leaves_nothing_that_looks_whole(
    tiny_model: Tiny, tmp_path: Path, run_on: RunOn
) -> None:
    run = run_on(texts(tmp_path, 600), "--dataset_num_proc", "2")
    encoder = encoder_of(tiny_model("llama"), run, tmp_path / "log")
    encoder.delay_s = 0.02
    builder = _FORK.Process(target=_build, args=(run, encoder, tmp_path / "outcome"))
    builder.start()
    wait_until(lambda: encoder.count > 200)
    assert builder.pid is not None
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert not files("*.arrow")
    assert files("*.part")

    again = encoder_of(tiny_model("llama"), run, tmp_path / "log again")
    rows = prepared(run, again).train

    assert again.count == 600
    assert [len(files(pattern)) for pattern in ("*.arrow", "*.part")] == [1, 0]
    raw, format = load_rows(run), resolve_format(run, load_rows(run))
    expected = [Encoder.encode(again, format.sample(row), []) for row in raw.train]
    assert contents(rows) == [(one.input_ids, one.labels) for one in expected]


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_two_builds_at_once_both_end_right(
    tiny_model: Tiny,
    tmp_path: Path,
    run_on: RunOn,
    monkeypatch: pytest.MonkeyPatch,
    locks: bool,
) -> None:
    if not locks:  # as on a network file system whose locks do nothing
        monkeypatch.setattr(token_cache, "one_process", lambda *_, **__: contextlib.nullcontext())
    run = run_on(texts(tmp_path, 60))
    encoder = encoder_of(tiny_model("llama"), run, tmp_path / "log")
    encoder.delay_s = 0.01
    load_rows(run)
    start = _FORK.Barrier(2)
    outcomes = [tmp_path / "first", tmp_path / "second"]
    builders = [
        _FORK.Process(target=_build, args=(run, encoder, outcome, start)) for outcome in outcomes
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()

    first, second = (json.loads(outcome.read_text()) for outcome in outcomes)
    assert len(first) == 60
    assert first == second
    assert encoder.count == (60 if locks else 120)
    assert [len(files(pattern)) for pattern in ("*.arrow", "*.part")] == [1, 0]


def test_those_who_wait_fail_with_the_builder_and_do_not_build(
    tiny_model: Tiny, tmp_path: Path, run_on: RunOn
) -> None:
    run = run_on(texts(tmp_path, 60, broken=(50,)))
    encoder = encoder_of(tiny_model("llama"), run, tmp_path / "log")
    encoder.delay_s = 0.01
    load_rows(run)
    outcomes = [tmp_path / str(number) for number in range(3)]
    first, *others = (
        _FORK.Process(target=_build, args=(run, encoder, outcome)) for outcome in outcomes
    )
    first.start()
    wait_until(lambda: encoder.count > 0)
    for other in others:
        other.start()
    for builder in (first, *others):
        builder.join()

    said = {json.loads(outcome.read_text()) for outcome in outcomes}
    assert len(said) == 1
    assert said.pop().startswith("DataError: train row 50 (from 0): ")
    assert encoder.count == 50
    # The next start looks anew: what was wrong may have been put right meanwhile.
    run = run_on(texts(tmp_path, 60))
    assert len(prepared(run, encoder).train) == 60


@contextlib.contextmanager
def _small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[], None]]:
    """Mounts a file system of so little room, and gives what makes it large."""
    folder.mkdir(parents=True)

    def mount(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)

    made = mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs")
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield lambda: mount("-o", "remount,size=64m").check_returncode()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("seen", ["beforehand", "while writing"])
def test_full_disk_is_one_line_and_a_later_start_is_right(
    tiny_model: Tiny,
    tmp_path: Path,
    run_on: RunOn,
    monkeypatch: pytest.MonkeyPatch,
    seen: str,
) -> None:
    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    num_rows = 1100 if seen == "beforehand" else 1000
    run = run_on(texts(tmp_path, num_rows), "--dataset_num_proc", "2")
    rows = load_rows(run)
    encoder = encoder_of(tiny_model("llama"), run, tmp_path / "log")
    with _small_disk(tmp_path / "small", 96) as enlarge:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "small")
        with pytest.raises(OutputError) as full:
            prepared(run, encoder, rows)
        assert re.fullmatch(
            rf"the tokens of {num_rows} train rows take about \d+\.\d kB, "
            r"\S+/small/sailplan/tokens has room for \d+\.\d kB; make room there, "
            r"or set HF_DATASETS_CACHE to a folder on another disk",
            str(full.value),
        )
        assert (encoder.count < num_rows) == (seen == "beforehand")
        assert not files("*.arrow") + files("*.part")
        enlarge()
        assert len(prepared(run, encoder, rows).train) == num_rows


def test_file_size_limit_is_one_line(tiny_model: Tiny, tmp_path: Path, run_on: RunOn) -> None:
    run = run_on(texts(tmp_path, 1000))
    encoder = encoder_of(tiny_model("llama"), run, tmp_path / "log")
    load_rows(run)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, 64_000))
        _build(run, encoder, tmp_path / "outcome")

    builder = _FORK.Process(target=limited)
    builder.start()
    builder.join()

    said = json.loads((tmp_path / "outcome").read_text())
    assert said.startswith("OutputError: the tokens of 1000 train rows take about ")
    assert "(File too large); make room there" in said
    assert not files("*.arrow") + files("*.part")
    assert len(prepared(run, encoder).train) == 1000


def test_cache_that_cannot_be_written_is_one_line(
    tiny_model: Tiny, tmp_path: Path, run_on: RunOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(texts(tmp_path, 3))
    rows = load_rows(run)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")

    with pytest.raises(OutputError, match=r"cannot be written: Not a directory; set HF_DATASETS_"):
        prepared(run, encoder_of(tiny_model("llama"), run, tmp_path / "log"), rows)


def test_file_that_a_disk_lost_a_part_of_is_made_anew(
    tiny_model: Tiny, tmp_path: Path, run_on: RunOn
) -> None:
    run = run_on(texts(tmp_path, 30))
    encoder = encoder_of(tiny_model("llama"), run, tmp_path / "log")
    before = contents(prepared(run, encoder).train)
    (file,) = files("*.arrow")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    assert contents(prepared(run, encoder).train) == before
    assert encoder.count == 60


_RANK = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import datasets, torch
import torch.distributed as dist
from accelerate import PartialState
from sailplan.run.config import Run
from tests.data.test_token_cache import encoder_of, prepared

folder, data, model = map(Path, sys.argv[1:])
state = PartialState(cpu=True, timeout=timedelta(seconds=2))
run = Run.from_flags(["--dataset_name", str(data)])

def begin(name, delay_s):
    datasets.config.HF_DATASETS_CACHE = folder / name
    encoder = encoder_of(model, run, folder / "log" / name)
    encoder.delay_s = delay_s
    started = time.monotonic()
    rows = prepared(run, encoder).train
    total = torch.tensor([float(len(rows))])
    dist.all_reduce(total)
    late = time.monotonic() - started > 3.5
    line = f"{name}: rank {state.process_index} has {total.item():.0f} rows, {late}\\n"
    os.write(1, line.encode())  # at once: ranks share the pipe

(folder / "log").mkdir(exist_ok=True)
begin("shared", 0.06)  # for 4 s, on one of them
begin(f"own-{state.process_index}", 0.06 * state.process_index)  # as on two machines
if state.process_index:
    time.sleep(4)
try:
    dist.barrier()
except RuntimeError:
    os.write(1, b"the time-out holds\\n")
os._exit(0)
"""


def test_ranks_wait_longer_than_the_time_out_of_their_group(
    tiny_model: Tiny, tmp_path: Path
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    arguments = [tmp_path / "ranks", texts(tmp_path, 60), tiny_model("llama")]
    (tmp_path / "ranks").mkdir()

    done = two_ranks(script, arguments)

    said = set(done.stdout.splitlines())
    assert {
        *(f"shared: rank {rank} has 120 rows, True" for rank in (0, 1)),
        *(f"own-{rank}: rank {rank} has 120 rows, True" for rank in (0, 1)),
        "the time-out holds",
    } <= said, done.stderr
    assert (tmp_path / "ranks" / "log" / "shared").stat().st_size == 60

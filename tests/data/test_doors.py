"""The same fifty samples through every door that makes sense: each gives the same batches.

A door is a source (how the rows lie on the disk) with a format (how a row is written). Pictures of
every odd kind are among them.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from sailplan.data.collator import Collator
from sailplan.data.encode import Encoder
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.prepare import prepare
from sailplan.data.sources import load_rows
from sailplan.model.families import Family, family_of
from sailplan.run.config import Run

COUNT = 50


class Item(NamedTuple):
    """One sample, before it is written down in any way."""

    question: str
    answer: str
    images: tuple[str, ...]
    """Names of its picture files, at most two."""


Rows = list[dict[str, Any]]


# The samples and their pictures


def _noise(mode: str, size: tuple[int, int]) -> Image.Image:
    chance = np.random.default_rng(size[0] * 1000 + size[1])
    pixels = chance.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(_noise("RGB", (80, 30)), "JPEG", exif=exif)


def _sixteen_bit() -> bytes:
    values = np.random.default_rng(1).integers(0, 65536, (40, 50), dtype=np.uint16)
    return _saved(Image.fromarray(values), "PNG")


def _animated(kind: str) -> bytes:
    frames = [_noise("RGB", (40, 40)), _noise("RGB", (40, 41)).resize((40, 40))]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:])


PICTURES: dict[str, Callable[[], bytes]] = {
    "plain.jpg": lambda: _saved(_noise("RGB", (60, 44)), "JPEG"),
    "plain.png": lambda: _saved(_noise("RGB", (33, 70)), "PNG"),
    "rotated.jpg": _rotated,
    "cmyk.jpg": lambda: _saved(_noise("CMYK", (50, 40)), "JPEG"),
    "grey.jpg": lambda: _saved(_noise("L", (50, 40)), "JPEG"),
    "palette.png": lambda: _saved(_noise("RGB", (50, 40)).quantize(16), "PNG"),
    "palette_transparent.png": lambda: _saved(
        _noise("RGB", (50, 40)).quantize(16), "PNG", transparency=3
    ),
    "alpha.png": lambda: _saved(_noise("RGBA", (50, 40)), "PNG"),
    "grey_alpha.png": lambda: _saved(_noise("LA", (50, 40)), "PNG"),
    "one_bit.png": lambda: _saved(_noise("1", (50, 40)), "PNG"),
    "sixteen_bit.png": _sixteen_bit,
    "animated.gif": lambda: _animated("GIF"),
    "animated.webp": lambda: _animated("WEBP"),
    "one_pixel.png": lambda: _saved(_noise("RGB", (1, 1)), "PNG"),
    "very_long.png": lambda: _saved(_noise("RGB", (380, 3)), "PNG"),
    "tiff.tiff": lambda: _saved(_noise("RGB", (40, 30)), "TIFF"),
    "bitmap.bmp": lambda: _saved(_noise("RGB", (40, 30)), "BMP"),
}


@cache
def picture(name: str) -> bytes:
    """The content of a picture's file."""
    return PICTURES[name]()


def draw_all(folder: Path) -> None:
    """Writes every picture's file."""
    for name in PICTURES:
        (folder / name).write_bytes(picture(name))


def items() -> list[Item]:
    """Fifty samples: none, one or two pictures, each kind of picture several times."""
    names = list(PICTURES)
    found = []
    for number in range(COUNT):
        first, second = names[number % len(names)], names[(number * 7 + 3) % len(names)]
        images = ((first,), (first, second), (first,), ())[number % 4]
        words = f"Number {number}: what is shown?"
        found.append(Item(words, f"It is the {number}. thing.", images))
    return found


# Formats: how a sample is written as a row


def _user(item: Item, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    asked = [*parts, {"type": "text", "text": item.question}]
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": item.answer}]},
    ]


def _messages(item: Item, _: Path) -> dict[str, Any]:
    parts = [{"type": "image"} for _ in item.images]
    return {"messages": _user(item, *parts), "images": list(item.images)}


def _plain_messages(item: Item, _: Path) -> dict[str, Any]:
    said = {"user": item.question, "assistant": item.answer}
    turns = [{"role": role, "content": words} for role, words in said.items()]
    return {"messages": turns, "images": list(item.images)}


def _openai(item: Item, _: Path) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": name}} for name in item.images]
    return {"messages": _user(item, *parts)}


def _data_urls(item: Item, folder: Path) -> dict[str, Any]:
    encoded = (base64.b64encode((folder / name).read_bytes()).decode() for name in item.images)
    urls = [f"data:image/png;base64,{text}" for text in encoded]
    return {"messages": _user(item, *({"type": "image_url", "image_url": url} for url in urls))}


def _sharegpt(item: Item, _: Path) -> dict[str, Any]:
    asked = "<image>" * len(item.images) + item.question
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": item.answer}]
    return {"conversations": turns, "image": list(item.images)}


def _prompt_completion(item: Item, folder: Path) -> dict[str, Any]:
    row = _messages(item, folder)
    asked, answered = row["messages"]
    return {"prompt": [asked], "completion": [answered], "images": row["images"]}


def _json_text(item: Item, folder: Path) -> dict[str, Any]:
    return {"messages": json.dumps(_openai(item, folder)["messages"])}


def _columns(item: Item, _: Path) -> dict[str, Any]:
    front, back = (*item.images, None, None)[:2]
    return {"front": front, "back": back, "asked": item.question, "said": item.answer}


FORMATS: dict[str, Callable[[Item, Path], dict[str, Any]]] = {
    "messages": _messages,
    "plain messages": _plain_messages,
    "openai": _openai,
    "data urls": _data_urls,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "json text": _json_text,
    "columns": _columns,
}
FLAGS = {
    "columns": [
        *("--user_prompt", "{front}{back}{asked}", "--answer_column", "said"),
        *("--image_columns", "front", "back"),
    ],
}


# Sources: how rows and pictures lie on the disk. Each returns the run's flags


def _lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _put(folder: Path, name: str, rows: Rows) -> list[str]:
    (folder / name).write_text(_lines(rows) if name.endswith("l") else json.dumps(rows))
    return ["--dataset_name", str(folder / name)]


def _compressed(folder: Path, rows: Rows) -> list[str]:
    import gzip

    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(_lines(rows).encode()))
    return ["--dataset_name", str(folder / "rows.jsonl.gz")]


def _csv(folder: Path, rows: Rows) -> list[str]:
    import csv

    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return ["--dataset_name", str(folder / "rows.csv")]


def _table(rows: Rows) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


def _parquet(folder: Path, rows: Rows) -> list[str]:
    _table(rows).to_parquet(folder / "rows.parquet")
    return ["--dataset_name", str(folder / "rows.parquet")]


def _embedded(folder: Path, rows: Rows) -> list[str]:
    """The bytes of the pictures in the table, as the Hub's viewer has them."""

    def stored(name: str | None) -> dict[str, Any] | None:
        return {"path": name, "bytes": (folder / name).read_bytes()} if name else None

    out = []
    for row in rows:
        images = [name for key in ("images", "image") for name in row.get(key) or ()]
        out.append({k: v for k, v in row.items() if k not in ("images", "image")})
        out[-1]["images"] = [stored(name) for name in images]
    features = _table([{k: v for k, v in row.items() if k != "images"} for row in out]).features
    features["images"] = datasets.List(datasets.Image())
    datasets.Dataset.from_list(out, features=features).to_parquet(folder / "rows.parquet")
    return ["--dataset_name", str(folder / "rows.parquet")]


def _arrow(folder: Path, rows: Rows) -> list[str]:
    import pyarrow as pa

    table = _table(rows).data.table
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    return ["--dataset_name", str(folder / "rows.arrow")]


def _saved_to_disk(folder: Path, rows: Rows) -> list[str]:
    _table(rows).save_to_disk(folder / "saved")
    return ["--dataset_name", str(folder / "saved"), "--image_root", str(folder)]


def _folder(folder: Path, rows: Rows) -> list[str]:
    (folder / "train-00000.jsonl").write_text(_lines(rows[:20]))
    (folder / "train-00001.jsonl").write_text(_lines(rows[20:]))
    return ["--dataset_name", str(folder)]


def _glob(folder: Path, rows: Rows) -> list[str]:
    _folder(folder, rows)
    (folder / "other.jsonl").write_text('{"text": "not these"}\n')
    return ["--dataset_name", str(folder / "train-*.jsonl")]


def _zip(folder: Path, rows: Rows) -> list[str]:
    """Rows and pictures in one archive."""
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("shop/rows.jsonl", _lines(rows))
        for name in PICTURES:
            archive.write(folder / name, f"shop/{name}")
    return ["--dataset_name", str(folder / "all.zip")]


def _zipped_images(folder: Path, rows: Rows) -> list[str]:
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name in PICTURES:
            archive.write(folder / name, name)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "rows.jsonl").write_text(_lines(rows))
    rows_at, images_at = folder / "elsewhere", folder / "images.zip"
    return ["--dataset_name", str(rows_at), "--image_root", str(images_at)]


def _webdataset(path: Path, folder: Path, rows: Rows, start: int) -> None:
    with tarfile.open(path, "w") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for number, row in enumerate(rows, start=start):
            kept = {k: v for k, v in row.items() if k not in ("images", "image")}
            add(f"{number:06}.json", json.dumps(kept).encode())
            images = row.get("images") or row.get("image") or []
            for place, name in enumerate(images):
                content = (folder / name).read_bytes()
                add(f"{number:06}.{place}{Path(name).suffix}", content)


def _tar(folder: Path, rows: Rows) -> list[str]:
    _webdataset(folder / "shard.tar", folder, rows, 0)
    return ["--dataset_name", str(folder / "shard.tar")]


def _tars(folder: Path, rows: Rows) -> list[str]:
    for number in range(2):
        part = rows[25 * number : 25 * (number + 1)]
        _webdataset(folder / f"shard-{number}.tar", folder, part, 25 * number)
    return ["--dataset_name", str(folder / "shard-*.tar")]


SOURCES: dict[str, Callable[[Path, Rows], list[str]]] = {
    "json": lambda folder, rows: _put(folder, "rows.json", rows),
    "jsonl": lambda folder, rows: _put(folder, "rows.jsonl", rows),
    "jsonl.gz": _compressed,
    "csv": _csv,
    "parquet": _parquet,
    "parquet with images": _embedded,
    "arrow": _arrow,
    "save_to_disk": _saved_to_disk,
    "folder": _folder,
    "glob": _glob,
    "zip": _zip,
    "zipped images": _zipped_images,
    "webdataset": _tar,
    "webdataset shards": _tars,
}
IMAGES_APART = {"messages", "plain messages", "sharegpt", "prompt_completion"}
"""Formats whose pictures stand in a column of their own."""
ONLY: dict[str, set[str]] = {
    "csv": {"json text", "columns"},  # a cell holds no list
    "parquet with images": IMAGES_APART,
    "webdataset": {"messages", "sharegpt", "prompt_completion"},  # its pictures are files
    "webdataset shards": {"messages"},
}
"""Sources that only some formats can lie in."""
DOORS = [
    (source, format)
    for source in SOURCES
    for format in FORMATS
    if format in ONLY.get(source, set(FORMATS))
]


@pytest.fixture(scope="module")
def processor(tiny_model: Callable[[str], Path]) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_model("qwen2_vl"))


@pytest.fixture(scope="module")
def family(tiny_model: Callable[[str], Path]) -> Family:
    from transformers import AutoConfig

    return family_of(AutoConfig.from_pretrained(tiny_model("qwen2_vl")))


class Through(NamedTuple):
    """What came through a door."""

    rows: list[dict[str, Any]]
    batches: list[dict[str, torch.Tensor]]
    collate: Collator


Door = Callable[..., Through]


def pass_through(run: Run, processor: Any, family: Family) -> Through:
    """Reads, encodes and collates the rows of a run as training does."""
    raw = load_rows(run)
    found, opener = resolve_format(run, raw), image_opener(run, raw)
    encoder = Encoder.of(run, processor, family)
    rows_of = iter(prepare(run, raw, found, encoder, opener).train)
    encoded = list(itertools.islice(rows_of, COUNT))  # a stream goes on for ever
    collate = Collator(processor, family, found, opener)
    batches = [collate(encoded[start : start + 10]) for start in range(0, len(encoded), 10)]
    return Through(encoded, batches, collate)


@pytest.fixture(scope="module")
def through(processor: Any, family: Family, tmp_path_factory: pytest.TempPathFactory) -> Door:
    """Writes the samples down in one way, and reads, encodes and collates them as a run does."""

    def go(source: str, format: str, *more: str) -> Through:
        folder = tmp_path_factory.mktemp("door")
        draw_all(folder)
        rows = [FORMATS[format](item, folder) for item in items()]
        flags = [*SOURCES[source](folder, rows), *FLAGS.get(format, []), *more, "--use_cpu"]
        return pass_through(Run.from_flags(flags), processor, family)

    return go


@pytest.fixture(scope="module")
def reference(through: Door) -> Through:
    return through("jsonl", "messages")


def test_reference_has_every_picture_and_rows_without(reference: Through) -> None:
    assert len(reference.rows) == COUNT
    shown = {name for item in items() for name in item.images}
    assert shown == set(PICTURES)
    assert any(not item.images for item in items())
    assert len({tuple(row["input_ids"]) for row in reference.rows}) == COUNT


@pytest.mark.parametrize(("source", "format"), DOORS)
def test_samples_are_the_same_through_every_door(
    through: Door, reference: Through, source: str, format: str
) -> None:
    assert_same(through(source, format), reference)


STREAM = ["--dataset_streaming", "--max_steps", "1", "--shuffle_buffer_size", "1"]


@pytest.mark.parametrize(("source", "format"), DOORS)
def test_samples_are_the_same_where_they_are_streamed(
    through: Door, reference: Through, source: str, format: str
) -> None:
    assert_same(through(source, format, *STREAM), reference)


def assert_same(found: Through, reference: Through) -> None:
    assert list(map(tokens, found.rows)) == list(map(tokens, reference.rows))
    for ours, theirs in zip(found.batches, reference.batches, strict=True):
        assert_equal(ours, theirs)


def tokens(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Returns ids and labels, which are arrays, or lists where the row is streamed."""
    return list(row["input_ids"]), list(row["labels"])


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def _asked(item: Item) -> dict[str, Any]:
    return {"asked": item.question, "said": item.answer}


IMAGE_FOLDERS: dict[str, tuple[Callable[[Item], dict[str, Any]], list[str]]] = {
    "columns": (_asked, ["--user_prompt", "{image}{asked}", "--answer_column", "said"]),
    "messages": (lambda item: {"messages": _user(item, {"type": "image"})}, []),
}
"""What stands beside `file_name` in the metadata of an image folder, and the run's flags."""


@pytest.mark.parametrize("more", [[], STREAM], ids=["ahead", "streamed"])
@pytest.mark.parametrize(
    ("kind", "format"),
    [
        *(("jsonl", "columns"), ("csv", "columns"), ("parquet", "columns")),
        *(("jsonl", "messages"), ("parquet", "messages")),
    ],
)
def test_image_folder_with_metadata_gives_the_same_samples(
    reference: Through,
    processor: Any,
    family: Family,
    tmp_path: Path,
    kind: str,
    format: str,
    more: list[str],
) -> None:
    """One picture a row, as the layout has it: half of the samples."""
    single = [number for number, item in enumerate(items()) if len(item.images) == 1]
    write, flags = IMAGE_FOLDERS[format]
    lines = []
    for number in single:
        item = items()[number]
        name = f"{number:02}-{item.images[0]}"
        (tmp_path / name).write_bytes(picture(item.images[0]))
        lines.append({"file_name": name, **write(item)})
    if kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text(_lines(lines))
    else:
        getattr(_table(lines), f"to_{kind}")(tmp_path / f"metadata.{kind}")
    run = Run.from_flags(["--dataset_name", str(tmp_path), *flags, *more, "--use_cpu"])

    found = pass_through(run, processor, family)

    rows = [reference.rows[number] for number in single]
    for ours, theirs in zip(found.rows, rows, strict=not more):
        assert tokens(ours) == tokens(theirs)
        assert_equal(found.collate([ours]), reference.collate([theirs]))

"""The user's own prompt around the columns of a row."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from PIL import Image

from sailplan.data.formats import Format, resolve_format
from sailplan.data.sample import ImageReference, Part, Sample
from sailplan.data.sources import load_rows
from sailplan.errors import DataError, RunFileError
from sailplan.files import folder
from sailplan.run.config import Run

IMAGE = Part(type="image")


def text(words: str) -> Part:
    return Part(type="text", text=words)


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(buffer, "PNG")
    return buffer.getvalue()


Build = Callable[..., tuple[Format, datasets.Dataset]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """`build(rows, user_prompt=…)` writes rows and a run file, and resolves the format."""

    def call(rows: list[dict[str, Any]], **options: Any) -> tuple[Format, datasets.Dataset]:
        data = tmp_path / "rows.json"
        data.write_text(json.dumps(rows))
        run_file = tmp_path / "run.yaml"
        run_file.write_text(yaml.safe_dump({"dataset_name": str(data), **options}))
        run = Run.from_file(run_file)
        loaded = load_rows(run)
        return pickle.loads(pickle.dumps(resolve_format(run, loaded))), loaded.train

    return call


def asked(build: Build, row: dict[str, Any], user_prompt: str, **options: Any) -> str:
    """The user's text of a row whose answer is fixed."""
    format_, [raw] = build(
        [{**row, "a": "yes"}], user_prompt=user_prompt, answer_column="a", **options
    )
    [part] = format_.sample(raw)["messages"][-2]["content"]
    return part["text"]


def test_run_file_of_the_amazon_article_reproduces_its_prompt(tmp_path: Path) -> None:
    """Philipp Schmid, "How to Fine-Tune Multimodal Models or VLMs with Hugging Face TRL", 2024.

    `prompt`, `system_message` and `format_data` of its notebook, section 3: the blank at the end of
    the first line, and the image after the text. (The web page shows a blank on the empty line too,
    as it does on every empty line of code; the notebook has none.)
    github.com/philschmid/deep-learning-pytorch-huggingface,
    training/fine-tune-multimodal-llms-with-trl.ipynb. The data is parquet with images inside,
    as the article's is.
    """
    product = {
        "Product Name": "Sail Boat {Category}",
        "Category": "Toys & Games",
        "description": "A boat.",
        "image": {"bytes": png("red"), "path": None},
    }
    strings = {name: datasets.Value("string") for name in product if name != "image"}
    features = datasets.Features({**strings, "image": datasets.Image()})
    data = tmp_path / "train.parquet"
    datasets.Dataset.from_list([product], features=features).to_parquet(data)
    run_file = folder("launch") / "qwen2_vl_7b-qlora-1x24gb.yaml"
    run = Run.from_file(run_file, ["--dataset_name", str(data)])
    rows = load_rows(run)
    prompt = (
        "Create a Short Product description based on the provided ##PRODUCT NAME## and "
        "##CATEGORY## and image. \n"
        "Only return description. The description should be SEO optimized and for a better mobile "
        "search experience.\n"
        "\n"
        "##PRODUCT NAME##: Sail Boat {Category}\n"
        "##CATEGORY##: Toys & Games"
    )

    sample = resolve_format(run, rows).sample(rows.train[0])

    assert sample["messages"] == [
        {
            "role": "system",
            "content": [text("You are an expert product description writer for Amazon.")],
        },
        {"role": "user", "content": [text(prompt), IMAGE]},
        {"role": "assistant", "content": [text("A boat.")]},
    ]
    assert sample["images"] == [product["image"]]


@pytest.mark.parametrize(
    ("row", "prompt", "expected"),
    [
        ({"Product Name": "boat"}, "A {Product Name}.", "A boat."),
        ({"x": "{y} {{z}} {0}", "y": "no"}, "{x}", "{y} {{z}} {0}"),
        ({"x": "v"}, 'as {{"k": "{x}"}}', 'as {"k": "v"}'),
        ({"x": "v"}, "{{x}} {{{x}}}", "{x} {v}"),
        ({"x.y": "dot", "x[0]": "index", "x:>9": "spec"}, "{x.y}{x[0]}{x:>9}", "dotindexspec"),
        ({"n": 3}, "{n}", "3"),
        ({"n": 2.5}, "{n}", "2.5"),
        ({"n": 3.0}, "{n}", "3"),
        ({"n": True}, "{n}", "True"),
        ({"x": ""}, "[{x}]", "[]"),
        ({"x": "v"}, "no field", "no field"),
    ],
)
def test_template_fields_are_replaced_by_values_and_nothing_more(
    build: Build, row: dict[str, Any], prompt: str, expected: str
) -> None:
    assert asked(build, row, prompt) == expected


def test_template_fills_the_system_text_too(build: Build) -> None:
    format_, [raw] = build(
        [{"tone": "kind", "q": "?", "a": 7}],
        system_prompt="Be {tone}.",
        user_prompt="{q}",
        answer_column="a",
    )

    sample: Sample = format_.sample(raw)

    assert [part["text"] for message in sample["messages"] for part in message["content"]] == [
        "Be kind.",
        "?",
        "7",
    ]


@pytest.mark.parametrize(
    "prompt", ["{x.__class__}", "{x[0]}", "{x!r}", "{x:>9}", "{}", "{0}", "{X}"]
)
def test_template_field_that_is_no_column_is_refused_with_those_that_are(
    build: Build, prompt: str
) -> None:
    with pytest.raises(DataError, match=r"is no column; allowed: 'x', 'a'"):
        asked(build, {"x": "v"}, prompt)


@pytest.mark.parametrize("prompt", ["{x", "x}", "{x}}", "{{x}", "{ {x} }"])
def test_template_with_a_lone_brace_is_refused(build: Build, prompt: str) -> None:
    with pytest.raises(RunFileError, match=r"write {{ and }} for literal braces"):
        asked(build, {"x": "v"}, prompt)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"x": None, "a": "yes"}, "column 'x' is empty"),
        ({"x": ["v"], "a": "yes"}, "column 'x' holds a list"),
        ({"x": {"k": 1}, "a": "yes"}, "column 'x' holds a dict"),
        ({"x": "v", "a": None}, "column 'a' is empty"),
        ({"x": "v", "a": ""}, "answer in column 'a' is empty"),
    ],
)
def test_template_value_that_is_no_text_is_refused(
    build: Build, row: dict[str, Any], message: str
) -> None:
    format_, [raw] = build([row], user_prompt="{x}", answer_column="a")

    with pytest.raises(DataError, match=message):
        format_.sample(raw)


def test_template_column_that_is_not_used_may_be_empty(build: Build) -> None:
    assert asked(build, {"x": "v", "unused": None}, "{x}") == "v"


def test_template_images_stand_in_place_or_in_front(build: Build) -> None:
    rows = [
        {"front": "f.png", "back": ["b1.png", "b2.png"], "q": "?", "a": "yes"},
        {"front": None, "back": [], "q": "?", "a": "yes"},
    ]
    format_, raw = build(
        rows,
        user_prompt="Seen {back} from behind: {q}",
        answer_column="a",
        image_columns=["back", "front"],
    )

    samples = [format_.sample(row) for row in raw]

    assert samples[0]["messages"][0]["content"] == [
        IMAGE,
        text("Seen "),
        IMAGE,
        IMAGE,
        text(" from behind: ?"),
    ]
    paths = [reference["path"] for reference in samples[0]["images"]]
    assert paths == ["f.png", "b1.png", "b2.png"]
    assert samples[1]["messages"][0]["content"] == [text("Seen  from behind: ?")]
    assert samples[1]["images"] == []
    assert sorted(format_.image_fields) == ["back", "front"]
    assert [format_.images(row) for row in raw] == [sample["images"] for sample in samples]


def test_template_names_class_labels_and_finds_images_by_type(
    tmp_path: Path, run_on: Callable[..., Run]
) -> None:
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=["boat", "car"])}
    )
    stored = {"bytes": png("blue"), "path": None}
    data = datasets.Dataset.from_list([{"picture": stored, "label": 1}], features=features)
    data.save_to_disk(tmp_path / "saved")
    run = run_on(tmp_path / "saved", "--user_prompt", "What is it?", "--answer_column", "label")
    rows = load_rows(run)

    sample = resolve_format(run, rows).sample(rows.train[0])

    assert sample["messages"][0]["content"] == [IMAGE, text("What is it?")]
    assert sample["messages"][1]["content"] == [text("car")]
    assert sample["images"] == [ImageReference(path=None, bytes=stored["bytes"])]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"answer_column": "a"}, RunFileError, "without user_prompt"),
        ({"user_prompt": "{x}"}, RunFileError, "without answer_column"),
        ({"user_prompt": "{x}", "answer_column": "b"}, DataError, "lacks the column 'b'"),
    ],
)
def test_template_that_is_not_all_there_is_refused(
    build: Build, options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build([{"x": "v", "a": "yes"}], dataset_format="template", **options)

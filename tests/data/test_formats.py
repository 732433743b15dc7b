"""From rows of every format, read from real files, to samples."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from sailplan.data.formats import Format, resolve_format
from sailplan.data.images import image_opener
from sailplan.data.sample import ImageReference, Message, Part, Sample, Segment
from sailplan.data.sources import load_rows
from sailplan.errors import DataError, RunFileError
from sailplan.run.config import Run

RunOn = Callable[..., Run]
Read = Callable[..., tuple[Format, list[Sample]]]

IMAGE = Part(type="image")


def text(words: str) -> Part:
    return Part(type="text", text=words)


def turn(role: Any, *parts: Part, **extra: Any) -> Message:
    return Message(role=role, content=list(parts), **extra)


def at(path: str) -> ImageReference:
    return ImageReference(path=path, bytes=None)


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.fixture
def read(tmp_path: Path, run_on: RunOn) -> Read:
    """`read(rows, *flags)` writes rows, loads them, and gives their format and samples."""

    def call(rows: list[dict[str, Any]], *flags: str) -> tuple[Format, list[Sample]]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = run_on(path, *flags)
        loaded = load_rows(run).train
        format_ = pickle.loads(pickle.dumps(resolve_format(run, load_rows(run))))
        samples = [format_.sample(row) for row in loaded]
        for row, sample in zip(loaded, samples, strict=True):
            kept = {column: row[column] for column in format_.image_fields}
            assert format_.images(kept) == sample["images"]
        return format_, samples

    return call


# messages


def test_messages_of_strings_become_parts(read: Read) -> None:
    chat = [says("system", "Be brief."), says("user", "Hi"), says("assistant", "Ho")]

    format_, [sample] = read([{"messages": chat}])

    assert format_.name == "messages"
    assert sample == Sample(
        messages=[
            turn("system", text("Be brief.")),
            turn("user", text("Hi")),
            turn("assistant", text("Ho")),
        ],
        segments=[],
        images=[],
    )


MULTIMODAL: list[dict[str, Any]] = [
    {
        "messages": [
            says("system", "s"),
            says("user", "first"),
            says("assistant", "a"),
            says("user", "second"),
            says("assistant", "b"),
        ],
        "images": ["a.png", "b.png"],
    },
    {
        "messages": [
            says("user", [{"type": "text", "text": "left"}, {"type": "image"}]),
            says("assistant", [{"type": "text", "text": "a"}]),
            says("user", [{"type": "image"}, {"type": "text", "text": "right"}]),
            says("assistant", [{"type": "text", "text": "b"}]),
        ],
        "images": ["a.png", "b.png"],
    },
    {"messages": [says("user", "no image"), says("assistant", "a")], "images": []},
    {
        "messages": [
            says("user", [{"type": "text", "text": "no image"}]),
            says("assistant", "a"),
        ],
        "images": None,
    },
]


def test_messages_with_image_column_stand_where_trl_puts_them(read: Read) -> None:
    _, samples = read(MULTIMODAL)

    for row, sample in zip(MULTIMODAL, samples, strict=True):
        expected = prepare_multimodal_messages(row["messages"], row["images"])
        supply = iter(sample["images"])
        filled = [
            {
                **message,
                "content": [
                    {**part, "image": next(supply)["path"]} if part["type"] == "image" else part
                    for part in message["content"]
                ],
            }
            for message in sample["messages"]
        ]
        assert filled == expected


def test_messages_with_single_image_column_take_text_only_rows_among_them(read: Read) -> None:
    chat = [says("user", "Hi"), says("assistant", "Ho")]

    format_, samples = read([{"messages": chat, "image": "a.png"}, {"messages": chat}])

    assert format_.image_fields == ["image"]
    assert [sample["images"] for sample in samples] == [[at("a.png")], []]
    assert samples[0]["messages"][0] == turn("user", IMAGE, text("Hi"))
    assert samples[1]["messages"][0] == turn("user", text("Hi"))


def test_messages_with_images_in_their_parts_keep_order_with_the_column(read: Read) -> None:
    row = {
        "messages": [
            says("user", [{"type": "image", "path": "1.png"}, {"type": "text", "text": "and"}]),
            says("assistant", "a"),
            says("user", [{"type": "image"}, {"type": "image", "image": "3.png"}]),
            says("assistant", "b"),
        ],
        "images": ["2.png"],
    }

    _, [sample] = read([row])

    assert sample["images"] == [at("1.png"), at("2.png"), at("3.png")]


def test_messages_with_placeholders_in_text_put_images_there(read: Read) -> None:
    chat = [says("user", "Compare <image>\nwith\n<image>"), says("assistant", "Same.")]

    _, [sample] = read([{"messages": chat, "images": ["a.png", "b.png"]}])

    expected = turn("user", text("Compare "), IMAGE, text("with"), IMAGE)
    assert sample["messages"][0] == expected


def test_messages_without_images_keep_the_word_image_as_written(read: Read) -> None:
    chat = [says("user", "What is <image> in RSS?"), says("assistant", "A tag.")]

    _, [sample] = read([{"messages": chat}])

    assert sample["messages"][0] == turn("user", text("What is <image> in RSS?"))


def test_system_prompt_goes_to_chats_without_one(read: Read) -> None:
    own = [says("system", "own"), says("user", "u"), says("assistant", "a")]

    _, samples = read([{"messages": own}, {"messages": own[1:]}], "--system_prompt", "Be kind.")

    assert samples[0]["messages"][0] == turn("system", text("own"))
    assert samples[1]["messages"][0] == turn("system", text("Be kind."))


def test_messages_with_embedded_images_in_parts_and_lists(tmp_path: Path, run_on: RunOn) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "PNG")
    stored = {"bytes": buffer.getvalue(), "path": None}
    part = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    features = datasets.Features(
        {
            "messages": datasets.List(
                {
                    "role": datasets.Value("string"),
                    "content": datasets.List({**part, "image": datasets.Image()}),
                }
            ),
            "pictures": datasets.List(datasets.Image()),
        }
    )
    asked = [{"type": "image", "image": stored}, {"type": "image"}, {"type": "text", "text": "?"}]
    answered = [{"type": "text", "text": "!"}]
    row = {
        "messages": [says("user", asked), says("assistant", answered)],
        "pictures": [stored],
    }
    datasets.Dataset.from_list([row], features=features).to_parquet(tmp_path / "a.parquet")
    run = run_on(tmp_path / "a.parquet")
    rows = load_rows(run)
    format_ = resolve_format(run, rows)

    sample = format_.sample(rows.train[0])

    assert sorted(format_.image_fields) == ["messages", "pictures"]
    assert format_.images(rows.train[0]) == sample["images"] == [stored, stored]
    assert sample["messages"][0] == turn("user", IMAGE, IMAGE, text("?"))
    assert image_opener(run, rows).open(sample["images"][0]).size == (4, 3)


USER, ANSWER = says("user", "u"), says("assistant", "a")

BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": [USER]}, "no assistant turn"),
    ({"messages": []}, "'messages' is empty"),
    ({"messages": None}, "'messages' is empty"),
    ({"messages": "Hi"}, "'messages' holds a str"),
    ({"messages": ["Hi"]}, "turn 1 of 'messages' is a str"),
    ({"messages": [says("robot", "x"), ANSWER]}, "turn 1 of 'messages' has the role 'robot'"),
    ({"messages": [USER, says("assistant", None)]}, "turn 2 of 'messages' has no content"),
    ({"messages": [{**USER, "tool_calls": [{"name": "f"}]}, ANSWER]}, "turn 1 .* has tool_calls"),
    ({"messages": [USER, {**ANSWER, "tool_calls": [{"id": "1"}]}]}, "turn 2 .* has no name"),
    ({"messages": [USER, ANSWER], "tools": "[{"}, "the tools are broken JSON"),
    ({"messages": [USER, ANSWER], "tools": ["f"]}, "the tools are no list of mappings"),
    ({"messages": "[{"}, "column 'messages' is broken JSON"),
    ({"messages": [says("user", [{"type": "video"}]), ANSWER]}, "part of type 'video'"),
    ({"messages": [says("user", [{"type": "text"}]), ANSWER]}, "part of type 'text'"),
    (
        {"messages": [says("user", [{"type": "image"}] * 2), ANSWER], "images": ["a.png"]},
        "2 image placeholders for 1 image;",
    ),
    (
        {"messages": [says("user", [{"type": "image"}]), ANSWER], "images": ["a.png", "b.png"]},
        "1 image placeholder for 2 images",
    ),
    ({"messages": [says("user", [{"type": "image"}]), ANSWER]}, "1 image placeholder for 0"),
    (
        {"messages": [says("user", "<image><image>"), ANSWER], "images": ["a.png"]},
        "2 image placeholders for 1 image",
    ),
    (
        {"messages": [says("user", [{"type": "text", "text": "u"}]), ANSWER], "images": ["a"]},
        "0 image placeholders for 1 image",
    ),
    ({"messages": [USER, ANSWER], "images": [3]}, "image column holds a int"),
]


@pytest.mark.parametrize(("row", "message"), BAD_CHATS, ids=[bad[1] for bad in BAD_CHATS])
def test_chat_that_cannot_be_trained_on_is_refused(
    read: Read, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read([row])


# prompt and completion


def test_prompt_and_completion_of_text_train_the_completion(read: Read) -> None:
    format_, [sample] = read([{"prompt": "Sky is ", "completion": "blue."}])

    assert format_.name == "prompt_completion"
    assert sample == Sample(
        messages=[],
        segments=[
            Segment(text="Sky is ", trained=False),
            Segment(text="blue.", trained=True),
        ],
        images=[],
    )


def test_prompt_and_completion_of_chats_train_the_answers_of_the_completion(read: Read) -> None:
    row = {
        "prompt": [USER, says("assistant", "shot"), USER],
        "completion": [ANSWER, says("user", "more"), says("assistant", "b")],
        "images": ["a.png"],
    }

    _, [sample] = read([row])

    assert sample["messages"] == [
        turn("user", IMAGE, text("u")),
        turn("assistant", text("shot"), trained=False),
        turn("user", text("u")),
        turn("assistant", text("a")),
        turn("user", text("more")),
        turn("assistant", text("b")),
    ]
    assert sample["images"] == [at("a.png")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completion": ""}, "'completion' is empty"),
        ({"prompt": "p", "completion": None}, "'prompt' holds a str"),
        ({"prompt": [USER, ANSWER], "completion": [USER]}, "no assistant turn"),
        ({"prompt": "p", "completion": "c", "images": ["a.png"]}, "beside a plain-text prompt"),
    ],
)
def test_prompt_and_completion_that_do_not_fit_are_refused(
    read: Read, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read([row])


# llava


def llava(value: str, answer: str = "A boat.") -> list[dict[str, str]]:
    return [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]


def test_llava_places_single_several_and_no_images(read: Read) -> None:
    format_, samples = read(
        [
            {"id": "1", "image": "a.png", "conversations": llava("<image>\nWhat is it?")},
            {"id": "2", "conversations": llava("Name a boat.")},
            {
                "id": "3",
                "image": ["a.png", "b.png"],
                "conversations": llava("<image>\n<image>\nSame?"),
            },
            {"id": "4", "image": "a.png", "conversations": llava("What is it?\n<image>")},
        ]
    )

    assert format_.name == "llava"
    assert [sample["messages"][0] for sample in samples] == [
        turn("user", IMAGE, text("What is it?")),
        turn("user", text("Name a boat.")),
        turn("user", IMAGE, IMAGE, text("Same?")),
        turn("user", text("What is it?"), IMAGE),
    ]
    assert samples[0]["messages"][1] == turn("assistant", text("A boat."))
    assert [len(sample["images"]) for sample in samples] == [1, 0, 2, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "conversations": llava("hi")}, "0 image placeholders for 1 image"),
        ({"image": "", "conversations": llava("<image>")}, "1 image placeholder for 0 images"),
        ({"conversations": llava("<image><image>"), "image": ["a"]}, "2 image placeholders for 1"),
        ({"conversations": llava("hi")[:1]}, "no assistant turn"),
    ],
)
def test_llava_rows_that_do_not_fit_are_refused(
    read: Read, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read([row])


# alpaca and text

ALPACA = {"instruction": "Translate.", "input": "boat", "output": "Boot"}


@pytest.mark.parametrize(
    ("template", "row", "prompt"),
    [
        (
            "alpaca",
            ALPACA,
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nTranslate.\n\n### Input:\nboat\n\n### Response:\n",
        ),
        (
            "alpaca",
            {**ALPACA, "input": ""},
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nTranslate.\n\n### Response:\n",
        ),
        (
            "alpaca_short",
            ALPACA,
            "### Instruction:\nTranslate.\n\n### Input:\nboat\n\n### Response:\n",
        ),
        (
            "alpaca_short",
            {"instruction": "Give {input} and {x}.", "output": "Boot"},
            "### Instruction:\nGive {input} and {x}.\n\n### Response:\n",
        ),
    ],
)
def test_alpaca_gives_the_published_prompt(
    read: Read, template: str, row: dict[str, str], prompt: str
) -> None:
    """The wording of tloen/alpaca-lora, templates/alpaca.json and alpaca_short.json."""
    format_, [sample] = read([row], "--alpaca_template", template)

    assert format_.name == "alpaca"
    assert sample["segments"] == [
        Segment(text=prompt, trained=False),
        Segment(text="Boot", trained=True),
    ]


def test_alpaca_takes_a_template_file_and_a_json_array(tmp_path: Path, run_on: RunOn) -> None:
    template = tmp_path / "own.json"
    template.write_text(
        json.dumps(
            {
                "description": "Ours",
                "prompt_input": "{instruction}|{input}: ",
                "prompt_no_input": "{{{instruction}}}: ",
                "response_split": ":",
            }
        )
    )
    data = tmp_path / "alpaca.json"
    data.write_text(json.dumps([ALPACA, {**ALPACA, "input": None}]))
    run = run_on(data, "--alpaca_template", str(template))
    rows = load_rows(run)
    format_ = resolve_format(run, rows)

    prompts = [format_.sample(row)["segments"][0]["text"] for row in rows.train]

    assert prompts == ["Translate.|boat: ", "{Translate.}: "]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no alpaca_template"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"prompt_input": "{instruction}"}', "no text prompt_no_input"),
        ('{"prompt_input": "{", "prompt_no_input": ""}', "lone '{'"),
    ],
)
def test_alpaca_template_file_that_is_none_is_refused(
    read: Read, tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "template.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(RunFileError, match=message):
        read([ALPACA], "--alpaca_template", str(path))


@pytest.mark.parametrize("output", ["", None])
def test_alpaca_row_without_output_is_refused(read: Read, output: str | None) -> None:
    with pytest.raises(DataError, match="'output' is empty"):
        read([{**ALPACA, "output": output}])


def test_text_trains_all_of_the_named_column(read: Read) -> None:
    row = {"instruction": "i", "output": "o", "body": "Running text."}

    format_, [sample] = read([row], "--dataset_text_field", "body")

    assert format_.name == "text"
    assert sample["segments"] == [Segment(text="Running text.", trained=True)]
    with pytest.raises(DataError, match="'text' is empty"):
        read([{"text": ""}])


# which format


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "label": 1}, "columns fit no format"),
        ({"prompt": "p", "chosen": "c"}, "columns fit no format"),
        ({"text": "t", **ALPACA}, "columns fit alpaca and text"),
        ({"messages": [USER, ANSWER], "text": "t"}, "columns fit messages and text"),
    ],
)
def test_columns_that_do_not_tell_the_format_are_refused_with_their_names(
    read: Read, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read([row])

    for column in row:
        assert repr(column) in str(caught.value)
    assert "dataset_format" in str(caught.value)


def test_unrecognised_columns_are_told_what_each_format_needs(read: Read) -> None:
    with pytest.raises(DataError) as caught:
        read([{"question": "q"}])

    for need in (
        "messages: messages",
        "prompt_completion: prompt and completion",
        "llava: conversations",
        "alpaca: instruction and output",
        "text: text",
        "template: any columns, with user_prompt and answer_column",
    ):
        assert need in str(caught.value)


def test_named_format_settles_what_columns_leave_open(read: Read) -> None:
    row = {"text": "t", **ALPACA}

    assert read([row], "--dataset_format", "alpaca")[0].name == "alpaca"
    assert read([row], "--dataset_format", "text")[0].name == "text"


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("messages", "'messages'"),
        ("prompt_completion", "'prompt', 'completion'"),
        ("llava", "'conversations'"),
        ("alpaca", "'instruction', 'output'"),
        ("text", "'text'"),
    ],
)
def test_named_format_without_its_columns_is_refused(read: Read, name: str, lacking: str) -> None:
    with pytest.raises(DataError, match=f"{name} lacks the column {lacking}; columns seen: 'q'"):
        read([{"q": "x"}], "--dataset_format", name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--system_prompt", "s"], "system_prompt does nothing with dataset_format alpaca"),
        (["--answer_column", "output"], "answer_column does nothing"),
        (["--alpaca_template", "alpaca", "--dataset_format", "text"], "alpaca_template does"),
    ],
)
def test_prompt_that_the_format_would_not_use_is_refused(
    read: Read, flags: list[str], message: str
) -> None:
    with pytest.raises(RunFileError, match=message):
        read([{**ALPACA, "text": "t"}], "--dataset_format", "alpaca", *flags)


def test_images_beside_a_format_without_images_are_refused(read: Read) -> None:
    with pytest.raises(DataError, match="text takes no images, but 'image' holds some"):
        read([{"text": "A boat.", "image": "a.png"}])


def test_image_columns_are_settled_by_name(read: Read) -> None:
    chat = [USER, ANSWER]
    row = {"messages": chat, "image": "a.png", "images": ["b.png"], "photo": "c.png"}

    with pytest.raises(DataError, match="two image columns"):
        read([row])
    with pytest.raises(DataError, match="no image column 'picture'"):
        read([row], "--image_columns", "picture")
    _, [sample] = read([row], "--image_columns", "photo", "image")
    assert sample["images"] == [at("c.png"), at("a.png")]

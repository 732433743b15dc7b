"""Chats in the shapes that users bring: OpenAI's, ShareGPT's, with tools, with a system column."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from PIL import Image

from sailplan.data.encode import Encoder
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.sample import Part, Sample
from sailplan.data.sources import load_rows
from sailplan.errors import DataError
from sailplan.model.families import family_of
from sailplan.run.config import Run
from tests.data.reading import IMAGE, pieces, turn

Read = Callable[..., list[Sample]]


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(content, "PNG")
    return content.getvalue()


DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()


@pytest.fixture
def read(tmp_path: Path, run_on: Callable[..., Run]) -> Read:
    """Writes rows as json lines and as parquet, where Arrow fills keys, and reads both alike."""

    def call(rows: list[dict[str, Any]], *flags: str) -> list[Sample]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        loaded = load_rows(run_on(tmp_path / "rows.jsonl", *flags))
        loaded.train.to_parquet(tmp_path / "rows.parquet")
        found = []
        for name in ("rows.jsonl", "rows.parquet"):
            run = run_on(tmp_path / name, *flags)
            raw = load_rows(run)
            format = resolve_format(run, raw)
            opener = image_opener(run, raw)
            samples = [format.sample(row) for row in raw.train]
            for sample in samples:
                for reference in sample["images"]:
                    assert opener.size(reference) == (6, 4)
            found.append(samples)
        assert found[0] == found[1]
        return found[0]

    return call


def chat(*content: Any, answer: str = "Red.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]


TEXT = {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
        {"type": "image_url", "image_url": DATA_URL},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "input_image", "image_url": DATA_URL},
        {"type": "image", "image": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "base64": base64.b64encode(png()).decode()},
    ],
    ids=lambda part: " ".join(part),
)
def test_image_parts_of_openai_and_transformers_carry_their_image(
    tmp_path: Path, read: Read, part: dict[str, Any]
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    # The second row has no image: Arrow fills its part's keys with null.
    [sample, other] = read([{"messages": chat(part, TEXT)}, {"messages": chat(TEXT)}])

    assert sample["messages"][0] == turn("user", IMAGE, "What?")
    assert len(sample["images"]) == 1
    assert other["messages"][0] == turn("user", "What?")
    assert other["images"] == []


def test_text_parts_of_openais_responses_are_text(read: Read) -> None:
    [sample] = read([{"messages": chat({"type": "input_text", "text": "What?"})}])
    assert sample["messages"][0] == turn("user", "What?")


def test_images_and_texts_may_alternate(tmp_path: Path, read: Read) -> None:
    (tmp_path / "a.png").write_bytes(png())
    image = {"type": "image"}
    words = [{"type": "text", "text": word} for word in ("First", "then", "last?")]
    row = {"messages": chat(image, words[0], image, words[1], image, words[2])}

    [sample] = read([{**row, "images": ["a.png"] * 3}])

    assert sample["messages"][0] == turn("user", IMAGE, "First", IMAGE, "then", IMAGE, "last?")
    assert len(sample["images"]) == 3


def test_images_of_several_columns_fill_the_places_in_the_order_of_the_columns(
    tmp_path: Path, read: Read
) -> None:
    for name in ("front", "back"):
        (tmp_path / f"{name}.png").write_bytes(png())
    row = {"back": "back.png", "front": "front.png"}
    row |= {"messages": [{"role": "user", "content": "<image> or <image>?"}, *chat()[1:]]}

    [sample] = read([row], "--image_columns", "front", "back")

    assert [image["path"] for image in sample["images"]] == ["front.png", "back.png"]


SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Which colour?"},
    {"from": "gpt", "value": "Red."},
]


@pytest.mark.parametrize(
    ("user", "model"),
    [("human", "gpt"), ("user", "assistant"), ("human", "model"), ("user", "chatgpt")],
)
def test_sharegpt_is_read_under_all_its_names(read: Read, user: str, model: str) -> None:
    names = {"human": user, "gpt": model, "system": "system"}
    turns = [{"from": names[said["from"]], "value": said["value"]} for said in SHAREGPT]

    [sample] = read([{"conversations": turns}])

    assert [message["role"] for message in sample["messages"]] == ["system", "user", "assistant"]


def test_system_column_is_the_system_text_of_each_row(read: Read) -> None:
    rows = [
        {"conversations": SHAREGPT[1:], "system": "Be kind."},
        {"conversations": SHAREGPT[1:], "system": None},
        {"conversations": SHAREGPT, "system": "Be kind."},
    ]

    samples = read(rows, "--system_prompt", "Be quick.")

    first = [sample["messages"][0]["content"][0]["text"] for sample in samples]
    assert first == ["Be kind.", "Be quick.", "Be brief."]


def test_named_system_column_is_read_for_messages(read: Read) -> None:
    [sample] = read([{"messages": chat(TEXT), "rules": "Be kind."}], "--system_column", "rules")
    assert sample["messages"][0] == turn("system", "Be kind.")


def test_system_column_that_is_not_there_is_refused(read: Read) -> None:
    with pytest.raises(DataError, match="there is no system_column 'rules'; columns seen"):
        read([{"messages": chat(TEXT)}], "--system_column", "rules")


def test_chat_written_as_json_text_is_read(read: Read) -> None:
    [sample] = read([{"messages": json.dumps(chat(TEXT))}])
    assert sample["messages"] == [turn("user", "What?"), turn("assistant", "Red.")]


def test_thoughts_go_along_for_templates_that_know_them(read: Read) -> None:
    turns = chat(TEXT)
    turns[1]["reasoning_content"] = "It is red."
    [sample] = read([{"messages": turns}])
    assert sample["messages"][1] == {**turn("assistant", "Red."), "reasoning_content": "It is red."}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL_CHAT = [
    {"role": "user", "content": "Is it cold in Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "-3"},
    {"role": "assistant", "content": "Yes."},
]
SHAREGPT_TOOLS = [
    {"from": "human", "value": "Is it cold in Oslo?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
    {"from": "observation", "value": "-3"},
    {"from": "gpt", "value": "Yes."},
]


def with_arguments(arguments: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [TOOL_CHAT[0], {**TOOL_CHAT[1], "tool_calls": [call]}, *TOOL_CHAT[2:]]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TOOL_CHAT, "tools": [WEATHER]},
        {"messages": TOOL_CHAT, "tools": json.dumps([WEATHER])},
        {"messages": with_arguments('{"city": "Oslo"}'), "tools": [WEATHER]},
        {"conversations": SHAREGPT_TOOLS, "tools": json.dumps([WEATHER])},
        {"messages": json.dumps(TOOL_CHAT), "tools": json.dumps([WEATHER])},
    ],
    ids=["lists", "tools in json", "arguments in json", "sharegpt", "all in json"],
)
def test_tools_are_shown_and_calls_are_trained(
    read: Read, tiny_model: Callable[[str], Path], row: dict[str, Any]
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = tiny_model("qwen2_vl")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / "qwen2_5.jinja").read_text()
    encoder = Encoder(tokenizer, family_of(AutoConfig.from_pretrained(folder)))

    [sample] = read([row])
    found = encoder.encode(sample, [])

    parts = pieces(tokenizer, found.input_ids, found.labels)
    trained = [part[1:] for part in parts if part[0] == "+"]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert [part.strip() for part in trained] == [f"{call}<|im_end|>", "Yes.<|im_end|>"]
    assert '"description": "Tells the weather."' in parts[0]
    assert "<tool_response>\n-3" in "".join(parts)


@pytest.mark.parametrize("key", ["tools", "tool_calls"])
def test_template_that_leaves_tools_out_is_refused(
    read: Read, tiny_model: Callable[[str], Path], key: str
) -> None:
    from transformers import AutoConfig, AutoProcessor

    folder = tiny_model("qwen2_vl")
    encoder = Encoder(
        AutoProcessor.from_pretrained(folder), family_of(AutoConfig.from_pretrained(folder))
    )
    row = (
        {"messages": chat(TEXT), "tools": [WEATHER]} if key == "tools" else {"messages": TOOL_CHAT}
    )
    [sample] = read([row])
    with pytest.raises(DataError, match=f"the chat template shows no {key}, which the row has"):
        encoder.encode(sample, [])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("data:image/png;base64,@@@", "an image in base64 is broken"),
        ("data:image/png,abc", "is given by the data URL data:image/png"),
        ("data:text/html;base64,QUJD", "is given by the data URL data:text/html"),
    ],
)
def test_broken_data_url_is_refused(read: Read, value: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read([{"messages": chat({"type": "image_url", "image_url": {"url": value}}, TEXT)}])


def test_columns_that_arrow_typed_as_structures_are_read(tmp_path: Path) -> None:
    """A table whose parts have every key, most of them null."""
    part = {name: datasets.Value("string") for name in ("type", "text", "image")}
    part["image_url"] = {"url": datasets.Value("string"), "detail": datasets.Value("string")}
    message = {"role": datasets.Value("string"), "content": datasets.List(part)}
    features = datasets.Features({"messages": datasets.List(message)})
    nothing = {"text": None, "image": None, "image_url": None}
    rows = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            **nothing,
                            "type": "image_url",
                            "image_url": {"url": DATA_URL, "detail": None},
                        },
                        {**nothing, "type": "text", "text": "What?"},
                    ],
                },
                {"role": "assistant", "content": [{**nothing, "type": "text", "text": "Red."}]},
            ]
        }
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    run = Run.from_flags(["--dataset_name", str(tmp_path / "rows.parquet")])
    raw = load_rows(run)
    sample = resolve_format(run, raw).sample(raw.train[0])
    assert sample["messages"][0]["content"] == [IMAGE, Part(type="text", text="What?")]
    assert sample["images"][0]["bytes"] == png()

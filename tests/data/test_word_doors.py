"""The other formats through every source: words between pictures, system texts, tools, plain text.

Each group of formats says the same in several ways. Every way through every source gives what the
first way gives as json lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trl
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from sailplan.model.families import family_of
from sailplan.run.config import Run
from tests.data.reading import pieces
from tests.data.test_doors import (
    PICTURES,
    SOURCES,
    STREAM,
    Through,
    assert_equal,
    draw_all,
    pass_through,
    tokens,
)

COUNT = 30
Row = dict[str, Any]
SYSTEM = ("You are brief.", "You are kind.", "You know shoes.")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def _said(number: int) -> tuple[str, str]:
    return f"What is number {number}?", f"It is the {number}. thing."


def _chat(number: int, *parts: Row) -> list[Row]:
    asked, answered = _said(number)
    turns: list[Row] = [
        {"role": "user", "content": [*parts, {"type": "text", "text": asked}]},
        {"role": "assistant", "content": [{"type": "text", "text": answered}]},
    ]
    if not parts:
        return [{**turn, "content": turn["content"][0]["text"]} for turn in turns]
    return turns


def _sharegpt(number: int, front: str = "") -> list[Row]:
    asked, answered = _said(number)
    return [{"from": "human", "value": front + asked}, {"from": "gpt", "value": answered}]


def _two(number: int) -> list[str]:
    names = sorted(PICTURES)
    return [names[number % len(names)], names[(number * 5 + 2) % len(names)]]


def _between(number: int, key: str | None) -> list[Row]:
    """Two pictures with words between: the parts carry their pictures, or are places for them."""
    images = [
        {"type": "image"} if key is None else {"type": key, key: name} for name in _two(number)
    ]
    words = [{"type": "text", "text": text} for text in ("First ", " then ", " now: ")]
    return _chat(number, words[0], images[0], words[1], images[1], words[2])


def _calls(number: int, pack: Callable[[Any], Any]) -> list[Row]:
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    asked, answered = _said(number)
    turns: list[Row] = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": None, "tool_calls": pack([call])},
        {"role": "tool", "name": "weather", "content": str(number)},
        {"role": "assistant", "content": answered},
    ]
    return turns


def _sharegpt_calls(number: int) -> list[Row]:
    asked, answered = _sharegpt(number)
    call = {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'}
    return [asked, call, {"from": "observation", "value": str(number)}, answered]


def _with_system(number: int, turns: list[Row], role: str, words: str) -> list[Row]:
    return [{role: "system", words: SYSTEM[number % 3]}, *turns]


def _tools() -> str:
    return json.dumps([WEATHER])


def _instruction(number: int) -> Row:
    asked, answered = _said(number)
    return {"instruction": asked, "input": "", "output": answered}


class Way(NamedTuple):
    """One way to write a sample down."""

    row: Callable[[int], Row]
    flags: Sequence[str] = ()
    is_flat: bool = False
    """Whether all values are text, which is all that csv holds."""


COLUMNS = ["--answer_column", "answer", "--user_prompt"]
GROUPS: dict[str, dict[str, Way]] = {
    "words between pictures": {
        "messages": Way(lambda n: {"messages": _between(n, None), "images": _two(n)}),
        "image parts": Way(lambda n: {"messages": _between(n, "image")}),
        "openai": Way(lambda n: {"messages": _between(n, "image_url")}),
        "sharegpt": Way(
            lambda n: {
                "conversations": _sharegpt(n, "First <image> then <image> now: "),
                "image": _two(n),
            }
        ),
        "template": Way(
            lambda n: {
                **dict(zip(("front", "back"), _two(n), strict=True)),
                **dict(zip(("question", "answer"), _said(n), strict=True)),
            },
            [
                *COLUMNS,
                "First {front} then {back} now: {question}",
                *("--image_columns", "front", "back"),
            ],
            is_flat=True,
        ),
    },
    "system text": {
        "turn": Way(lambda n: {"messages": _with_system(n, _chat(n), "role", "content")}),
        "column": Way(lambda n: {"messages": _chat(n), "system": SYSTEM[n % 3]}),
        "named column": Way(
            lambda n: {"messages": _chat(n), "rules": SYSTEM[n % 3]}, ["--system_column", "rules"]
        ),
        "sharegpt turn": Way(
            lambda n: {"conversations": _with_system(n, _sharegpt(n), "from", "value")}
        ),
        "sharegpt column": Way(lambda n: {"conversations": _sharegpt(n), "system": SYSTEM[n % 3]}),
        "json text": Way(
            lambda n: {"messages": json.dumps(_chat(n)), "system": SYSTEM[n % 3]}, is_flat=True
        ),
        "template": Way(
            lambda n: {
                "rules": SYSTEM[n % 3],
                **dict(zip(("question", "answer"), _said(n), strict=True)),
            },
            [*COLUMNS, "{question}", "--system_prompt", "{rules}"],
            is_flat=True,
        ),
    },
    "tools": {
        "lists": Way(lambda n: {"messages": _calls(n, list), "tools": _tools()}),
        "calls in json": Way(lambda n: {"messages": _calls(n, json.dumps), "tools": _tools()}),
        "sharegpt": Way(lambda n: {"conversations": _sharegpt_calls(n), "tools": _tools()}),
        "json text": Way(
            lambda n: {"messages": json.dumps(_calls(n, list)), "tools": _tools()}, is_flat=True
        ),
    },
    "alpaca": {"alpaca": Way(_instruction, is_flat=True)},
    "completions": {
        "text": Way(
            lambda n: dict(zip(("prompt", "completion"), _said(n), strict=True)), is_flat=True
        )
    },
    "text": {
        "text": Way(lambda n: {"text": " ".join(_said(n))}, is_flat=True),
        "named": Way(
            lambda n: {"story": " ".join(_said(n))},
            ["--dataset_text_field", "story", "--dataset_format", "text"],
            is_flat=True,
        ),
    },
}
WITHOUT = {
    "csv": lambda group, way: GROUPS[group][way].is_flat,
    "parquet with images": lambda group, way: False,  # of pictures in a column, as in `test_doors`
    "webdataset": lambda group, way: (
        group != "words between pictures" or way in ("messages", "sharegpt")
    ),
    "webdataset shards": lambda group, way: False,
    "zipped images": lambda group, way: group == "words between pictures",
}
"""Which formats can lie in the sources that do not take all."""
STREAMED = ("jsonl", "parquet", "zip", "webdataset")
"""One source of each kind of reading; `test_doors` streams all of them."""
DOORS = [
    pytest.param(group, way, source, more, id="-".join((group, way, source, *more[:1])))
    for group, ways in GROUPS.items()
    for way in ways
    for source in SOURCES
    if WITHOUT.get(source, lambda *_: True)(group, way)
    for more in ([], *([STREAM] if source in STREAMED else []))
]

Go = Callable[..., Through]


@pytest.fixture(scope="module")
def tools_template() -> str:
    return (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()


@pytest.fixture(scope="module")
def go(
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    tools_template: str,
) -> Go:
    """`go("tools", "sharegpt", "zip")` is what came through that door."""
    vision, words = tiny_model("qwen2_vl"), tiny_model("llama")
    processor = AutoProcessor.from_pretrained(vision)
    tokenizer = AutoTokenizer.from_pretrained(vision)
    tokenizer.chat_template = tools_template
    vision_family, text_family = (family_of(AutoConfig.from_pretrained(f)) for f in (vision, words))

    def call(group: str, way: str, source: str, *more: str) -> Through:
        folder = tmp_path_factory.mktemp("door")
        has_pictures = group == "words between pictures"
        if has_pictures or source == "zip":
            draw_all(folder)
        row, flags, _ = GROUPS[group][way]
        written = SOURCES[source](folder, [row(number) for number in range(COUNT)])
        run = Run.from_flags([*written, *flags, *more, "--use_cpu"])
        if has_pictures:
            return pass_through(run, processor, vision_family)
        return pass_through(run, tokenizer, text_family)

    return cache(call)


@pytest.mark.parametrize(("group", "way", "source", "more"), DOORS)
def test_formats_say_the_same_through_every_source(
    go: Go, group: str, way: str, source: str, more: list[str]
) -> None:
    expected, found = go(group, next(iter(GROUPS[group])), "jsonl"), go(group, way, source, *more)

    assert len(expected.rows) == COUNT
    for ours, theirs in zip(found.rows, expected.rows, strict=not more):
        assert tokens(ours) == tokens(theirs)
    for ours, theirs in zip(found.batches, expected.batches, strict=not more):
        assert_equal(ours, theirs)


SHOWN = {
    "words between pictures": ("First <|vision_start|>", "<|vision_end|> now: What is number 3?"),
    "system text": ("<|im_start|>system\nYou are brief.<|im_end|>", "What is number 3?"),
    "tools": ('"name": "weather"', "<tool_response>\n3"),
    "alpaca": ("### Instruction:\nWhat is number 3?", "### Response:"),
    "completions": ("What is number 3?", ""),
    "text": ("", ""),
}


@pytest.mark.parametrize("group", GROUPS)
def test_samples_show_what_was_written(
    go: Go, tiny_model: Callable[[str], Path], group: str
) -> None:
    """What all ways agree on is what was meant."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("qwen2_vl"))
    row = go(group, next(iter(GROUPS[group])), "jsonl").rows[3]

    parts = pieces(tokenizer, row["input_ids"], row["labels"])

    prompt = "".join(part[1:] for part in parts if part[0] == "-")
    trained = "".join(part[1:] for part in parts if part[0] == "+")
    assert all(text in prompt for text in SHOWN[group])
    assert "It is the 3. thing." in trained

"""Whatever a row holds, it becomes a valid sample or an error of one line with its number."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sailplan.data.conversations import Llava, Messages, PromptCompletion
from sailplan.data.encode import Encoder
from sailplan.data.encode_row import RowEncoder
from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
from sailplan.data.labels import UNTRAINED
from sailplan.data.mixture import Entry
from sailplan.data.plain import Text, alpaca
from sailplan.data.prepare import prepare
from sailplan.data.prompts import parse
from sailplan.data.sources import Rows
from sailplan.data.template import Template
from sailplan.errors import DataError
from sailplan.model.families import family_of
from sailplan.run.config import Run

COLUMNS = ("question", "answer", "image")
FORMATS: dict[str, Format] = {
    "messages": Messages(image_columns=("images",), inline_images=True, system_column="system"),
    "prompt_completion": PromptCompletion(image_columns=("images",), inline_images=True),
    "llava": Llava(image_columns=("image",), system_prompt="Be brief.", system_column="system"),
    "alpaca": alpaca("alpaca"),
    "text": Text(column="text"),
    "template": Template(
        user=parse("What of {question}? {image}", option="user_prompt", columns=COLUMNS),
        answer_column="answer",
        image_columns=("image",),
        class_names={},
    ),
}

# Words that a template, a tokenizer or a placeholder could be fooled by.
SPECIAL = st.sampled_from(
    [
        *("<|im_end|>", "<|im_start|>assistant\n", "<|image_pad|>", "<image>", "<|vision_start|>"),
        *("<|endoftext|>", "{{ x }}", "{% raw %}", "{question}", "\x00", "\u202e", "\ud800", ""),
        *(" ", "\n", "a.png", "data:image/png;base64,AAAA", "http://x/a.png", "../a.png"),
        *("Red.", "What is it?", "[", "[]", "{}", '[{"role": "user"}]', "null", "\U0001f600" * 3),
    ]
)
WORDS = st.one_of(SPECIAL, st.text(max_size=12), st.lists(SPECIAL, max_size=4).map("".join))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.binary(max_size=4),
    WORDS,
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "image", "url", "role", "name"]), inner)
    ),
    max_leaves=6,
)
PART = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}),
    st.fixed_dictionaries({"type": st.just("image")}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.one_of(WORDS, ANYTHING)}),
    ANYTHING,
)
ROLE = st.one_of(st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt"]), LEAVES)
CONTENT = st.one_of(WORDS, st.lists(PART, max_size=3), ANYTHING)
TURN = st.one_of(
    st.fixed_dictionaries({"role": ROLE, "content": CONTENT}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": CONTENT}, optional={"tool_calls": ANYTHING}
    ),
    st.fixed_dictionaries({"from": ROLE, "value": CONTENT}),
    ANYTHING,
)
USER, ASSISTANT = (
    st.fixed_dictionaries({"role": st.just(role), "content": WORDS})
    for role in ("user", "assistant")
)
TURNS = st.one_of(st.lists(TURN, max_size=4), st.tuples(USER, ASSISTANT).map(list), ANYTHING)
IMAGES = st.one_of(st.none(), WORDS, st.lists(WORDS, max_size=2), ANYTHING)
ROW = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("messages", "conversations"), TURNS),
        **dict.fromkeys(("prompt", "completion"), st.one_of(WORDS, TURNS)),
        **dict.fromkeys(("images", "image"), IMAGES),
        **dict.fromkeys(("system", "tools"), st.one_of(st.none(), WORDS, ANYTHING)),
        **dict.fromkeys(
            ("instruction", "input", "output", "text", "question", "answer"),
            st.one_of(WORDS, ANYTHING),
        ),
    },
)
FUZZ = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[[str], Path]) -> Encoder:
    from transformers import AutoConfig, AutoProcessor

    folder = tiny_model("qwen2_vl")
    processor = AutoProcessor.from_pretrained(folder)
    return Encoder(processor, family_of(AutoConfig.from_pretrained(folder)))


def check(encoder: Encoder, format: Format, row: dict[str, Any]) -> None:
    """The row is a sample that trains on words alone, or a refusal of one line."""
    refusal = ""
    try:
        sample = format.sample(row)
        found = encoder.encode(sample, [(56, 56)] * len(sample["images"]))
    except DataError as error:
        refusal = str(error) or "nothing"
    if refusal:
        assert "\n" not in refusal
        return
    assert format.images({name: row.get(name) for name in format.image_fields}) == sample["images"]
    assert len(found.input_ids) == len(found.labels)
    assert found.labels[0] == UNTRAINED
    trained = {label for label in found.labels if label != UNTRAINED}
    assert trained
    assert all(
        label in (UNTRAINED, token)
        for token, label in zip(found.input_ids, found.labels, strict=True)
    )
    assert not trained & encoder.family.untrained_token_ids(encoder.processor)
    pad = encoder.processor.image_token_id
    assert found.input_ids.count(pad) == 4 * len(sample["images"])


@pytest.mark.parametrize("name", FORMATS)
def test_any_row_is_a_sample_or_a_refusal_of_one_line(encoder: Encoder, name: str) -> None:
    @FUZZ
    @given(ROW)
    def fuzz(row: dict[str, Any]) -> None:
        check(encoder, FORMATS[name], row)

    fuzz()


@pytest.mark.parametrize("name", ["messages", "llava"])
def test_rows_that_went_through_arrow_are_no_different(encoder: Encoder, name: str) -> None:
    """Arrow fills what is missing, unifies types, and refuses what no table can hold."""

    @FUZZ
    @given(st.lists(ROW, min_size=1, max_size=3))
    def fuzz(rows: list[dict[str, Any]]) -> None:
        with contextlib.suppress(Exception):  # of pyarrow and datasets: such rows are in no file
            rows = list(datasets.Dataset.from_list(rows))
        for row in rows:
            check(encoder, FORMATS[name], row)

    fuzz()


def test_words_of_a_user_are_never_trained_whatever_they_say(encoder: Encoder) -> None:
    """A user who writes `<|im_start|>assistant` does not become the assistant."""

    @FUZZ
    @given(st.lists(WORDS, min_size=1, max_size=3).map("".join))
    def fuzz(words: str) -> None:
        turns = [{"role": "user", "content": words}, {"role": "assistant", "content": "Red."}]
        try:
            found = encoder.encode(FORMATS["messages"].sample({"messages": turns}), [])
        except DataError:
            return
        trained = [label for label in found.labels if label != UNTRAINED]
        tokenizer = encoder.processor.tokenizer
        assert tokenizer.decode(trained) == "Red.<|im_end|>"

    fuzz()


@pytest.mark.parametrize("name", FORMATS)
def test_refusal_of_any_row_names_its_number(encoder: Encoder, tmp_path: Path, name: str) -> None:
    """With the images really looked for, in a folder that holds `a.png` alone."""
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    entry = Entry(name="", folder=tmp_path, columns=(), start=0)
    opener = ImageOpener(root=tmp_path)
    rows = RowEncoder(
        split="train", format=FORMATS[name], encoder=encoder, opener=opener, entries=(entry,)
    )

    @settings(FUZZ, max_examples=100)
    @given(ROW, st.integers(0, 10**9))
    def fuzz(row: dict[str, Any], number: int) -> None:
        refusal = ""
        try:
            found, *_ = rows(number, row)
        except DataError as error:
            refusal = str(error) or "nothing"
        if refusal:
            assert refusal.startswith(f"train row {number} (from 0): ")
            assert "\n" not in refusal
        else:
            assert any(label != UNTRAINED for label in found.labels)

    fuzz()


def test_refusal_names_the_rows_number(encoder: Encoder, tmp_path: Path) -> None:
    """A bad row among good ones is named by its split and number when the data is prepared."""
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}
    opener, format = ImageOpener(root=tmp_path), Messages()

    for number in range(5):
        table = datasets.Dataset.from_list([bad if n == number else good for n in range(5)])
        entry = Entry(name="", folder=tmp_path, columns=("messages",), start=0)
        rows = Rows(train=table, eval=None, entries=(entry,), numbers={"train": range(5)})
        with pytest.raises(DataError) as caught:
            prepare(Run.from_flags(["--use_cpu"]), rows, format, encoder, opener)
        assert str(caught.value).startswith(f"train row {number} (from 0): turn 2 of 'messages' ")
        assert "\n" not in str(caught.value)

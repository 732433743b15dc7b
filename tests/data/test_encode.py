"""Encoding from image sizes, against the processors' own calls on real images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from sailplan.data.encode import Encoder
from sailplan.data.labels import UNTRAINED
from sailplan.data.sample import Sample, Segment
from sailplan.errors import DataError, ModelError
from sailplan.model.families import family_of
from sailplan.model.pixels import set_pixel_budget
from sailplan.run.config import Run
from tests.data.reading import IMAGE, chat, turn
from tests.support.tiny import FAMILIES, VISION_FAMILIES

SIZES = [(56, 56), (31, 97), (300, 40), (640, 480), (57, 113)]


def _load(folder: Path, **options: Any) -> Encoder:
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = (
        transformers.AutoTokenizer if config.model_type == "llama" else transformers.AutoProcessor
    )
    return Encoder(auto.from_pretrained(folder), family_of(config), **options)


def _noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _conversation(sizes: list[tuple[int, int]]) -> Sample:
    """A chat of two turns: all images but the last in the first, the last in the second."""
    return chat(
        turn("user", *[IMAGE for _ in sizes[:-1]], "What is it?"),
        turn("assistant", "A red square."),
        turn("user", *[IMAGE for _ in sizes[-1:]], "How many?"),
        turn("assistant", "Two."),
    )


def _own_call(processor: Any, sample: Sample, sizes: list[tuple[int, int]]) -> list[int]:
    """The ids of the processor's own full call on real images."""
    images = iter([_noise(size) for size in sizes])
    messages = [
        {
            "role": message["role"],
            "content": [
                dict(part, image=next(images)) if part["type"] == "image" else dict(part)
                for part in message["content"]
            ],
        }
        for message in sample["messages"]
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", date_string="26 Jul 2024"
    )
    ids: list[int] = inputs["input_ids"][0].tolist()
    return ids


@pytest.mark.parametrize(
    "sizes", [[], *[[size] for size in SIZES], SIZES[:2], SIZES], ids=lambda s: f"{len(s)} images"
)
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_ids_from_sizes_equal_the_processors_call_on_real_images(
    tiny_model: Callable[[str], Path], family: str, sizes: list[tuple[int, int]]
) -> None:
    encoder = _load(tiny_model(family))
    sample = _conversation(sizes)

    ids = encoder.encode(sample, sizes).input_ids

    if family == "llava":  # its template ends no turn: the tokens put in are not in its own call
        ids = [token for token in ids if token != encoder.processor.tokenizer.eos_token_id]
    assert ids == _own_call(encoder.processor, sample, sizes)


def test_ids_of_text_model_equal_its_tokenizers_call(tiny_model: Callable[[str], Path]) -> None:
    encoder = _load(tiny_model("llama"))
    sample = _conversation([])
    messages = [{"role": m["role"], "content": m["content"][0]["text"]} for m in sample["messages"]]

    own = encoder.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, date_string="26 Jul 2024"
    )

    assert encoder.encode(sample, []).input_ids == own["input_ids"]


def test_ids_follow_the_pixel_budget(tiny_model: Callable[[str], Path]) -> None:
    encoder = _load(tiny_model("qwen2_vl"))
    set_pixel_budget(encoder.processor, min_pixels=None, max_pixels=112 * 112)
    sizes = [(640, 480), (20, 20)]
    sample = _conversation(sizes)

    ids = encoder.encode(sample, sizes).input_ids

    assert ids == _own_call(encoder.processor, sample, sizes)
    assert ids.count(encoder.processor.image_token_id) == 12 + 4


def test_image_that_the_processor_refuses_is_a_data_error(
    tiny_model: Callable[[str], Path],
) -> None:
    with pytest.raises(DataError, match="no image of 3000×10 pixels"):
        _load(tiny_model("qwen2_vl")).encode(_conversation([(3000, 10)]), [(3000, 10)])


@pytest.mark.parametrize("num_sizes", [0, 2])
def test_other_number_of_images_than_placeholders_is_a_data_error(
    tiny_model: Callable[[str], Path], num_sizes: int
) -> None:
    sizes = [(56, 56)] * num_sizes

    with pytest.raises(DataError, match=f"1 image placeholders .* for {num_sizes} images"):
        _load(tiny_model("qwen2_vl")).encode(_conversation([(56, 56)]), sizes)


def test_placeholder_written_in_the_text_is_a_data_error(tiny_model: Callable[[str], Path]) -> None:
    sample = chat(turn("user", "What does <|image_pad|> mean?"), turn("assistant", "An image."))

    with pytest.raises(DataError, match="1 image placeholders"):
        _load(tiny_model("qwen2_vl")).encode(sample, [])


def test_images_for_a_text_model_are_a_data_error(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match="llama, which sees none"):
        _load(tiny_model("llama")).encode(_conversation([(9, 9)]), [(9, 9)])


def test_tokenizer_of_another_model_is_a_model_error(tiny_model: Callable[[str], Path]) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny_model("llama"))
    config.vocab_size = 100
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model("llama"))

    with pytest.raises(ModelError, match="beyond the model's 100 embeddings"):
        Encoder(tokenizer, family_of(config)).encode(_conversation([]), [])


@pytest.mark.parametrize("family", FAMILIES)
def test_length_limit_is_the_models_own_unless_written(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    assert _load(tiny_model(family)).max_length == 2048
    assert _load(tiny_model(family), max_length=77).max_length == 77


@pytest.mark.parametrize(
    ("flags", "everything", "truncate", "max_length"),
    [
        ([], False, False, 2048),
        (["--assistant_only_loss", "false"], True, False, 2048),
        (["--completion_only_loss", "false"], True, False, 2048),
        (["--assistant_only_loss", "true", "--max_length", "64"], False, False, 64),
        (["--over_length", "truncate_text"], False, True, 2048),
    ],
)
def test_options_come_from_the_run(
    tiny_model: Callable[[str], Path],
    flags: list[str],
    everything: bool,
    truncate: bool,
    max_length: int,
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model("llama"))
    family = family_of(transformers.AutoConfig.from_pretrained(tiny_model("llama")))

    encoder = Encoder.of(Run.from_flags(flags), tokenizer, family)

    assert (encoder.everything, encoder.truncate) == (everything, truncate)
    assert encoder.max_length == max_length


def _segments(prompt: str, answer: str) -> Sample:
    segments = [Segment(text=prompt, trained=False), Segment(text=answer, trained=True)]
    return Sample(messages=[], segments=segments, images=[])


def test_truncation_cuts_text_off_the_end(tiny_model: Callable[[str], Path]) -> None:
    sample = _segments("Count: ", "one two three four five six seven eight nine ten")
    whole = _load(tiny_model("llama")).encode(sample, [])

    cut = _load(tiny_model("llama"), max_length=20, truncate=True).encode(sample, [])

    assert len(whole.input_ids) > 20
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:20], whole.labels[:20])


def test_truncation_cuts_neither_an_image_nor_all_that_is_trained(
    tiny_model: Callable[[str], Path],
) -> None:
    encoder = _load(tiny_model("qwen2_vl"), truncate=True)
    sizes = [(56, 56), (112, 112)]
    sample = _conversation(sizes)
    whole = encoder.encode(sample, sizes)
    media = encoder.family.untrained_token_ids(encoder.processor)
    last_image = max(index for index, token in enumerate(whole.input_ids) if token in media)
    lengths = []
    for limit in range(1, len(whole.input_ids) + 1):
        encoder.max_length = limit
        encoded = encoder.encode(sample, sizes)
        assert any(label != UNTRAINED for label in encoded.labels)
        lengths.append(len(encoded.input_ids))

    expected = range(1, len(whole.input_ids) + 1)
    assert lengths == [n if n > last_image else len(whole.input_ids) for n in expected]

    text = _conversation([])
    encoder.max_length = 5
    assert len(encoder.encode(text, []).input_ids) > 5


def test_fingerprint_is_equal_for_another_copy_and_after_use(
    tiny_model: Callable[[str], Path],
) -> None:
    # That it is equal in another process is seen where ranks share a cache (test_prepare).
    encoder = _load(tiny_model("qwen2_vl"))
    before = encoder.fingerprint()
    encoder.encode(_conversation([(56, 56)]), [(56, 56)])

    assert encoder.fingerprint() == before == _load(tiny_model("qwen2_vl")).fingerprint()


def test_fingerprint_changes_with_everything_that_decides(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_model("qwen2_vl")
    budget, template, word = _load(folder), _load(folder), _load(folder)
    set_pixel_budget(budget.processor, min_pixels=None, max_pixels=112 * 112)
    template.processor.chat_template += " "
    word.processor.tokenizer.add_tokens(["squarely"])

    keys = [
        encoder.fingerprint()
        for encoder in (
            *(_load(folder), _load(folder, everything=True), _load(folder, truncate=True)),
            _load(folder, truncate=True, max_length=9),
            *(budget, template, word, _load(tiny_model("llava"))),
        )
    ]

    assert len(set(keys)) == len(keys), keys
    # What is only dropped for its length is encoded all the same.
    assert _load(folder, max_length=9).fingerprint() == keys[0]

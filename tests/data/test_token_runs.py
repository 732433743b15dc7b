"""Runs of image tokens: what is tokenised short and written out is what the whole text becomes."""

from __future__ import annotations

import pytest

from sailplan.data.media import ImageExpander
from sailplan.data.token_runs import TokenRuns
from sailplan.model.families import family_of
from tests.support.tiny import MORE_FAMILIES, VISION_FAMILIES, build_processor


@pytest.mark.parametrize("family", [*VISION_FAMILIES, *MORE_FAMILIES])
def test_folded_images_become_the_tokens_of_the_whole_text(family: str) -> None:
    config, processor = build_processor(family)
    tokenizer, token = processor.tokenizer, processor.image_token
    expander = ImageExpander(processor, family_of(config))
    sizes = [(84, 56), (300, 200), (56, 56)]
    text = f"One {token} two\n{token}{token} three?"

    expanded = expander.expand(text, [(0, 3)], sizes)
    encoding = tokenizer(expanded.text, return_offsets_mapping=True)
    ids, labels = expander.runs.unfold(
        encoding["input_ids"],
        encoding["input_ids"],
        encoding["offset_mapping"],
        expanded.images,
        expanded.lengths,
    )

    whole = text
    for size in sizes:
        written = expander.replacement(size, among_others=True)
        whole = whole.replace(token, written.replace(token, "\x00"), 1)
    assert ids == tokenizer(whole.replace("\x00", token))["input_ids"]
    assert labels == ids
    assert len(encoding["input_ids"]) <= len(ids)


def test_runs_are_folded_each_for_itself() -> None:
    _, processor = build_processor("pixtral")
    tokenizer = processor.tokenizer
    names = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    runs = TokenRuns(tokenizer, tokenizer.convert_tokens_to_ids(list(names)))
    row = "[IMG]" * 3 + "[IMG_BREAK]"

    short, lengths = runs.fold(row * 2 + "[IMG][IMG][IMG_END]")

    assert short == "[IMG][IMG_BREAK]" * 2 + "[IMG][IMG_END]"
    assert lengths == [3, 1, 3, 1, 2, 1]

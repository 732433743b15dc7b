"""Compares cached token ids with those that the model's own processor makes of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from sailplan.data.encode import Encoder
from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
from sailplan.data.prefix import split
from sailplan.data.sources import Rows
from sailplan.data.streaming import EncodedStream, Stream
from sailplan.data.token_rows import column
from sailplan.errors import DataError
from sailplan.model.families import tokenizer_of

_CHECKED_SAMPLES = 3
_SEARCHED_SAMPLES, _STREAMED_SAMPLES = 4096, 64


def difference(
    encoder: Encoder,
    format: Format,
    opener: ImageOpener,
    raw: Mapping[str, Any],
    cached: Sequence[int],
    *,
    entry: int = 0,
) -> str | None:
    """Returns where the processor's own call gives other ids, None where it gives the same.

    The processor decodes and resizes the images, where the cache only knows their sizes; it is what
    the model will be asked through later.

    Args:
        encoder: What the ids were made with.
        format: How a raw row becomes a sample.
        opener: Opens its images.
        raw: The row.
        cached: Its ids; cut off where the run cuts long samples.
        entry: The entry of the data that it is from.

    Raises:
        DataError: The row cannot be read.
    """
    processor, tokenizer = encoder.processor, tokenizer_of(encoder.processor)
    sample = format.sample(raw)
    images: Any = [opener.open(reference, entry) for reference in sample["images"]]
    marked = encoder.mark(sample)
    text, options = marked.text, dict[str, Any]()
    if encoder.family.prefix_lm:  # the processor puts EOS behind an answer itself
        text, answer = split(marked)
        options["suffix"] = [answer.removesuffix(tokenizer.eos_token)]
    bos = tokenizer.bos_token
    complete = bool(bos and text.startswith(bos)) or (
        processor is tokenizer and bool(sample["messages"])
    )
    options["add_special_tokens"] = not complete
    if images:
        options["images"] = [images] if encoder.family.nested_images else images
    own = [int(token) for token in processor(text=[text], **options)["input_ids"][0]]
    ids = [int(token) for token in cached]
    if own[: len(ids)] == ids and (encoder.truncate or own[len(ids) :] in _endings(tokenizer)):
        return None
    first = next(
        (at for at, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b),
        min(len(ids), len(own)),
    )
    words = [_token(tokenizer, sequence, first) for sequence in (ids, own)]
    return (
        f"token {first} is {words[0]} for training, and {words[1]} for the model's own processor "
        f"({len(ids)} and {len(own)} tokens)"
    )


def check_own_ids(
    encoder: Encoder, format: Format, opener: ImageOpener, rows: Rows, encoded: Any
) -> list[str]:
    """Compares some short samples of a run, and returns a warning where one differs.

    Args:
        encoder: What the ids were made with.
        format: How a raw row becomes a sample.
        opener: Opens its images.
        rows: The raw rows.
        encoded: The encoded ones; of a stream none are read ahead.
    """
    if isinstance(rows.train, Stream) or encoder.processor is tokenizer_of(encoder.processor):
        return []
    for sample in check_samples(encoded):
        raw = rows.train[int(sample["row"])]
        entry = int(sample.get("entry", 0))
        try:
            found = difference(encoder, format, opener, raw, sample["input_ids"], entry=entry)
        except DataError:  # a broken image: the batch that has it says so, with its place
            continue
        if found is not None:
            return [f"warning: {encoder.family.name}: {sample.get('place', 'a row')}: {found}"]
    return []


def check_samples(rows: Any) -> list[Mapping[str, Any]]:
    """Returns the shortest samples with several images, with none and with one, of the first ones.

    Args:
        rows: Encoded rows, or a stream of them.
    """
    if isinstance(rows, EncodedStream):
        read = list(islice(rows, _STREAMED_SAMPLES))
        lengths = np.array([len(row["input_ids"]) for row in read])
        counts = np.array([row.get("num_images", 0) for row in read])
    else:
        read = rows
        lengths = column(rows, "length")[:_SEARCHED_SAMPLES]
        counts = column(rows, "num_images")[:_SEARCHED_SAMPLES]
    images = np.minimum(counts, 2)
    order = np.argsort(lengths, kind="stable")
    firsts = [order[images[order] == kind][:1] for kind in (2, 0, 1)]
    chosen = list(dict.fromkeys([*np.concatenate(firsts).tolist(), *order.tolist()]))
    return [read[index] for index in chosen[:_CHECKED_SAMPLES]]


def _endings(tokenizer: Any) -> list[list[int]]:
    """Returns what may follow: EOS is not trained on twice, where the text ends with one."""
    return [[], [tokenizer.eos_token_id]]


def _token(tokenizer: Any, ids: Sequence[int], at: int) -> str:
    return repr(tokenizer.convert_ids_to_tokens(ids[at])) if at < len(ids) else "none"

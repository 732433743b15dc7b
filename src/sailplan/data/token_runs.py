"""Runs of one image token, tokenised as a single one and written out in ids afterwards.

An image takes hundreds of tokens that are all alike. Their ids are known: a tokenizer that finds
special tokens in a text before all else makes the same id of each, and the text around them becomes
the same tokens whether one stands there or hundreds. So the long text never has to be tokenised,
which is most of the work that a row with an image would take.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

_MAX_KNOWN = 4096

Span = tuple[int, int]


class TokenRuns:
    """Folds and unfolds the runs of a tokenizer's special tokens.

    Args:
        tokenizer: The tokenizer.
        foldable_ids: The ids whose runs are folded; those of tokens that change the text beside
            them, or are changed before they are looked for, are left as they are.
    """

    def __init__(self, tokenizer: Any, foldable_ids: Collection[int]) -> None:
        tokens = {
            token_id: token.content
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token_id in foldable_ids
            and token.special
            and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        }
        self._ids = frozenset(tokens)
        longest_first = sorted(tokens.values(), key=len, reverse=True)
        self._run = re.compile(rf"({'|'.join(map(re.escape, longest_first)) or '(?!)'})\1*")
        self._known: dict[str, tuple[str, list[int]]] = {}

    def fold(self, text: str) -> tuple[str, list[int]]:
        """Returns the text with each run as one token, and for each run how long it was."""
        if text not in self._known:
            lengths: list[int] = []

            def once(match: re.Match[str]) -> str:
                lengths.append(len(match[0]) // len(match[1]))
                return match[1]

            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[text] = self._run.sub(once, text), lengths
        return self._known[text]

    def unfold(
        self,
        ids: Sequence[int],
        labels: Sequence[int],
        offsets: Sequence[Span],
        images: Sequence[Span],
        lengths: Sequence[int],
    ) -> tuple[list[int], list[int]]:
        """Returns ids and labels with every run of images in its length.

        Args:
            ids: Ids of the folded text, `[tokens]`.
            labels: Their labels, `[tokens]`.
            offsets: For each token, its characters in the folded text.
            images: The spans of images in it.
            lengths: Of the runs in all images, in order.
        """
        if not lengths:
            return list(ids), list(labels)
        runs = [
            at
            for at, token in enumerate(ids)
            if token in self._ids and _is_within(offsets[at], images)
        ]
        if len(runs) != len(lengths):
            raise RuntimeError("a run of image tokens got lost in tokenisation")
        new_ids: list[int] = []
        new_labels: list[int] = []
        done = 0
        for at, length in zip(runs, lengths, strict=True):
            new_ids += ids[done:at]
            new_labels += labels[done:at]
            new_ids += [ids[at]] * length
            new_labels += [labels[at]] * length
            done = at + 1
        return [*new_ids, *ids[done:]], [*new_labels, *labels[done:]]


def _is_within(offset: Span, images: Sequence[Span]) -> bool:
    return any(start <= offset[0] and offset[1] <= end for start, end in images)

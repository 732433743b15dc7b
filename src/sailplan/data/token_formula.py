"""The image processor's own formula for the tokens of an image, used where it has proven right.

transformers' processors can say how many tokens an image of a size becomes without making pixels
(`_get_num_multimodal_tokens`, which inference servers plan with). For some families it counts
breaks and frames too, or is missing; it is one number, while a placeholder becomes a text.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from sailplan.errors import DataError

Size = tuple[int, int]

_PROOFS = 6
"""Sizes of the data that must agree before the formula is trusted."""

_PROBES: tuple[Size, ...] = ((40, 700), (900, 30), (29, 31), (57, 56), (1601, 1203))
"""Sizes that must agree besides: strips, hardly anything, and more than most pixel budgets."""

_SHARPEST = 60
"""Sides in a ratio beyond this go through the processor always: some refuse them."""


class TokenFormula:
    """Learns from sizes that went through the processor, then answers for others.

    It answers only for processors whose placeholder becomes one run of image tokens in a constant
    frame, for which the formula has given the right count for all of `_PROOFS` sizes of the data
    and `_PROBES`, or one too large by the same number, that of the frame's tokens. One size that
    disagrees, and it never answers.

    Args:
        processor: The model's processor.
    """

    def __init__(self, processor: Any) -> None:
        self._count = None
        if hasattr(processor, "_get_num_multimodal_tokens"):
            once = copy.copy(processor)
            once._merge_kwargs = _MergedOnce(processor._merge_kwargs)
            self._count = once._get_num_multimodal_tokens
        self._token = getattr(processor, "image_token", None)
        self._frame: tuple[str, str, int] | None = None
        self._learned = 0
        self._is_proven = False
        self._is_wrong = self._count is None or not self._token

    def is_unproven(self, size: Size) -> bool:
        """Tells whether enough sizes agreed and only the probes are left to be tried."""
        ready = self._learned >= _PROOFS and not self._is_proven and not self._is_wrong
        return ready and not _is_sharp(size)

    def prove(self, processed: Callable[[Size], str]) -> None:
        """Tries the probes.

        Args:
            processed: Sends an image of a size through the processor.
        """
        for probe in _PROBES:
            try:
                self.learn(probe, processed(probe))
            except DataError:  # refused, so there is no text to be compared
                continue
        self._is_proven = True

    def learn(self, size: Size, text: str) -> None:
        """Compares what an image of that size became with the formula."""
        if self._is_wrong or self._is_proven:
            return
        head, token, rest = text.partition(self._token or "")
        count = text.count(self._token or "")
        body = (self._token or "") * (count - 1)
        counted = self._counted(size)
        if not token or not rest.startswith(body) or counted is None:
            self._is_wrong = True
            return
        frame = (head, rest[len(body) :], counted - count)
        self._is_wrong = self._frame not in (None, frame)
        self._frame = frame
        self._learned += 1

    def replacement(self, size: Size) -> str | None:
        """Returns what the placeholder of an image of that size becomes, None where not known."""
        if not self._is_proven or self._is_wrong or self._frame is None or _is_sharp(size):
            return None
        counted, (head, tail, too_many) = self._counted(size), self._frame
        if counted is None or counted <= too_many:
            return None
        return f"{head}{(self._token or '') * (counted - too_many)}{tail}"

    def _counted(self, size: Size) -> int | None:
        width, height = size
        try:
            counts = self._count(image_sizes=[[height, width]])  # type: ignore[misc]  # is not None
            return int(counts.num_image_tokens[0])
        except Exception:  # a formula that fails says nothing; the processor itself decides
            return None


class _MergedOnce:
    """The settings of a processor that is called without any, merged and checked a single time.

    That is nine tenths of what its formula takes (transformers 5.23).
    """

    def __init__(self, merge: Callable[..., dict[str, Any]]) -> None:
        self._merge = merge
        self._known: dict[str, Any] | None = None

    def __call__(self, *arguments: Any, **settings: Any) -> dict[str, Any]:
        if arguments or settings:
            return self._merge(*arguments, **settings)
        if self._known is None:
            self._known = self._merge()
        return copy.deepcopy(self._known)


def _is_sharp(size: Size) -> bool:
    return max(size) > _SHARPEST * min(size)

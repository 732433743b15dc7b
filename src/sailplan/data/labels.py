"""Decides which tokens of a sample are trained: the one place for it.

Trained are the assistant's words and the token that ends its turn, so that the model learns to
stop. Where the words stand is found, in this order, by

1. `markers`: `{% generation %}` in the model's chat template, or in TRL's training version of it
   where that says the same;
2. `prefixes`: for each turn, the conversation up to it with the generation prompt, and with the
   turn; both must be prefixes of the whole;
3. `last turn`: only the last answer, behind the prompt that the model would be given for it.

Decisions are character spans of the text; `label_tokens` carries them over to tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sailplan.data.chat_template import ChatTemplate
from sailplan.data.sample import Message, Segment
from sailplan.errors import DataError
from sailplan.model.families import tokenizer_of

Span = tuple[int, int]
"""Characters `[start, end)` of a text."""

Method = Literal["markers", "prefixes", "last turn", "all text", "segments"]
"""How it was found what is trained."""

UNTRAINED = -100
"""The label that the loss leaves out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """A sample as text, with the characters that are trained."""

    text: str
    """The text, each image still one placeholder."""
    spans: tuple[Span, ...]
    """What is trained, in order and apart from each other."""
    method: Method
    """How the spans were found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endings:
    """The special tokens that can end a turn."""

    eos: str | None
    """The tokenizer's end-of-sequence token."""
    special: tuple[str, ...]
    """All special tokens that stand for no image, video or sound."""

    @classmethod
    def of(cls, processor: Any, untrained_ids: Collection[int]) -> Endings:
        """Reads them from a processor or tokenizer."""
        tokenizer = tokenizer_of(processor)
        special = [
            token.content
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special and token_id not in untrained_ids
        ]
        eos = tokenizer.eos_token
        return cls(eos=eos, special=tuple(dict.fromkeys([*special, *([eos] if eos else [])])))

    def closing(self, text: str) -> str | None:
        """Returns the special token that `text` ends with, white space aside."""
        body = text.rstrip()
        found = [token for token in self.special if body.endswith(token)]
        return max(found, key=len, default=None)

    def words(self, text: str) -> str:
        """Returns `text` without special tokens and surrounding white space."""
        return re.sub("|".join(map(re.escape, self.special)) or r"(?!)", "", text).strip()


def mark_conversation(
    messages: Sequence[Message], template: ChatTemplate, endings: Endings, *, everything: bool
) -> Marked:
    """Returns a conversation as text with what is trained in it.

    Where the template ends the assistant's turns with no special token (LLaVA-1.5), the
    end-of-sequence token is put behind its words.

    Args:
        messages: The conversation.
        template: The model's chat template.
        endings: The tokens that can end a turn.
        everything: Train the whole text instead of the assistant's words.

    Raises:
        DataError: The template refuses the conversation, or no assistant turn is to be trained.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError(
            "the conversation has no assistant turn", todo="drop the row", kind="no-answer"
        )
    found = _by_markers(messages, turns, template) or _by_prefixes(messages, turns, template)
    if found is None:
        if everything:
            text = template.render(messages)
            return Marked(text=text, spans=((0, len(text)),), method="all text")
        return _last_turn(messages, turns, template, endings)
    text, spans, method = found
    ending = endings.closing(text) if turns[-1] == len(messages) - 1 else None
    text, spans = _close(text, spans, endings, ending)
    if everything:
        return Marked(text=text, spans=((0, len(text)),), method="all text")
    trained = [
        span
        for turn, span in zip(turns, spans, strict=True)
        if messages[turn].get("trained", True) and endings.words(text[slice(*span)])
    ]
    return Marked(text=text, spans=tuple(trained), method=method)


def mark_segments(segments: Sequence[Segment], endings: Endings, *, everything: bool) -> Marked:
    """Returns plain text with its trained segments, the end-of-sequence token behind the last."""
    text, spans = "", []
    for segment in segments:
        start, text = len(text), text + segment["text"]
        if (segment["trained"] or everything) and segment["text"]:
            spans.append((start, len(text)))
    if endings.eos and spans and spans[-1][1] == len(text):
        if not text.endswith(endings.eos):
            text += endings.eos
        spans[-1] = (spans[-1][0], len(text))
    return Marked(text=text, spans=tuple(spans), method="segments")


def label_tokens(
    input_ids: Sequence[int],
    offsets: Sequence[Span],
    text: str,
    spans: Sequence[Span],
    *,
    untrained_spans: Sequence[Span],
    untrained_ids: Collection[int],
) -> list[int]:
    """Returns a label for each token: its own id where it is trained, else `UNTRAINED`.

    A token that begins before a span is trained with it only if it has nothing but white space
    there: ` a` in `ASSISTANT: a` is the answer's, a token that mixes prompt and answer is not. The
    first position is never trained, since nothing predicts it.

    Args:
        input_ids: Ids of the text's tokens, `[tokens]`.
        offsets: For each token, its characters in `text`.
        text: The text that was tokenised, images expanded.
        spans: The characters that are trained.
        untrained_spans: Characters that are not trained even so: written-out images.
        untrained_ids: Ids that are never trained.
    """
    ids = np.asarray(input_ids, dtype=np.int64)
    edges = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    trained = np.zeros(len(ids), dtype=bool)
    for start, end in spans:
        inside = (edges[:, 1] > start) & (edges[:, 0] < end)
        for index in np.flatnonzero(inside & (edges[:, 0] < start)):
            inside[index] = not text[edges[index, 0] : start].strip()
        trained |= inside
    for start, end in untrained_spans:
        trained &= ~((edges[:, 1] > start) & (edges[:, 0] < end))
    never = frozenset(untrained_ids)  # for so few ids quicker than numpy's own search
    trained &= np.fromiter((token not in never for token in input_ids), dtype=bool, count=len(ids))
    trained[:1] = False
    labels: NDArray[np.int64] = np.where(trained, ids, UNTRAINED)
    return list(labels.tolist())


_Found = tuple[str, list[Span], Method]
"""The text, one span for each assistant turn, and how they were found."""


def _by_markers(
    messages: Sequence[Message], turns: list[int], template: ChatTemplate
) -> _Found | None:
    rendered = template.render_marked(messages)
    if rendered is None:
        return None
    text, pieces = rendered
    # A template may mark a turn piece by piece: what follows without a gap is one turn.
    spans: list[Span] = []
    for start, end in pieces:
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, end))
    if len(spans) != len(turns):
        return None
    spans = [
        _behind_prompt(text, span, _prompt(messages, turn, template), messages[turn])
        for turn, span in zip(turns, spans, strict=True)
    ]
    return text, spans, "markers"


def _behind_prompt(text: str, span: Span, prompt: str | None, message: Message) -> Span:
    """Cuts off what the generation prompt holds, or ends in: some markers enclose the header."""
    (start, end), head = span, prompt or ""
    if text.startswith(head):
        return (max(start, len(head)), end) if len(head) < end else span
    # A prompt may go on where the turn does not (DeepSeek's begins to think).
    said = "".join(part.get("text", "") for part in message["content"]).strip()
    same = len(commonprefix((text, head)))  # noqa: RUF071 (of characters, not of paths)
    shared = min(same, text.find(said, start, end))
    behind = text[start:end].removeprefix(head[len(head.rstrip()) :])
    return max(shared, end - len(behind)), end


def _by_prefixes(
    messages: Sequence[Message], turns: list[int], template: ChatTemplate
) -> _Found | None:
    text = template.render(messages)
    spans: list[Span] = []
    for turn in turns:
        prompt = _prompt(messages, turn, template)
        answered = _rendered(messages[: turn + 1], template)
        if prompt is None or answered is None or len(prompt) >= len(answered):
            return None
        if not (text.startswith(prompt) and text.startswith(answered)):
            return None
        spans.append((len(prompt), len(answered)))
    return text, spans, "prefixes"


def _last_turn(
    messages: Sequence[Message], turns: list[int], template: ChatTemplate, endings: Endings
) -> Marked:
    wanted = [turn for turn in turns if messages[turn].get("trained", True)]
    if not wanted:
        return Marked(text=template.render(messages), spans=(), method="last turn")
    last = wanted[-1]
    text = template.render(messages[: last + 1])
    ending = endings.closing(text)
    prompt = _prompt(messages, last, template)
    if prompt is None:
        raise DataError(
            "the chat template renders no prompt for the last answer",
            todo="check the order of the roles",
        )
    if not text.startswith(prompt):
        # What is said earlier depends on what comes later (Mistral moves the system text to the
        # last user turn): take the prompt that the model would be given, and the answer's words.
        parts = messages[last]["content"]
        if messages[last].get("tool_calls"):
            raise DataError("the chat template writes the last answer's tool calls out of order")
        if any(part["type"] != "text" for part in parts):
            raise DataError("the last answer holds an image", allowed="text")
        text = prompt + "".join(part["text"] for part in parts)
    spans = [(len(prompt), len(text))] if endings.words(text[len(prompt) :]) else []
    text, spans = _close(text, spans, endings, ending)
    return Marked(text=text, spans=tuple(spans), method="last turn")


def _close(
    text: str, spans: Sequence[Span], endings: Endings, ending: str | None
) -> tuple[str, list[Span]]:
    """Makes every span end with the token that ends its turn, and nothing behind it.

    Where none follows the words one is put into the text that is returned: `ending`, which ends
    the conversation's last turn, or where that is not known eos.
    """
    candidates = [token for token in (ending, endings.eos) if token]
    pieces: list[str] = []
    closed: list[Span] = []
    done = shift = 0
    for start, end in spans:
        start, stop, added = start + shift, start + len(text[start:end].rstrip()), ""
        if candidates and endings.closing(text[start - shift : stop]) is None:
            behind = stop + len(text[stop:]) - len(text[stop:].lstrip())
            following = next((t for t in candidates if text.startswith(t, behind)), None)
            stop = behind + len(following) if following else stop
            added = "" if following else candidates[0]
        pieces += [text[done:stop], added]
        done, shift = stop, shift + len(added)
        closed.append((start, stop + shift))
    return "".join([*pieces, text[done:]]), closed


def _prompt(messages: Sequence[Message], turn: int, template: ChatTemplate) -> str | None:
    """Returns what the model is given to answer with `messages[turn]`."""
    return _rendered(messages[:turn], template, add_generation_prompt=True)


def _rendered(
    messages: Sequence[Message], template: ChatTemplate, *, add_generation_prompt: bool = False
) -> str | None:
    try:
        return template.render(messages, add_generation_prompt=add_generation_prompt)
    except DataError:
        return None

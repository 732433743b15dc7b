"""Holds the chat template to what it will be asked: the same prompt in training and generation."""

from __future__ import annotations

import re
from typing import Any

from sailplan.data.encode import Encoder
from sailplan.data.labels import Marked
from sailplan.data.sample import Message, Sample
from sailplan.errors import DataError
from sailplan.inspect.findings import Problem

_MAX_SHAPES = 256
"""Of chats whose findings are kept: a template does alike to all chats of a shape."""

_SHOWN_CHARACTERS = 60

_HEADER = re.compile(r"assistant|\bmodel\b|\bgpt\b", re.IGNORECASE)


def trained_turns(sample: Sample) -> list[int]:
    """Returns the numbers of the assistant's turns that are trained and say something."""
    return [
        index
        for index, message in enumerate(sample["messages"])
        if message["role"] == "assistant"
        and message.get("trained", True)
        and (_words(message).strip() or message.get("tool_calls"))
    ]


class TemplateCheck:
    """Finds what a chat template does wrong to chats, once for each shape of them.

    Args:
        encoder: The run's encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[Any, list[Problem]] = {}

    def look(self, sample: Sample) -> list[Problem]:
        """Returns the findings of a chat that can be encoded; none for text without a chat."""
        if not sample["messages"]:
            return []
        shape = tuple(_shape(message) for message in sample["messages"])
        if shape not in self._known:
            if len(self._known) >= _MAX_SHAPES:
                self._known.clear()
            self._known[shape] = self._look(sample)
        return self._known[shape]

    def _look(self, sample: Sample) -> list[Problem]:
        messages, turns = sample["messages"], trained_turns(sample)
        marked = self._encoder.mark(sample)
        if marked.method == "last turn":
            turns = turns[-1:]
        elif len(marked.spans) != len(turns) and marked.method != "all text":
            return []
        problems: dict[str, Problem] = {}
        for position, turn in enumerate(turns):
            start = None if marked.method == "all text" else marked.spans[position][0]
            problem = self._differs(messages, turn, marked, start)
            if start is not None:
                problem = self._header(messages[turn], marked, position) or problem
            if problem:
                problems.setdefault(problem.name, problem)
        return list(problems.values())

    def _differs(
        self, messages: list[Message], turn: int, marked: Marked, start: int | None
    ) -> Problem | None:
        """Compares the prompt for an answer with what stands before it in training."""
        try:
            prompt = self._encoder.template.render(messages[:turn], add_generation_prompt=True)
        except DataError as error:
            message = f"turn {turn + 1} is trained, but {error.got}"
            return Problem(name="generation-differs", message=message)
        if not marked.text.startswith(prompt):
            same = next(
                (i for i, (a, b) in enumerate(zip(prompt, marked.text, strict=False)) if a != b),
                min(len(prompt), len(marked.text)),
            )
            message = (
                f"before turn {turn + 1}, training has {_shown(marked.text[same:])} where "
                f"generation has {_shown(prompt[same:])}"
            )
            return Problem(name="generation-differs", message=message)
        between = marked.text[len(prompt) : start] if start is not None else ""
        if between.strip():
            message = (
                f"before turn {turn + 1}, {_shown(between)} is neither trained nor in the prompt "
                "for generation"
            )
            return Problem(name="generation-differs", message=message)
        return None

    def _header(self, message: Message, marked: Marked, position: int) -> Problem | None:
        """Looks whether more is trained in front of the answer's words than white space."""
        text = marked.text[slice(*marked.spans[position])]
        head, found, _ = text.partition(_words(message).strip() or text)
        if not found or message.get("tool_calls") or message.get("reasoning_content"):
            return None
        if _HEADER.search(head) or any(token in head for token in self._encoder.endings.special):
            return Problem(name="header-trained", message=f"{_shown(head)} is trained")
        return None


def _shape(message: Message) -> Any:
    """What decides how a template renders a message, its words aside."""
    kinds = tuple(part["type"] for part in message["content"])
    extras = tuple(sorted(key for key in message if key not in ("role", "content")))
    return message["role"], kinds, extras, message.get("trained", True), bool(_words(message))


def _words(message: Message) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")

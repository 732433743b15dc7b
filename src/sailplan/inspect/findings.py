"""What can be wrong with data: each finding by a stable name, with the rows it was found in."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from sailplan.errors import DataError

Severity = Literal["error", "warning", "note"]
"""Training would stop; training would go on, most likely not as meant; good to know."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

WARNINGS_EXIT_CODE = 10
"""Of an inspection whose worst finding is a warning; errors exit as `DataError` does."""

_MAX_ALLOWED = 90
"""Characters of what is allowed that are told: the list of all roles is for the docs."""

_MAX_NUMBERS = 20
"""Row numbers that are kept of a finding: the first ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What a finding means, whatever the row."""

    severity: Severity
    meaning: str
    """In one clause."""
    todo: str
    """What to do, where the row itself says nothing better."""


def _error(meaning: str, todo: str) -> Rule:
    return Rule(severity="error", meaning=meaning, todo=todo)


def _warning(meaning: str, todo: str) -> Rule:
    return Rule(severity="warning", meaning=meaning, todo=todo)


def _note(meaning: str, todo: str) -> Rule:
    return Rule(severity="note", meaning=meaning, todo=todo)


RULES: dict[str, Rule] = {
    "row-format": _error("a row is not what its format asks for", "correct or drop the row"),
    "missing-role": _error("a turn has no role", "write user or assistant, or drop the row"),
    "unknown-role": _error("a turn has a role that nobody knows", "rename the role"),
    "none-part": _error("a turn, its content or a part of it is null", "fill it or drop the row"),
    "no-answer": _error("the assistant says nothing", "add an answer or drop the row"),
    "empty-answer": _error("the answer is empty", "write the answer or drop the row"),
    "empty-column": _error("a column that the prompt needs is empty", "fill it or drop the row"),
    "nothing-trained": _error("no token is trained", "drop the row or add an answer"),
    "broken-text": _error("the text is no Unicode", "write the text as UTF-8"),
    "placeholder-mismatch": _error(
        "image placeholders and images differ in number", "write one placeholder for each image"
    ),
    "no-image": _error(
        "no image, for a model that takes no text without one", "drop the row, or train another"
    ),
    "images-unseen": _error("images for a model that sees none", "train a vision-language model"),
    "image-missing": _error("an image is not where the row says", "copy it there, or drop the row"),
    "image-broken": _error("an image cannot be read", "get the file again, or drop the row"),
    "image-refused": _error("an image is not allowed, or too large", "allow it or scale it down"),
    "image-size": _error("the model takes no image of that size", "scale it, or drop the row"),
    "template-refuses": _error("the chat template refuses the chat", "correct the roles' order"),
    "over-long": _error(
        "more tokens than max_length, or than the model can hold",
        "raise max_length, lower max_pixels, or write over_length: drop or truncate_text",
    ),
    "empty-turn": _warning("a turn among others is empty", "fill it or drop the row"),
    "special-token-in-text": _warning(
        "the text holds a token that ends turns or texts", "take it out: the template writes it"
    ),
    "header-trained": _warning(
        "the turn's header is trained with the answer, since the chat template opens no turn for "
        "generation",
        "use a chat template that knows add_generation_prompt (chat_template_path)",
    ),
    "end-of-turn-untrained": _warning(
        "the answer's end is not trained, so the model does not learn to stop",
        "raise max_length, or write over_length: drop",
    ),
    "generation-differs": _warning(
        "the model is trained behind another prompt than it will be asked with",
        "correct the chat template (chat_template_path)",
    ),
    "bos-twice": _warning(
        "the text begins with BOS twice", "take it out of the chat template or of the data"
    ),
    "bos-missing": _warning(
        "the text begins without the BOS that the tokenizer puts before plain text",
        "write it in the chat template (chat_template_path)",
    ),
    "duplicate-rows": _warning("the same row comes again", "drop the copies, or keep them"),
    "held-out-leak": _warning(
        "a held-out row is trained on too, so the held-out loss says too little",
        "take it out of one of the two",
    ),
    "held-out-question": _note(
        "a held-out question is trained on with another answer", "split by question instead"
    ),
    "held-out-image": _note("a held-out image is trained on too", "split by image instead"),
    "earlier-turns-untrained": _note(
        "only the last answer of a chat is trained, since the chat template renders earlier ones "
        "otherwise than the model would be asked for them",
        "split such chats into one row for each answer",
    ),
    "text-only-rows": _note("rows without an image among rows with images", "nothing"),
    "streamed": _note("the data is streamed: only its first rows were looked at", "raise --rows"),
}
"""Every finding, in the order in which a row goes through the checks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is wrong with one row."""

    name: str
    """A key of `RULES`."""
    message: str
    """What was found, in one clause."""
    todo: str = ""
    """What to do about it; empty for the rule's own."""

    @classmethod
    def of(cls, error: DataError, fallback: str) -> Problem:
        """Names the error that training would stop with.

        Args:
            error: The error.
            fallback: Its name where it has none.
        """
        name = error.kind if error.kind in RULES else fallback
        message, todo = error.got, error.todo
        if error.allowed and len(error.allowed) <= _MAX_ALLOWED:
            message += f" (allowed: {error.allowed})"
        if name == "image-missing" and todo.startswith("looked"):  # where, which is no advice
            message, todo = f"{message}: {todo}", ""
        return cls(name=name, message=" ".join(message.split()), todo=todo)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that is wrong with some rows of a split."""

    name: str
    """A key of `RULES`."""
    severity: Severity
    split: str
    """`train` or `eval`."""
    count: int
    """Of rows; 0 where it is no matter of rows."""
    rows: tuple[int, ...]
    """The first of them, numbered within their split before any were held out."""
    places: tuple[str, ...]
    """Where a user finds these."""
    message: str
    """What was found in the first of them."""
    todo: str
    """What to do."""

    @property
    def meaning(self) -> str:
        """What the finding means, whatever the row."""
        return RULES[self.name].meaning


@dataclass(kw_only=True, slots=True)
class _Found:
    severity: Severity
    count: int = 0
    numbers: list[int] = field(default_factory=list)
    first: Problem


class Tally:
    """Counts findings, and keeps the first rows of each; what comes first in time is no matter."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], _Found] = {}

    def add(
        self, split: str, number: int | None, problem: Problem, *, severity: Severity | None = None
    ) -> None:
        """Adds a finding.

        Args:
            split: The split that it is in.
            number: The row's number before any were held out; None for what is no row's matter.
            problem: What it is.
            severity: In place of the rule's own.
        """
        found = self._found.setdefault(
            (problem.name, split),
            _Found(severity=severity or RULES[problem.name].severity, first=problem),
        )
        if number is None:
            found.first = problem
            return
        found.count += 1
        if not found.numbers or number < found.numbers[0]:
            found.first = problem
        if len(found.numbers) < _MAX_NUMBERS or number < found.numbers[-1]:
            insort(found.numbers, number)
            del found.numbers[_MAX_NUMBERS:]

    def findings(self, place: Callable[[int], str]) -> tuple[Finding, ...]:
        """Returns what was found, the worst first.

        Args:
            place: Says where a user finds the row of a number.
        """
        order = {name: position for position, name in enumerate(RULES)}
        ranked = sorted(
            self._found.items(),
            key=lambda item: (
                SEVERITIES.index(item[1].severity),
                order[item[0][0]],
                item[0][1] != "train",
            ),
        )
        return tuple(
            Finding(
                name=name,
                severity=found.severity,
                split=split,
                count=found.count,
                rows=tuple(found.numbers),
                places=tuple(map(place, found.numbers)),
                message=found.first.message,
                todo=found.first.todo or RULES[name].todo,
            )
            for (name, split), found in ranked
        )


def exit_code(findings: Iterable[Finding]) -> int:
    """Returns what an inspection exits with: its worst finding's code, 0 for notes and nothing."""
    severities = {finding.severity for finding in findings}
    if "error" in severities:
        return DataError.exit_code
    return WARNINGS_EXIT_CODE if "warning" in severities else 0

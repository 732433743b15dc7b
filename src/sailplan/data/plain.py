"""The formats for models without a chat template: `alpaca` and `text`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sailplan.data.prompts import Piece, as_text, parse
from sailplan.data.sample import ImageReference, Sample, Segment
from sailplan.errors import DataError, RunFileError

# The wording of tloen/alpaca-lora, templates/alpaca.json and templates/alpaca_short.json: models
# trained with it elsewhere must meet the same prompt here, to the letter.
_INSTRUCTION, _INPUT, _RESPONSE = (
    "### Instruction:\n{instruction}\n\n",
    "### Input:\n{input}\n\n",
    "### Response:\n",
)
PROMPT_TEMPLATES: dict[str, dict[str, str]] = {
    "alpaca": {
        "prompt_input": "Below is an instruction that describes a task, paired with an input that "
        "provides further context. Write a response that appropriately completes the request.\n\n"
        + _INSTRUCTION
        + _INPUT
        + _RESPONSE,
        "prompt_no_input": "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n" + _INSTRUCTION + _RESPONSE,
    },
    "alpaca_short": {
        "prompt_input": _INSTRUCTION + _INPUT + _RESPONSE,
        "prompt_no_input": _INSTRUCTION + _RESPONSE,
    },
}
"""The built-in prompt templates of `alpaca_template`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alpaca:
    """`instruction`, `input` and `output` in a prompt template; the output is trained."""

    name: ClassVar[str] = "alpaca"
    with_input: tuple[Piece, ...]
    """The prompt of rows that have an input."""
    without_input: tuple[Piece, ...]
    """The prompt of rows that have none."""

    @property
    def image_fields(self) -> list[str]:
        """No columns: the format has no images."""
        return []

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Returns the row as a prompt that is not trained and an output that is.

        Raises:
            DataError: The instruction or the output is empty.
        """
        pieces = self.with_input if row.get("input") else self.without_input
        prompt = "".join(as_text(row, p.text) if p.is_field else p.text for p in pieces)
        output = as_text(row, "output", kind="empty-answer")
        if not output:
            raise DataError(
                "column 'output' is empty",
                todo="drop the row or fill the column",
                kind="empty-answer",
            )
        segments = [Segment(text=prompt, trained=False), Segment(text=output, trained=True)]
        return Sample(messages=[], segments=segments, images=[])

    def images(self, row: Mapping[str, Any]) -> list[ImageReference]:  # noqa: ARG002  as Format
        """Returns no images."""
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Running text in one column, all of it trained."""

    name: ClassVar[str] = "text"
    column: str
    """The column of text."""

    @property
    def image_fields(self) -> list[str]:
        """No columns: the format has no images."""
        return []

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Returns the row as one trained segment.

        Raises:
            DataError: The text is empty.
        """
        text = as_text(row, self.column, kind="empty-answer")
        if not text:
            raise DataError(
                f"column {self.column!r} is empty", todo="drop the row", kind="empty-answer"
            )
        return Sample(messages=[], segments=[Segment(text=text, trained=True)], images=[])

    def images(self, row: Mapping[str, Any]) -> list[ImageReference]:  # noqa: ARG002  as Format
        """Returns no images."""
        return []


def alpaca(template: str) -> Alpaca:
    """Returns the format with a built-in prompt template, or one from a JSON file.

    Raises:
        RunFileError: There is no such template or file, or it lacks a prompt.
    """
    texts = PROMPT_TEMPLATES.get(template) or _read_template(template)
    option = f"alpaca_template {template!r}"
    prompts = {}
    for key, fields in (
        ("prompt_input", ("instruction", "input")),
        ("prompt_no_input", ("instruction",)),
    ):
        if not isinstance(texts.get(key), str):
            raise RunFileError(
                f"{option} has no text {key}", allowed="prompt_input, prompt_no_input"
            )
        prompts[key] = parse(texts[key], option=f"{option}, {key}", columns=fields)
    return Alpaca(with_input=prompts["prompt_input"], without_input=prompts["prompt_no_input"])


def _read_template(template: str) -> dict[str, Any]:
    known = f"{', '.join(PROMPT_TEMPLATES)}, or a JSON file"
    path = Path(template).expanduser()
    if not path.is_file():
        raise RunFileError(f"no alpaca_template {template!r}", allowed=known)
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFileError(f"alpaca_template {template!r} is not JSON: {error}") from error
    if not isinstance(texts, dict):
        raise RunFileError(f"alpaca_template {template!r} is not a JSON object", allowed=known)
    return texts

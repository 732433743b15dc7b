"""Chat templates from elsewhere: sailplan's own by name, a file's, another model's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.errors import ModelError
from sailplan.files import chat_templates
from sailplan.model.families import MEDIA_TOKEN, tokenizer_of
from sailplan.model.folder import check_path, explain
from sailplan.model.source import source_options

if TYPE_CHECKING:
    from sailplan.run.config import Run

DEFAULT = "vicuna"
"""The template of models that have none; see docs/decisions."""

_TOKENS = {"chatml": ("<|im_start|>", "<|im_end|>")}
"""The tokens that a built-in template needs; the last of them ends a turn."""

_FRAMED = {"<|image_pad|>": ("<|vision_start|>", "<|vision_end|>")}
"""Image tokens that stand between two others (Qwen-VL, whose positions are counted from them)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A chat template, and what it needs of the tokenizer."""

    text: str
    """The Jinja text."""
    tokens: tuple[str, ...] = ()
    """Special tokens that it is made of and the tokenizer lacks."""
    eos_token: str | None = None
    """The token that ends its turns; None where that is the tokenizer's own eos."""


def built_in(name: str, processor: Any) -> Template:
    """Returns one of sailplan's templates, with the image token of the processor."""
    tokenizer = tokenizer_of(processor)
    vocabulary, image = tokenizer.get_vocab(), getattr(processor, "image_token", None) or ""
    before, behind = _FRAMED.get(image, ("", ""))
    if before in vocabulary and behind in vocabulary:
        image = before + image + behind
    text = f"{{%- set image_token = {json.dumps(image)} -%}}\n" if image else ""
    needed = _TOKENS.get(name, ())
    return Template(
        text=text + chat_templates()[name].read_text(encoding="utf-8"),
        tokens=tuple(token for token in needed if token not in vocabulary),
        eos_token=needed[-1] if needed else None,
    )


def written(run: Run, processor: Any) -> Template | None:
    """Returns the template that `chat_template_path` names, None where it is not written.

    Raises:
        ModelError: There is no such template, or it needs image tokens that the model lacks.
    """
    source = run.get("chat_template_path")
    if not source:
        return None
    if source in chat_templates():
        return built_in(source, processor)
    if source.endswith((".jinja", ".j2")):
        try:
            return Template(text=Path(source).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelError(
                f"chat_template_path {source} cannot be read ({error.strerror})",
                allowed=f"{', '.join(chat_templates())}, a .jinja file, or a model whose template "
                "to take",
            ) from None
    return _of_model(run, source, processor)


def _of_model(run: Run, source: str, processor: Any) -> Template:
    """Returns another model's template, as TRL's `clone_chat_template` takes it."""
    from transformers import AutoTokenizer

    check_path(source)
    try:
        revision = {"revision": run.get("chat_template_revision")}
        other = AutoTokenizer.from_pretrained(source, **source_options(run) | revision)
    except Exception as error:
        raise explain(error, source, "chat template") from error
    text = other.chat_template
    if not isinstance(text, str) or not text:
        raise ModelError(
            f"the chat template of {source} is missing",
            todo=f"name a model that has one, a .jinja file, or {' or '.join(chat_templates())}",
        )
    tokenizer = tokenizer_of(processor)
    missing = sorted(
        token
        for token in other.get_added_vocab().keys() - tokenizer.get_vocab().keys()
        if token in text
    )
    media = [token for token in missing if MEDIA_TOKEN.search(token)]
    if media and processor is not tokenizer:
        raise ModelError(
            f"the chat template of {source} needs image tokens that the model lacks ({media[0]})",
            todo="write a .jinja file that uses the model's own tokens",
        )
    return Template(
        text=text,
        tokens=tuple(token for token in missing if token not in media),
        eos_token=other.eos_token if other.eos_token and other.eos_token in text else None,
    )

"""Renders conversations with the model's own chat template, the same text every day."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from sailplan.data.sample import Message, Part
from sailplan.errors import DataError, ModelError
from sailplan.model.families import tokenizer_of

PINNED_DATE = date(2024, 7, 26)
"""What templates that print today's date (Llama 3.2) print in training. Tokens that change from day
to day could neither be cached nor compared; this is the date that they fall back to themselves."""

_PROBE = "the quick brown fox"
_PRINTED_PART = re.compile(r"""['"]type['"]:""")
_DATE_FIELDS = ("%d", "%b", "%Y", "%m", "%B", "%H", "%M", "%S", "%y")


def _pin_date(template: str) -> str:
    """Defines `strftime_now` in front of the template: data handed in could not be a function."""
    if "strftime_now" not in template:
        return template
    filters = "".join(
        f"|replace('{field}','{PINNED_DATE.strftime(field)}')" for field in _DATE_FIELDS
    )
    return (
        f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro +%}}{template}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """A model's chat template, and what it takes to render our messages with it."""

    source: str
    """The Jinja text."""
    marked: str | None
    """A template with `{% generation %}` around what the assistant says: the model's own, or TRL's
    training version of it."""
    special_tokens: Mapping[str, Any]
    """`bos_token` and the like, as templates know them."""
    image_token: str
    """Stands for an image where the template takes plain strings."""
    string_roles: frozenset[str] = frozenset()
    """Roles whose content this template takes as a string; parts of it would be printed as code."""

    @classmethod
    def of(cls, processor: Any) -> ChatTemplate:
        """Reads the template of a processor or tokenizer.

        Raises:
            ModelError: It has none.
        """
        tokenizer = tokenizer_of(processor)
        owner = processor if getattr(processor, "chat_template", None) else tokenizer
        source = owner.chat_template
        if isinstance(source, Mapping):
            source = source.get("default")
        if not source:
            raise ModelError(
                "the model has no chat template",
                todo="use an instruction-tuned model, set chat_template_path, or use a plain-text "
                "dataset_format (alpaca, text)",
            )
        bare = cls(
            source=_pin_date(source),
            marked=None,
            special_tokens=tokenizer.special_tokens_map,
            image_token=getattr(processor, "image_token", None) or "",
        )
        marked = source if has_generation_markers(source) else _training_template(owner)
        roles = frozenset(
            role for role in ("system", "user", "assistant", "tool") if bare._wants_string(role)
        )
        return replace(bare, marked=marked and _pin_date(marked), string_roles=roles)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Returns the conversation as text, image placeholders not yet expanded.

        Raises:
            DataError: The template refuses the conversation.
        """
        try:
            return self._render(self.source, messages, add_generation_prompt=add_generation_prompt)[
                0
            ]
        except (TemplateError, TypeError) as error:
            raise DataError(
                f"the chat template refuses this conversation: {error}", kind="template-refuses"
            ) from error

    def render_marked(
        self, messages: Sequence[Message]
    ) -> tuple[str, list[tuple[int, int]]] | None:
        """Returns the text and the character spans that generation markers enclose, if it has any.

        None also where TRL's training version of the template would say something else than the
        template itself, as for reasoning models whose earlier turns lose their thoughts.
        """
        if self.marked is None:
            return None
        try:
            text, spans = self._render(self.marked, messages, with_spans=True)
        except (TemplateError, TypeError):
            return None
        if self.marked != self.source and text != self.render(messages):
            return None
        return text, spans

    def _check_tools(self, messages: Sequence[Message]) -> None:
        """Refuses what this template would leave out without a word."""
        for message in messages:
            for key in ("tools", "tool_calls"):
                if message.get(key) and key not in self.source:
                    raise DataError(
                        f"the chat template shows no {key}, which the row has",
                        todo="train a model whose template does, or leave such rows out",
                        kind="template-refuses",
                    )

    def _render(
        self,
        template: str,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        with_spans: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        self._check_tools(messages)
        texts, spans = render_jinja_template(
            conversations=[[self._plain(message) for message in messages]],
            tools=messages[0].get("tools") if messages else None,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=with_spans,
            **self.special_tokens,
        )
        return texts[0], [(start, end) for start, end in spans[0]] if with_spans else []

    def _plain(self, message: Message) -> dict[str, Any]:
        content: Any = message["content"]
        if message["role"] in self.string_roles:
            content = "".join(
                part["text"] if part["type"] == "text" else self.image_token for part in content
            )
        elif message.get("tool_calls") and not content:
            content = ""  # as OpenAI writes it; templates test it as they test a text
        plain = {key: value for key, value in message.items() if key not in ("trained", "tools")}
        return {**plain, "content": content}

    def _wants_string(self, role: str) -> bool:
        """Tries a message of parts: a template made for strings fails, drops it or prints code."""
        part = Part(type="text", text=_PROBE)
        probe = Message(role=role, content=[part])  # type: ignore[typeddict-item]  # one of Role
        user = Message(role="user", content=[part])
        around = {"system": [probe, user], "assistant": [user, probe], "tool": [user, probe]}
        messages = around.get(role, [probe])

        def shown(template: ChatTemplate) -> bool:
            try:
                text = template.render(messages)
            except DataError:
                return False
            return text.count(_PROBE) >= len(messages) and not _PRINTED_PART.search(text)

        others = frozenset({"system", "user", "assistant", "tool"} - {role})
        parts_work = any(
            shown(replace(self, string_roles=roles)) for roles in (frozenset(), others)
        )
        return not parts_work and any(
            shown(replace(self, string_roles=roles))
            for roles in (frozenset({role}), others | {role})
        )


def _training_template(owner: Any) -> str | None:
    try:
        marked: str | None = get_training_chat_template(owner)
    except Exception:  # TRL renders probes to find out: whatever they raise, it has none for us
        return None
    return marked

"""The chat template of models that have none, where the data are chats."""

from __future__ import annotations

from typing import Any

from sailplan.data.formats import Format
from sailplan.data.sources import Rows
from sailplan.errors import DataError
from sailplan.model.families import Family, tokenizer_of
from sailplan.model.templates import DEFAULT, built_in


def is_chat(format: Format, rows: Rows) -> bool:
    """Tells whether the rows are conversations, by the first of them."""
    try:
        return bool(format.sample(next(iter(rows.train)))["messages"])
    except DataError:  # told with its row number when it is encoded
        return False


def complete_template(processor: Any, family: Family, *, chat: bool) -> list[str]:
    """Gives a processor the family's own template where it has none and the data are chats.

    Most families have none of their own, and get the default.

    It is saved with the processor, so that who loads the tuned model asks it as it was trained.

    Args:
        processor: The processor or tokenizer, changed in place.
        family: The model's family.
        chat: Whether the data are chats.

    Returns:
        What to tell of it.
    """
    has_one = getattr(processor, "chat_template", None) or tokenizer_of(processor).chat_template
    if has_one or not chat:
        return []
    name = family.own_template or DEFAULT
    processor.chat_template = built_in(name, processor).text
    return [
        f"chat template: {name}, since the model has none; it is saved with the model "
        "(chat_template_path takes another)"
    ]

"""The tokens that begin, end and pad a text: what the run writes of them, and what cannot be.

Old checkpoints have them wrong: LLaMA's first conversions name empty strings, and ids in the config
that mean other tokens. A model tuned so never learns to stop, and no loss shows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from sailplan.run.config import Run

FIELDS = ("eos_token", "bos_token", "pad_token")
"""The fields of a run that name a special token."""

OLD_LLAMA = "LLaMATokenizer"
"""What the first conversions of LLaMA call their tokenizer; transformers has no class of the name,
and its stand-in leaves out the space in front of a text and the bos token."""

_CONFIG = "tokenizer_config.json"

_USUAL = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "</s>"}
"""What LLaMA's tokenizers have."""


def read_settings(name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer's settings as they are saved, empty where there are none to read."""
    from transformers.utils import cached_file

    try:
        path = cached_file(name, _CONFIG, revision=source["revision"])
        settings = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def corrections(run: Run, name: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the special tokens to load a tokenizer with, in place of empty ones.

    Args:
        run: The run.
        name: The tokenizer's folder or hub name.
        settings: What `read_settings` gave.

    Raises:
        ModelError: An eos, bos or pad token is empty, and the run names no other.
    """
    empty = [field for field in (*FIELDS, "unk_token") if _content(settings.get(field)) == ""]
    wrong = [item for item in empty if item in FIELDS and not run.get(item)]
    if wrong:
        raise ModelError(
            f"{' and '.join(wrong)} in {_CONFIG} of {name} {_are(wrong)} empty",
            todo=f"write {_fixes(wrong)} (what LLaMA's tokenizers have; others may differ)",
        )
    written = {**{field: run.get(field) for field in FIELDS}, "unk_token": "<unk>"}
    return {field: written[field] for field in empty if written[field]}


def apply(run: Run, tokenizer: Any, name: str) -> None:
    """Sets the run's special tokens, and eos as pad where there is no pad token.

    Nothing is lost by that: labels are masked by position and never by token, so that eos is
    trained wherever the assistant ends a turn.

    Raises:
        ModelError: A written token is not in the vocabulary, or there is no eos token.
    """
    vocabulary = tokenizer.get_vocab()
    for field in FIELDS:
        token = run.get(field)
        if token is not None and token not in vocabulary:
            raise ModelError(
                f"{field} {token!r} is not in the vocabulary of {name}",
                todo="write a token that it has, or name it in added_tokens too",
            )
        if token is not None:
            setattr(tokenizer, field, token)
    eos = tokenizer.eos_token
    if not eos or eos not in vocabulary or _is_unknown(tokenizer, eos):
        raise ModelError(
            f"the tokenizer of {name} has {f'{eos!r} for' if eos else 'no'} eos_token, so nothing "
            "would end an answer",
            todo="write eos_token: and the token that ends a text",
        )
    if not tokenizer.pad_token:
        tokenizer.pad_token = eos


def check_unknown(run: Run, tokenizer: Any, name: str) -> None:
    """Refuses to train with the token for unknown words at the beginning of texts, or as padding.

    Raises:
        ModelError: The tokenizer has it so, and the run does not say that it is meant.
    """
    for field, usual in (("bos_token", _USUAL["bos_token"]), ("pad_token", tokenizer.eos_token)):
        token = getattr(tokenizer, field)
        if _is_unknown(tokenizer, token) and not run.get(field):
            raise ModelError(
                f"the tokenizer of {name} has {token!r} for {field}, the one for unknown words",
                todo=f"write {field}: {usual}, or {field}: {token} if that is meant",
            )


def check_ids(run: Run, tokenizer: Any, config: PretrainedConfig, name: str) -> None:
    """Refuses ids in config.json that are those of other special tokens of the tokenizer.

    Where they are otherwise different, the tokenizer is right: a tuned model may well end its
    answers with another token than its base ends texts.

    Raises:
        ModelError: The eos or bos id means another special token, and the run does not say which
            token it is.
    """
    text = config.get_text_config()
    known = {
        field: getattr(tokenizer, f"{field}_id")
        for field in ("eos_token", "bos_token", "unk_token")
    }
    for field in ("eos_token", "bos_token"):
        written = getattr(text, f"{field}_id", None)
        ids = written if isinstance(written, list) else [written]
        own = known[field]
        others = {value: other for other, value in known.items() if value not in (None, own)}
        wrong = [value for value in ids if value in others]
        if own is None or own in ids or not wrong or run.get(field):
            continue
        token = getattr(tokenizer, field)
        raise ModelError(
            f"config.json of {name} has {field}_id {wrong[0]}, which is the tokenizer's "
            f"{others[wrong[0]]}; the tokenizer's {field} is {token!r} with id {own}",
            todo=f"write {field}: {token} if that is right",
        )


def _is_unknown(tokenizer: Any, token: str | None) -> bool:
    """Whether a token is that of unknown words; that GPT-2 has one for all is no mistake."""
    return bool(token) and token == tokenizer.unk_token and "unk" in str(token).lower()


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _are(names: list[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _fixes(fields: list[str]) -> str:
    return " and ".join(f"{field}: {_USUAL[field]}" for field in fields)

"""Base models that cannot be trained as they are: told in one line, before a weight is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.support import assert_one_line, chat, files_under, write_rows
from tests.support.launch import Entry

MISTAKES: dict[str, tuple[str, dict[str, object], dict[str, object], int, str]] = {
    # a file of the model, what is changed in it, flags, exit code, message
    "empty end of text": (
        "tokenizer_config.json",
        {"eos_token": ""},
        {},
        3,
        "eos_token in tokenizer_config.json of ",
    ),
    "end of text that is unknown": (
        "tokenizer_config.json",
        {"eos_token": "<unk>", "unk_token": "<unk>"},
        {},
        3,
        "'<unk>' for eos_token, so nothing would end an answer; write eos_token: ",
    ),
    "template that is nowhere": (
        "config.json",
        {},
        {"chat_template_path": "none.jinja"},
        3,
        "chat_template_path none.jinja cannot be read (No such file or directory); allowed: chatml",
    ),
    "code of the model's own": (
        "config.json",
        {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}},
        {},
        3,
        "write trust_remote_code: true if you trust the code",
    ),
    "end of text that no vocabulary has": (
        "config.json",
        {},
        {"eos_token": "</none>"},
        3,
        "eos_token '</none>' is not in the vocabulary",
    ),
    "end of text that is another token": (
        "config.json",
        {"eos_token_id": 0},
        {},
        3,
        " has eos_token_id 0, which is the tokenizer's bos_token",
    ),
    "token of none": (
        "config.json",
        {},
        {"added_tokens": ["<a>", "<a>"]},
        2,
        "added_tokens holds '<a>' twice",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_base_model_that_is_wrong_is_one_line(
    here: Path,
    entry: Entry,
    flags_of: Callable[[dict], list[str]],
    tiny_model: Callable[[str], Path],
    case: str,
) -> None:
    name, changes, values, code, message = MISTAKES[case]
    shutil.copytree(tiny_model("llama"), here / "base")
    content = json.loads((here / "base" / name).read_text())
    (here / "base" / name).write_text(json.dumps({**content, **changes}))
    write_rows(here, [chat()] * 2)
    before = files_under(here)
    end = entry(flags_of({"model_name_or_path": here / "base", **values}))
    assert_one_line(end, code, message)
    assert files_under(here) == before

"""The training script's `--help`: every field, by the class that owns it."""

from __future__ import annotations

import textwrap

from sailplan.run.fields import Field, field_table

_HEAD = """\
usage: python -m sailplan.train.sft_vlm [--config RUN.yaml] [--FIELD VALUE ...]

Flags win over the run file. A bool may stand alone (--bf16) or be denied (--no_bf16), a list takes
several words, a mapping takes JSON. Fields of the installed trl and transformers:
"""


def script_help() -> str:
    """Returns the help text: sailplan's own fields explained, the libraries' by name."""
    owners: dict[str, list[Field]] = {}
    for field in field_table().values():
        owners.setdefault(field.owner, []).append(field)
    own = owners.pop("SailplanArguments")
    parts = [_HEAD]
    for owner, fields in owners.items():
        names = textwrap.fill(
            " ".join(f"--{field.name}" for field in fields),
            width=100,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
        parts.append(f"{owner}:\n{names}\n")
    parts.append("sailplan:")
    for field in own:
        parts.append(f"  --{field.name}  ({field.type}; default {field.default})")
        parts.append(textwrap.indent(textwrap.fill(field.help, width=92), " " * 6))
    return "\n".join(parts)

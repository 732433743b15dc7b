"""Writes docs/models.md: `python -m tests.matrix.page [--plan]`.

Its tables are of the matrix's results, of the lineup and of what plans say. Planning all public
models takes minutes: without --plan the memory is taken from the page as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sailplan.cli.families_table import METHODS, STRATEGIES, markdown_table
from sailplan.files import folder
from sailplan.model.lineup import LINEUP, Member
from sailplan.model.tested import Results, results
from sailplan.run.config import Run
from tests.matrix import planned

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
HEAD = """# Models

Families of models that are tried, what works with each, and what their public models take. A family
that is not here works as well where transformers has it and it is built as usual.

## What works

A tiny model of each family is trained by each method, killed, resumed, merged, and read again by
transformers alone; `sailplan families` prints the same table. *8-bit* is LoRA on 8-bit weights.
*Packed*: [samples share a row](packing.md). `sailplan train NAME` starts a run file.

"""
BELOW = """
## How to read the sections

Image tokens are counted from the settings that are published with a model, for a picture that is
alone in its sample, and without the few that frame it or end its rows. Memory is **planned, not
measured**: of one GPU, as `sailplan plan` says it where there are no data (rows of 2048 tokens
with a picture of 1024×768 among them, more where the picture alone takes about as many), one row
at a time, with gradient checkpointing: QLoRA on an L4 of 24 GB, LoRA on an H100 of 80 GB, full
fine-tuning on 8 of them with ZeRO-3. *Tight* leaves less than 12 % free. What does not fit may
fit with LoRA on 8 GPUs: every run file fits the hardware of its name by its plan. What a run of
yours takes, `sailplan plan` says.
"""
_METHODS = ("QLoRA, 24 GB", "LoRA, 80 GB", "full, 8 × 80 GB")

Memory = Callable[[str], list[str]]
"""Of each column, by the model's name."""


def page(found: Results | None, memory: Memory) -> str:
    """Returns the text of the page.

    Args:
        found: Of the matrix; None where there are no results.
        memory: Gives what a model takes.
    """
    sections = (section(name, found, memory) for name in LINEUP)
    return HEAD + markdown_table(found) + BELOW + "".join(sections)


def section(name: str, found: Results | None, memory: Memory) -> str:
    """Returns the text of one family."""
    member = LINEUP[name]
    parts = [f"## {member.title}", f"On the hub: `{member.hub.replace(', ', '`, `')}`."]
    if found:
        parts.append(methods(name, found))
    parts.append(run_files(name))
    if planned.known(member.models[0]).processor:
        parts.append(pictures(member))
    rows = [(f"`{model}`", *memory(model)) for model in member.models]
    parts.append(table(("model", *_METHODS), rows))
    told = [*member.quirks, *quirks(member)]
    if told:
        parts.append("\n".join(f"- {line}" for line in told))
    return "\n" + "\n\n".join(parts) + "\n"


def methods(name: str, found: Results) -> str:
    """Returns the table of what was tried with a family."""
    cells = {(c.method, c.strategy): c for c in found.cells if c.family == name}
    columns = {"single": "one process"} | {key: f"{title} × 2" for key, title in STRATEGIES.items()}
    tried = [key for key in columns if any(strategy == key for _, strategy in cells)]
    rows = []
    for method, title in METHODS.items():
        told = [cells.get((method, key)) for key in tried]
        words = ["" if c is None else "works" if c.works else f"refused: {c.words}" for c in told]
        rows.append((title, *words))
    return table(("method", *(columns[key] for key in tried)), rows)


def run_files(name: str) -> str:
    """Returns the run files of a family in a sentence, the one to start from first."""
    start, found = LINEUP[name].start, []
    for path in sorted(folder("launch").glob("*.yaml")):
        model = Run.from_file(path).get("model_name_or_path")
        if planned.member_of(model) == name and path.stem != start:
            found.append(f"`{path.stem}`")
    more = f" There {'are' if len(found) > 1 else 'is'} {', '.join(found)} too." if found else ""
    return f"Start from `{start}`.{more}"


def pictures(member: Member) -> str:
    """Returns the table of image tokens."""
    head = [f"{width}×{height}" for width, height in planned.PICTURES]
    groups = planned.by_processor(member.models)
    rows = []
    for names in groups:
        who = "all of them" if len(groups) == 1 else ", ".join(f"`{name}`" for name in names)
        rows.append((who, *map(str, planned.image_tokens(names[0]))))
    return table(("image tokens of", *head), rows)


def quirks(member: Member) -> Iterator[str]:
    """Yields what config and processor say of a family, in sentences."""
    model = member.models[0]
    family = planned.family(model)
    if family.cross_attention:
        yield "Pictures are seen through cross-attention: each is one token of the text."
    elif family.is_vision and not planned.takes_max_pixels(model):
        yield "Every picture is resized to one size: `max_pixels` is refused."
    elif family.is_vision:
        yield "`max_pixels` bounds the tokens of a picture."
    if family.packing_obstacle:
        yield f"Samples are padded, not packed: {family.packing_obstacle}."
    elif family.sliding_window_tokens:
        window = f"{family.sliding_window_tokens:,}"
        yield f"Some layers see {window} tokens back: samples are packed with flash-attn alone."
    if family.min_image_tokens > 1:
        yield f"A picture of fewer than {family.min_image_tokens} tokens is refused."
    if family.opened_by_processor:
        yield "Its processor puts the beginning of a text there itself."


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in r)} |" for r in lines
    )


def written(text: str) -> Memory:
    """Returns the memory as a page has it; of a model that is not there, what a plan says."""
    found: dict[str, list[str]] = {}
    columns = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "model":
            columns = cells[1:]
        elif columns == list(_METHODS) and line.startswith("| `"):
            found[cells[0].strip("`")] = cells[1:]
    return lambda model: found.get(model) or planned.memory(model)


def main() -> None:
    """Writes the page."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    memory = planned.memory if "--plan" in sys.argv[1:] else written(text)
    PAGE.write_text(page(results(), memory), encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()

"""`sailplan families`: which families of models are tried, and what works with each."""

from __future__ import annotations

from typing import Annotated

import typer


def families(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table in Markdown.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Lists the families of models: by which methods each trains, and the run file to start from.

    Whether a method works is what training a tiny model of the family has shown. A family that is
    not listed may work as well: `sailplan doctor --model NAME` tries it.
    """
    from sailplan.cli.families_table import as_dict, markdown_table, print_families
    from sailplan.model.tested import results

    found = results()
    if json:
        from json import dumps

        print(dumps(as_dict(found), indent=2))
    elif markdown:
        print(markdown_table(found), end="")
    else:
        print_families(found)

"""An inspection as JSON, for programs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sailplan.inspect.findings import exit_code

if TYPE_CHECKING:
    from sailplan.inspect.inspection import Inspection


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Returns all of an inspection but the pixels, as JSON has it."""
    padding = inspection.padding
    return {
        "model": inspection.model,
        "data": inspection.data,
        "format": inspection.format,
        "limit_tokens": inspection.limit_tokens,
        "notes": list(inspection.notes),
        "splits": [dataclasses.asdict(split) for split in inspection.splits],
        "padding": padding
        and {
            **dataclasses.asdict(padding),
            "padding_tokens": padding.padding_tokens,
            "words": padding.words,
        },
        "findings": [
            {**dataclasses.asdict(finding), "meaning": finding.meaning}
            for finding in inspection.findings
        ],
        "samples": [
            {
                "row": sample.number,
                "place": sample.place,
                "num_tokens": sample.num_tokens,
                "images": [
                    {"name": image.name, "size": list(image.image.size)} for image in sample.images
                ],
                "tokens": [dataclasses.asdict(piece) for piece in sample.pieces],
            }
            for sample in inspection.samples
        ],
        "seconds": inspection.seconds,
        "rows_per_s": inspection.rows_per_s,
        "decoded": inspection.decoded,
        "exit_code": exit_code(inspection.findings),
    }

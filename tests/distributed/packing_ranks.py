"""What one rank does in `test_packing`: the entry script, watched for the images it is given.

`OUT/imagesN.json` says for each micro batch of rank N how many images its samples have.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sailplan.data import collator


class Watched(collator.Collator):
    """The collator, which writes down what it is given."""

    images: list[int] = []  # noqa: RUF012  of this process

    def __call__(self, rows: Sequence[Any]) -> Any:
        self.images.append(sum(len(row["images"]) for row in rows))
        return super().__call__(rows)


def main() -> None:
    from sailplan.run.config import Run
    from sailplan.train.errors import leave
    from sailplan.train.sft_vlm import train

    run = Run.from_flags(sys.argv[1:])
    collator.Collator = Watched  # type: ignore[misc]
    train(run)
    rank = os.environ.get("RANK", "0")
    out = Path(str(run.get("output_dir"))) / f"images{rank}.json"
    out.write_text(json.dumps(Watched.images))
    leave()


if __name__ == "__main__":
    main()

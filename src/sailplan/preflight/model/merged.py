"""Merges a trial's adapter and compares: `python -m sailplan.preflight.model.merged FOLDER`.

The peer is PEFT, which puts the adapter over the copy by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sailplan.preflight import children
from sailplan.preflight.model.trial import ADAPTER, COPY, MERGED

_NUM_TOKENS = 24


def main(folder: Path) -> None:
    """Answers how far the logits of the merged model are off, and the largest of them."""
    import torch
    from peft import PeftModel

    from sailplan.merge.job import prepare
    from sailplan.merge.output import carry_out
    from sailplan.model.load import classes
    from sailplan.model.source import load_config
    from sailplan.run.config import Run

    job = prepare(folder / ADAPTER)
    carry_out(job, folder / MERGED)
    config = load_config(Run(explicit={"model_name_or_path": str(folder / COPY)}))
    auto_class, _ = classes(config, str(folder / COPY))
    base = auto_class.from_pretrained(folder / COPY)
    merged = auto_class.from_pretrained(folder / MERGED)
    tuned = PeftModel.from_pretrained(base, folder / ADAPTER)
    size = config.get_text_config().vocab_size
    # Text alone: image tokens without their images would be refused.
    ids = torch.arange(size // 3, size // 3 + _NUM_TOKENS)[None]
    with torch.no_grad():
        expected = tuned.eval()(input_ids=ids).logits
        found = merged.eval()(input_ids=ids).logits
    children.answer(
        off=(found - expected).abs().max().item(),
        largest=expected.abs().max().item(),
        tensors=len(job.plans),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Small checkpoints with a manifest, as a run of two ranks leaves them."""

from __future__ import annotations

from pathlib import Path

from sailplan.checkpoint import manifest
from sailplan.checkpoint.manifest import Manifest, take_stock

OPTIMIZER = "global_step{}/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"


def save_files(folder: Path, step: int) -> None:
    """Writes the files of a checkpoint; their content is that of no other step."""
    contents = {
        "model.safetensors": bytes([step]) * 4096,
        "trainer_state.json": b"{}",
        "empty": b"",
        OPTIMIZER.format(step).replace("rank_1", "rank_0"): b"first" * step,
        OPTIMIZER.format(step): b"second" * step,
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def manifest_of(folder: Path, step: int, *, run: str = "run", first: bool = False) -> Manifest:
    """Returns the manifest of the files that are in a folder."""
    return Manifest(
        step=step,
        world_size=2,
        global_batch=8,
        strategy="zero2",
        run=run,
        run_file="resolved",
        versions={"torch": "2.11"},
        data={"epoch": 0, "rows": [3, 1, 2]},
        first=first,
        saved_at=1.5,
        files=take_stock(folder),
    )


def save(output: Path, step: int, *, run: str = "run", first: bool = False) -> Path:
    """Writes a whole checkpoint of a step; returns its folder."""
    folder = output / f"checkpoint-{step}"
    save_files(folder, step)
    manifest.write(folder, manifest_of(folder, step, run=run, first=first))
    return folder

"""Which checkpoints of a run are whole, which is the last of them, and which old ones go.

A checkpoint counts where its manifest is there and every file is what it says. What is in doubt is
never trained on and never deleted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from sailplan.checkpoint.manifest import MANIFEST, Manifest, hash_files, inside, parse
from sailplan.errors import CheckpointError
from sailplan.progress import track_bytes

UNFINISHED = f"it has no {MANIFEST}: it was not finished"
_DELETING = ".deleting-"
_RANK = re.compile(r"(?:zero_pp_rank_|rng_state_|__)(\d+)[_.]")
"""The rank in the names that DeepSpeed, transformers and torch's distributed checkpoints give."""


def doubt(folder: Path, *, run: str | None) -> str | None:
    """Says why a checkpoint is not whole; None where every byte is as it was saved.

    Shows how far it is: 100 GB take minutes.

    Args:
        folder: The checkpoint.
        run: The hash of the run whose it should be; any run's where None.
    """
    found = _measured(folder, run)
    if isinstance(found, str):
        return found
    total = found.num_bytes
    with track_bytes(f"verifying {folder.name}", total=total) as told:
        try:
            records = hash_files(folder, found.files, told=told)
        except OSError as error:
            return f"{_within(folder, error)} cannot be read ({error.strerror})"
    for name, expected in sorted(found.files.items()):
        if records[name] != expected:
            return f"{name} has changed since it was saved (its checksum is another)"
    return None


def quick_doubt(folder: Path, *, run: str | None) -> str | None:
    """Says why a checkpoint is not whole as far as sizes tell; no file is read but its manifest.

    Args:
        folder: The checkpoint.
        run: The hash of the run whose it should be; any run's where None.
    """
    found = _measured(folder, run)
    return found if isinstance(found, str) else None


def quick_latest(checkpoints: Sequence[Path]) -> Path | None:
    """Returns the newest checkpoint of any run that is whole as far as sizes tell.

    Args:
        checkpoints: The checkpoints that are there, oldest first.
    """
    whole = (one for one in reversed(checkpoints) if quick_doubt(one, run=None) is None)
    return next(whole, None)


def _measured(folder: Path, run: str | None) -> Manifest | str:
    """Returns the manifest where all files have their sizes, else why there is a doubt."""
    try:
        manifest = parse((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return UNFINISHED
    except OSError as error:
        return f"its manifest cannot be read ({error.strerror})"
    except ValueError as error:
        return f"its manifest cannot be read ({error})"
    if run is not None and manifest.run != run:
        return "its manifest is another run's"
    for name, expected in sorted(manifest.files.items()):
        try:
            path = inside(folder, name)
            num_bytes = path.stat().st_size if path.is_file() else None
        except CheckpointError:
            return f"its manifest lists {name}, which leaves the folder"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if num_bytes is None:
            rank = _RANK.search(path.name)
            return f"{name} is missing" + (f": it is rank {rank[1]}'s part" if rank else "")
        if num_bytes != expected.num_bytes:
            return f"{name} has {num_bytes:,} bytes, the manifest says {expected.num_bytes:,}"
    return manifest


def _within(folder: Path, error: OSError) -> str:
    """Returns the path of the file that an error is about, under the folder where it can be."""
    path = Path(str(error.filename))
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def latest_whole(
    checkpoints: Sequence[Path], *, run: str | None, say: Callable[[str], None], aside: Path
) -> Path | None:
    """Returns the newest whole checkpoint; newer ones that are in doubt are set aside.

    Where none is whole all stay where they are, so that the run is not started anew by chance. The
    exception is a single one that was not finished: whoever was killed while saving for the first
    time has nothing to go on from, and begins again.

    Args:
        checkpoints: The checkpoints that are there, oldest first.
        run: The hash of the run whose they should be; any run's where None.
        say: Is told of every doubted checkpoint: why, where it lies now, what is taken instead.
        aside: The folder for those in doubt.

    Returns:
        The checkpoint; None where there was none, and the run begins.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
    """
    doubted: list[tuple[Path, str]] = []
    taken = None
    for folder in reversed(checkpoints):
        why = doubt(folder, run=run)
        if why is None:
            taken = folder
            break
        doubted.append((folder, why))
    if taken is None and doubted and [why for _, why in doubted] != [UNFINISHED]:
        newest, why = doubted[0]
        others = f"; nor is any of the {len(doubted) - 1} before it" if doubted[1:] else ""
        raise CheckpointError(
            f"{newest} is not whole: {why}{others}",
            todo="put it right, or start anew: another output_dir, or "
            "--resume_from_checkpoint false",
        )
    instead = f"{taken.name} is taken instead" if taken else "training starts from the beginning"
    for folder, why in doubted:
        now = set_aside(folder, aside)
        say(f"{folder.name} is in doubt: {why}; it lies in {now} now, {instead}")
    return taken


def set_aside(folder: Path, aside: Path) -> Path:
    """Moves a checkpoint to where nothing is trained on or deleted; returns where it lies now.

    Raises:
        OSError: It cannot be renamed.
    """
    aside.mkdir(parents=True, exist_ok=True)
    target, number = aside / folder.name, 1
    while target.exists():
        number += 1
        target = aside / f"{folder.name}.{number}"
    return folder.rename(target)


def rotate(checkpoints: Sequence[Path], *, keep: int | None, best: Path | None) -> list[Path]:
    """Deletes old checkpoints; to be called once the newest has its manifest.

    Never deleted are the newest whole one, the best one, any in doubt, and any of another run. One
    that was saved only to prove that saving works goes when a newer whole one is there.

    Args:
        checkpoints: The checkpoints that are there, oldest first.
        keep: How many stay, the best one and the newest among them; all where None or 0.
        best: The checkpoint of the best evaluation so far.

    Returns:
        What was deleted.

    Raises:
        OSError: One cannot be renamed.
    """
    for home in {folder.parent for folder in checkpoints}:
        for left in home.glob(f"{_DELETING}*"):
            shutil.rmtree(left, ignore_errors=True)
    found = [(folder, _measured(folder, None)) for folder in checkpoints]
    whole = [(folder, manifest) for folder, manifest in found if isinstance(manifest, Manifest)]
    ours = [(folder, manifest) for folder, manifest in whole if manifest.run == whole[-1][1].run]
    safe = {folder for folder, _ in ours[-1:]}
    safe |= {folder for folder, _ in ours if best and folder.resolve() == best.resolve()}
    going = [folder for folder, manifest in ours if manifest.first and folder not in safe]
    if keep:
        surplus = len(ours) - len(going) - max(keep, len(safe))
        old = [folder for folder, _ in ours if folder not in safe and folder not in going]
        going += old[: max(surplus, 0)]
    for folder in going:
        # A kill in the middle leaves something that nobody takes for a checkpoint.
        hidden = folder.rename(folder.with_name(_DELETING + folder.name))
        shutil.rmtree(hidden, ignore_errors=True)
    return going

"""Whether a run has nothing left to do."""

from __future__ import annotations

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.identity import changes
from sailplan.run.state import read_state

_LENGTH = ("num_train_epochs", "max_steps")
"""What says how long a run trains."""


def finished(run: Run) -> str | None:
    """Says that a run is finished, and what to do to train on; None where it is not.

    It is where its directory says so, and it is not asked for more steps now than then.

    Args:
        run: The run as it is asked for now.
    """
    directory = RunDirectory.of(run)
    if run.source is not None and run.source.absolute() == directory.train_file:
        return None  # of a launcher, which has asked already and written the run anew
    state = read_state(directory.state_file)
    if state is None or state.state != "finished" or run.get("resume_from_checkpoint"):
        return None
    try:
        before = Run.from_file(directory.run_file)
    except RunFileError:  # what claims the directory says so
        return None
    is_other = next(changes(before, run), None) is not None  # what claims the directory refuses it
    if is_other or any(before.get(name) != run.get(name) for name in _LENGTH):
        return None
    return (
        f"the run is finished: {state.step} of {state.max_steps} steps are done, and what they "
        f"made lies in {directory.path}; to train on, raise num_train_epochs or max_steps; to "
        "begin anew, choose another output_dir or --resume_from_checkpoint false"
    )

"""One tree of user errors: each says what we got, what is allowed, and what to do next.

Each class owns an exit code, so that scripts around sailplan can tell a wrong run file from a
broken image. Anything that is not a `SailplanError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class SailplanError(Exception):
    """A mistake that the user can put right.

    Args:
        got: What was found, in one clause.
        allowed: What would have been accepted.
        todo: What to do next.
    """

    exit_code = 1

    def __init__(self, got: str, *, allowed: str = "", todo: str = "") -> None:
        self.got, self.allowed, self.todo = got, allowed, todo
        parts = [got, f"allowed: {allowed}" if allowed else "", todo]
        super().__init__("; ".join(" ".join(part.split()) for part in parts if part))


class RunFileError(SailplanError):
    """The run file or a flag is wrong: an unknown key, a wrong type, values that contradict."""

    exit_code = 2


class ModelError(SailplanError):
    """The model is missing, unreadable, or cannot be trained as asked."""

    exit_code = 3


class DataError(SailplanError):
    """A data source, a row or an image is wrong.

    Args:
        got: What was found, in one clause.
        allowed: What would have been accepted.
        todo: What to do next.
        kind: The stable name under which `sailplan inspect` counts rows that are wrong so.
    """

    exit_code = 4

    def __init__(self, got: str, *, allowed: str = "", todo: str = "", kind: str = "") -> None:
        super().__init__(got, allowed=allowed, todo=todo)
        self.kind = kind


class HardwareError(SailplanError):
    """The machine lacks what the run needs: GPUs, memory, a compiler."""

    exit_code = 5


class LaunchError(SailplanError):
    """The processes could not be started: a taken port, a missing launcher."""

    exit_code = 6


class OutputError(SailplanError):
    """The output directory cannot be written, or holds another run."""

    exit_code = 7


class TrainingError(SailplanError):
    """Training started and was stopped because it could not go right."""

    exit_code = 8


class CheckpointError(SailplanError):
    """A checkpoint or an adapter is incomplete, corrupt, or not what it seems."""

    exit_code = 9


class HangError(SailplanError):
    """A rank made no progress for too long; the run goes on from its last whole checkpoint."""

    exit_code = 10


class SlurmError(SailplanError):
    """Slurm is not here, does not answer, or refuses a job."""

    exit_code = 11


class StoppedError(SailplanError):
    """Somebody asked the run to stop, and it has: it goes on when it is started again."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later

"""Turns what the hub's libraries raise into one line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from sailplan.errors import DataError, ModelError
from sailplan.hub.repository import Repository, is_offline


def explain(error: BaseException, repository: Repository) -> ModelError | DataError | None:
    """Returns the user's error where the hub, the network or the disk is the cause, else None.

    Args:
        error: What was raised; its causes count.
        repository: What was asked for.
    """
    from huggingface_hub import errors

    sign_in = "set HF_TOKEN, or run `hf auth login`"
    for cause in _causes(error):
        # `datasets` raises its own error from nothing, and only its text tells.
        if isinstance(cause, errors.GatedRepoError) or "a gated dataset on the" in str(cause):
            todo = f"ask for access at {repository.page}, then {sign_in}"
            return repository.error(
                f"{repository} is gated, and this token may not read it", todo=todo
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            got = f"{repository.name} has no revision {repository.revision!r} on the hub"
            return repository.error(got, todo=f"see {repository.page}")
        if isinstance(cause, errors.RepositoryNotFoundError):
            got = f"{repository} is no folder here, and there is none of that name on the hub"
            return repository.error(got, todo=f"check the name; if it is private, {sign_in}")
        if isinstance(cause, errors.HfHubHTTPError):
            got = f"{repository} could not be fetched: {_first_line(cause)}"
            return repository.error(got, todo="run it again; what has come is kept")
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            got = f"{repository} does not fit on the disk ({cause.strerror})"
            todo = "make room, or set HF_HOME to another disk; what has come is kept"
            return repository.error(got, todo=todo)
    unreachable = (errors.LocalEntryNotFoundError, ConnectionError)
    if any(isinstance(cause, unreachable) or _is_network(cause) for cause in _causes(error)):
        if is_offline():
            return missing(repository)
        return no_answer(repository)
    return None


def no_answer(repository: Repository) -> ModelError | DataError:
    """Returns the error for a hub that cannot be reached, or goes away meanwhile."""
    got = f"{repository} could not be fetched: the hub does not answer"
    return repository.error(got, todo="check the network, and run it again; what came is kept")


def missing(
    repository: Repository, *, what: str = "", run_file: object = "RUN"
) -> ModelError | DataError:
    """Returns the error for what is not here while the hub is switched off.

    Args:
        repository: What is asked for.
        what: The piece of it that is missing; all of it where not given.
        run_file: The run file, for the command that gets it.
    """
    got = f"{what} of {repository}" if what else str(repository)
    return repository.error(
        f"{got} is no folder here and not in the local cache, and the hub is switched off "
        "(HF_HUB_OFFLINE)",
        todo=f"get it where there is a network: sailplan fetch {run_file}",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, what it was raised from, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_network(error: BaseException) -> bool:
    """Says whether a connection failed; the hub's library has changed its HTTP client twice."""
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError) or module in (
        "httpx2",
        "httpx",
        "httpcore2",
        "requests",
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()

"""Slurm's own commands, called without a shell; what they refuse is a user's error in one line."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from sailplan.errors import SlurmError

TIMEOUT_S = 60.0
"""A controller that takes longer is taken for gone."""

_REFUSED = re.compile(r"^(?:\w+: )?error: ")
_JOB_ID = re.compile(r"(\d+)")


def slurm(
    *command: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Runs one of Slurm's commands and returns what it prints.

    Args:
        command: Its name and its arguments.
        environment: Its variables; this process's where not given.
        timeout_s: How long it may take.

    Raises:
        SlurmError: It is not here, fails, or takes too long.
    """
    return _run(command, environment, timeout_s).stdout


def _run(
    command: Sequence[str],
    environment: Mapping[str, str] | None,
    timeout_s: float,
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command,
            env=dict(os.environ if environment is None else environment),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        got = f"there is no {command[0]} on this machine"
        raise SlurmError(got, todo="call it where jobs are submitted, on a login node") from None
    except PermissionError:
        raise SlurmError(f"{command[0]} may not be run here") from None
    except subprocess.TimeoutExpired:
        got = f"{command[0]} has not answered for {timeout_s:.0f} s"
        raise SlurmError(got, todo="is slurmctld running? `scontrol ping` tells") from None
    if done.returncode:
        raise SlurmError(f"{command[0]}: {_why(done.stderr) or f'exit code {done.returncode}'}")
    return done


def try_out(script: Path, *, environment: Mapping[str, str] | None = None) -> str:
    """Asks Slurm whether it would take a script, and returns what it says; nothing is submitted.

    Args:
        script: Its file.
        environment: What sbatch finds in its environment; this process's where not given.

    Raises:
        SlurmError: It would not.
    """
    command = ("sbatch", "--test-only", str(script.absolute()))
    return _run(command, environment, TIMEOUT_S).stderr  # it says it there, and only there


def _why(errors: str) -> str:
    """Returns what a command says is wrong, in one line, without its name before each part."""
    lines = [_REFUSED.sub("", line.strip()) for line in errors.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))


def sbatch(
    script: Path,
    *,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> int:
    """Submits a script and returns the job's id.

    Args:
        script: Its file.
        options: Options of sbatch beside the script's own.
        environment: What the job finds in its environment; this process's where not given.

    Raises:
        SlurmError: Slurm refuses it.
    """
    command = ("sbatch", "--parsable", *options, str(script.absolute()))
    answer = slurm(*command, environment=environment)
    found = _JOB_ID.search(answer.splitlines()[-1] if answer else "")
    if found is None:
        raise SlurmError(f"sbatch answered {answer.strip()!r}, with no job's id in it")
    return int(found.group(1))

"""Cluster profiles: which there are, what they say, and what a run says over them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from sailplan import files
from sailplan.errors import RunFileError
from sailplan.run.blocks import NESTED, build_block
from sailplan.run.config import Run
from sailplan.run.nearest import nearest
from sailplan.run.slurm_block import SlurmBlock, StageBlock
from sailplan.run.yaml_file import read_entries

DEFAULT = "default"
"""A user's profile that holds where none is named."""

_EITHER = (("cpus_per_gpu", "cpus_per_task"), ("mem_per_gpu", "mem"))
"""Keys that say the same in two ways, the second before the first: a run's one takes both."""

_ASKS_FOR_GPUS = {"gpu_request", "gpu_type", "gpus_per_node"}
"""What a run says of these is not to be hidden by a profile's `gres`."""


def settings_of(
    run: Run, cluster: str | None = None, *, environment: Mapping[str, str] | None = None
) -> SlurmBlock:
    """Returns what jobs of a run ask for: its cluster's profile with the run's own words over it.

    Where no cluster is named, the user's profile `default` holds, if there is one. The result's
    `cluster` is the name of the profile, and its folders and files are whole paths.

    Args:
        run: The run; its `slurm:` counts.
        cluster: A profile's name or file, in place of the run's.
        environment: Where the user's profiles lie, and what `$VARIABLES` stand for; this process's
            where not given.

    Raises:
        RunFileError: There is no such profile, or it is wrong.
    """
    variables = os.environ if environment is None else environment
    own = _located(run.slurm, Path.cwd(), variables, "slurm.")
    path = _find(cluster, "--cluster", variables) if cluster else None
    if path is None and run.slurm.cluster:
        path = _find(run.slurm.cluster, "slurm.cluster", variables)
    if path is None:
        path = _users_folder(variables) / f"{DEFAULT}.yaml"
        if not path.is_file():
            return own
    return _over(read_profile(path, variables), own).model_copy(update={"cluster": path.stem})


def profiles(environment: Mapping[str, str] | None = None) -> list[str]:
    """Returns the names of all profiles, the user's own and those that sailplan brings."""
    variables = os.environ if environment is None else environment
    folders = (_users_folder(variables), _shipped_folder())
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def read_profile(path: Path, environment: Mapping[str, str] | None = None) -> SlurmBlock:
    """Reads a profile's file.

    Args:
        path: The file.
        environment: What `$VARIABLES` in it stand for; this process's where not given.

    Raises:
        RunFileError: It cannot be read, or a key of it is unknown or does not fit.
    """
    variables = os.environ if environment is None else environment
    written = {
        entry.name: (entry.raw, entry.where) for entry in read_entries(path, blocks=NESTED["slurm"])
    }
    if "cluster" in written:
        got = f"{written['cluster'][1]}: a profile is a cluster, and names none"
        raise RunFileError(got, todo="drop the line; the file's name is the cluster's")
    block = build_block(SlurmBlock, written, "")
    return _located(block, path.parent.absolute(), variables, f"{path}: ")


def template_of(settings: SlurmBlock) -> str | None:
    """Returns the text of the template that a training job has in place of ours, if it has one.

    Raises:
        RunFileError: It cannot be read.
    """
    if settings.template is None:
        return None
    try:
        return Path(settings.template).read_text(encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"template {settings.template}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RunFileError(f"template {settings.template} is not UTF-8 text") from None


def _users_folder(environment: Mapping[str, str]) -> Path:
    home = environment.get("XDG_CONFIG_HOME")
    folder = Path(home) if home else Path(environment.get("HOME", "~")).expanduser() / ".config"
    return folder / "sailplan" / "clusters"


def _shipped_folder() -> Path:
    return files.folder("slurm") / "profiles"


def _find(name: str, where: str, environment: Mapping[str, str]) -> Path:
    """Returns a profile's file by its name, or the file that is named itself."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise RunFileError(f"{where}: no cluster profile {name}", todo="check the path")
        return path
    for folder in (_users_folder(environment), _shipped_folder()):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    known = profiles(environment)
    new = _users_folder(environment) / f"{name}.yaml"
    raise RunFileError(
        f"{where}: no cluster profile {name!r}",
        allowed=", ".join(known),
        todo=nearest(name, known) or f"write it as {new}",
    )


def _over(profile: SlurmBlock, own: SlurmBlock) -> SlurmBlock:
    """Returns a profile with what a run says over it: key by key, and variable by variable."""
    said = {name: getattr(own, name) for name in own.model_fields_set}
    for pair in _EITHER:
        if said.keys() & pair:
            said = {**dict.fromkeys(pair), **said}
    if said.keys() & _ASKS_FOR_GPUS:
        said = {"gres": None, **said}
    for name in said.keys() & {"merge", "compare"}:
        ours: StageBlock = getattr(own, name)
        stage = {key: getattr(ours, key) for key in ours.model_fields_set}
        said[name] = getattr(profile, name).model_copy(update=stage)
    if "environment" in said:
        said["environment"] = {**profile.environment, **own.environment}
    return profile.model_copy(update=said)


_PATHS = ("venv", "shared_cache", "template")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)


def _located(
    block: SlurmBlock, folder: Path, environment: Mapping[str, str], where: str
) -> SlurmBlock:
    """Returns settings whose folders and files are whole paths, and their `$VARIABLES` filled in.

    Those of `local_cache` are the node's, so they stay.
    """

    def whole(name: str, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            variable = found[1] or found[2]
            if not environment.get(variable):
                got = f"{where}{name} is {text!r}, and there is no ${variable} in the environment"
                raise RunFileError(got)
            return environment[variable]

        filled = _VARIABLE.sub(value, text)
        if filled == "~" or filled.startswith("~/"):
            filled = environment.get("HOME", str(Path.home())) + filled[1:]
        return str(folder / filled)

    changes: dict[str, object] = {
        name: whole(name, text) for name in _PATHS if (text := getattr(block, name)) is not None
    }
    return block.model_copy(update=changes)

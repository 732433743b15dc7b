"""What a job is, and what it asks of Slurm: its script's `#SBATCH` lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sailplan.errors import RunFileError
from sailplan.run.paths import RunPaths
from sailplan.run.slurm_block import SlurmBlock, StageBlock
from sailplan.slurm.jobs import Kind

MAIL_TYPE = "END,FAIL,REQUEUE"
"""Of what Slurm writes mail where an address is given and nothing else; its own default is none."""

_LONGEST_WARNING_S = 65535
"""sbatch takes no more."""

_NOWHERE = "--output=/dev/null"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """All that a job's script says; a template has each of these as a variable."""

    kind: Kind
    paths: RunPaths
    """The run's, absolute."""
    settings: SlurmBlock
    """The cluster's profile with what the run says over it."""
    name: str = ""
    """What the job is called in the queue; as the run's directory where it is empty."""
    nodes: int = 1
    gpus_per_node: int = 0
    """GPUs that training takes of each node; 0 where it trains on CPUs."""
    command: tuple[str, ...] = ()
    """What the job runs: of training what each node starts, from `launch` on; of others all."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables that sailplan sets for the command; never a secret."""
    wanted: tuple[str, ...] = ()
    """Names of variables that must be in the environment of sbatch, since they may be secrets."""
    working_directory: Path
    """Where it is submitted; paths of the run file that are relative are so from here."""
    python: Path
    """The interpreter that submits; a `venv` of the settings comes before it."""
    about: str = ""
    """What it is, in a line for who reads the script."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a job runs and what it takes of a node."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    exclude: str | None
    time: str | None
    nodes: int
    gpus: int
    cpus: int | None
    mem: str | None
    exclusive: bool
    gres: str | None


def directives(request: JobRequest) -> tuple[str, ...]:
    """Returns a job's options, each as it follows `#SBATCH ` in a script.

    Raises:
        RunFileError: A setting cannot be what it is to be.
    """
    own = (_words(directive) for directive in request.settings.directives)
    return (
        *(_quoted(option) for option in _options(request)),
        *(" ".join(map(_quoted, words)) for words in own),
    )


def redirects(request: JobRequest) -> bool:
    """Says whether a script must send its output to its log itself.

    Slurm takes a path from a directive's line, and gives a backslash in it a meaning of its own.
    """
    return bool(re.search(r"[\x00-\x1f\x7f\\]", str(request.paths.slurm)))


def _options(request: JobRequest) -> Iterator[str]:
    settings, training = request.settings, request.kind == "train"
    place = _of_training(request) if training else _of_stage(request)
    yield f"--job-name={_job_name(request)}"
    yield _NOWHERE if redirects(request) else f"--output={_log(request)}"
    yield "--open-mode=append"  # a requeued job goes on in its log
    for name in ("partition", "account", "qos", "constraint", "reservation", "exclude", "time"):
        if value := getattr(place, name):
            yield f"--{name}={value}"
    yield f"--nodes={place.nodes}"
    yield f"--ntasks={place.nodes}"
    yield "--ntasks-per-node=1"
    if place.cpus:
        yield f"--cpus-per-task={place.cpus}"
    if place.mem:
        yield f"--mem={place.mem}"
    yield from _gpus(settings, place)
    if place.exclusive:
        yield "--exclusive"
    yield "--requeue"
    if training and (warning_s := _warning_s(settings)):
        yield f"--signal=B:USR1@{warning_s}"
    if settings.mail_user:
        yield f"--mail-user={settings.mail_user}"
    if settings.mail_user or settings.mail_type:
        yield f"--mail-type={settings.mail_type or MAIL_TYPE}"


def _of_training(request: JobRequest) -> _Place:
    settings, gpus = request.settings, request.gpus_per_node
    return _Place(
        partition=settings.partition,
        account=settings.account,
        qos=settings.qos,
        constraint=settings.constraint,
        reservation=settings.reservation,
        exclude=settings.exclude,
        time=settings.time,
        nodes=request.nodes,
        gpus=gpus,
        cpus=settings.cpus_per_task or _cpus(settings, gpus),
        mem=settings.mem or _times(settings.mem_per_gpu, max(gpus, 1)),
        exclusive=settings.exclusive,
        gres=settings.gres if gpus else None,
    )


def _of_stage(request: JobRequest) -> _Place:
    """Returns what another job of a chain takes: the share of its GPUs, at least that of one.

    In a partition of its own it takes what belongs to training's from its own block alone.
    """
    settings = request.settings
    stage: StageBlock = settings.merge if request.kind == "merge" else settings.compare
    usual = 1 if request.kind == "compare" and request.gpus_per_node else 0
    gpus = usual if stage.gpus is None else stage.gpus
    share, whole = max(gpus, 1), max(request.gpus_per_node, 1)
    moved = stage.partition is not None and stage.partition != settings.partition
    cpus, mem = settings.cpus_per_task, settings.mem
    return _Place(
        partition=stage.partition or settings.partition,
        account=stage.account or settings.account,
        qos=stage.qos or (None if moved else settings.qos),
        constraint=stage.constraint or (None if moved else settings.constraint),
        reservation=None if moved else settings.reservation,
        exclude=None if moved else settings.exclude,
        time=stage.time or settings.time,
        nodes=1,
        gpus=gpus,
        cpus=stage.cpus_per_task or (-(-cpus * share // whole) if cpus else _cpus(settings, gpus)),
        mem=stage.mem or _times(mem, share, whole) or _times(settings.mem_per_gpu, share),
        exclusive=settings.exclusive and settings.gpu_request == "none" and gpus > 0,
        gres=None,
    )


def _cpus(settings: SlurmBlock, gpus: int) -> int:
    """Returns the CPUs of a node beside its GPUs, at least one for each; 0 where all are given."""
    usual = 0 if settings.exclusive else min(gpus, 1)
    return (settings.cpus_per_gpu or usual) * max(gpus, 1)


def _gpus(settings: SlurmBlock, place: _Place) -> Iterator[str]:
    if place.gres:
        yield f"--gres={place.gres}"
        return
    if not place.gpus or settings.gpu_request == "none":
        return
    number = f"{settings.gpu_type}:{place.gpus}" if settings.gpu_type else str(place.gpus)
    if settings.gpu_request == "gres":
        yield f"--gres=gpu:{number}"
    else:
        yield f"--{settings.gpu_request.replace('_', '-')}={number}"


_SIZE = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)


def _times(size: str | None, share: int, whole: int = 1) -> str | None:
    """Returns a size of memory times `share / whole`, rounded up; 0 stays: it is all there is.

    Raises:
        RunFileError: It is no size.
    """
    if size is None:
        return None
    found = _SIZE.fullmatch(size)
    if found is None:
        raise RunFileError(f"slurm: {size!r} is no size of memory", allowed="such as 120G")
    number, unit = int(found[1]) * share, found[2].upper()
    if number % whole and unit in ("G", "T"):
        number, unit = number * 1024, "M" if unit == "G" else "G"
    return f"{-(-number // whole)}{unit}"


def _job_name(request: JobRequest) -> str:
    """Returns a name that stands in `squeue`, in mails and in logs as it is."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", request.name or request.paths.path.name) or "run"
    return name if request.kind == "train" else f"{name}-{request.kind}"


def _log(request: JobRequest) -> Path:
    """Returns the job's log as Slurm reads it: `%` begins what Slurm fills in, so it is doubled."""
    escaped = RunPaths(Path(str(request.paths.path).replace("%", "%%")))
    return escaped.job_log(request.kind, "%j")


def _warning_s(settings: SlurmBlock) -> int:
    """Returns how long before its end a job is warned: of a short job a third of its time."""
    time_s = seconds(settings.time) if settings.time else None
    wanted = settings.stop_before_s
    if time_s is not None:
        wanted = min(wanted, time_s // 3)
    return min(wanted, _LONGEST_WARNING_S)


_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def seconds(time: str) -> int | None:
    """Returns a time limit as sbatch reads it, in seconds; None where it is none, or no limit.

    `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`.
    """
    found = _TIME.fullmatch(time)
    if found is None:
        return None
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, left = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, left = parts
    else:
        hours, (minutes, left) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + left


def _words(directive: str) -> tuple[str, ...]:
    """Returns an option as sbatch's words: `--name=value`, or `-n value` as two.

    Raises:
        RunFileError: It is no option.
    """
    if not directive.startswith("-"):
        got = f"slurm: the directive {directive!r} is no option"
        raise RunFileError(got, allowed="such as --licenses=a:1")
    name, _, value = directive.partition(" ")
    return (name, value.strip()) if value and "=" not in name else (directive,)


def _quoted(option: str) -> str:
    r"""Returns a word as sbatch reads it from a script's line.

    sbatch reads quotes of both kinds and ends a line at `#`, as a shell does; but a backslash
    stands for the next character inside of either (`_get_argument` in src/sbatch/opt.c).
    """
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", option):
        return option
    return '"' + re.sub(r'([\\"])', r"\\\1", option) + '"'

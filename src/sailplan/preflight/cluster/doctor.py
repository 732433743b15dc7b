"""The doctor of a cluster: its profile, its scripts as Slurm takes them, its nodes by a job."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sailplan.errors import OutputError, SailplanError, SlurmError
from sailplan.preflight.cluster import controller
from sailplan.preflight.cluster.gather import JUDGES
from sailplan.preflight.cluster.places import SHARED_KINDS, kind_of, nearest, place_of
from sailplan.preflight.cluster.site import Asked, Site, asked_jobs
from sailplan.preflight.cluster.smoke_job import prove
from sailplan.preflight.doctor import Line, Lines
from sailplan.preflight.finding import Finding, failed, of_error, ok, unchecked
from sailplan.run.slurm_block import SlurmBlock
from sailplan.slurm.jobs import KINDS
from sailplan.slurm.submit import script_of

NAMES = (
    "profile",
    "Slurm",
    "partition",
    "folders",
    *(f"{kind} job" for kind in KINDS),
    "smoke job",
    *(name for name, _ in JUDGES),
)
"""Every line, in order."""

_SHOWN = ("partition", "account", "qos", "constraint", "reservation", "time")


def examine(site: Site, *, quick: bool = False) -> Iterator[Line]:
    """Proves a cluster, and yields each line as soon as it is known.

    Args:
        site: The cluster.
        quick: Leave out the smoke job.

    Raises:
        OutputError: There is no folder to write scripts into.
    """
    lines = Lines(NAMES)
    yield lines.of(lambda: _profile(site.settings))
    yield (line := lines.of(controller.answers))
    if line.finding.mark == "failed":
        yield from lines.rest("Slurm does not answer")
        return
    partition, finding = _partition(site)
    yield lines.of(lambda: finding)
    yield lines.of(lambda: _folders(site, quick=quick))
    num_nodes = site.num_nodes or _num_nodes(partition)
    folder = _folder(site)
    keep = False
    try:
        asked, trouble = _asked(site, folder, num_nodes)
        for kind in KINDS:
            yield lines.of(lambda kind=kind: _accepted(asked, trouble, kind, folder, site))  # type: ignore[misc]
        if quick:
            yield from lines.rest("left out by --quick")
        elif partition is None or not partition.num_nodes:
            yield from lines.rest("no node to run on")
        else:
            findings = prove(site, folder, num_nodes, strategy=asked.strategy if asked else None)
            for line in lines.all(findings):
                keep = keep or line.finding.mark == "failed"
                yield line
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _profile(settings: SlurmBlock) -> Finding:
    said = [f"{name} {getattr(settings, name)}" for name in _SHOWN if getattr(settings, name)]
    gpus = settings.gres or (
        f"{settings.gpus_per_node or '?'} × {settings.gpu or settings.gpu_type or 'GPU'} a node"
        if settings.gpu or settings.gpus_per_node
        else "no GPUs"
    )
    container = settings.container
    inside = f"{container.runtime} {container.image}" if container else settings.venv or ""
    parts = [*said, gpus, *([inside] if inside else [])]
    return ok(f"{settings.cluster or 'none'}: {', '.join(parts)}")


def _partition(site: Site) -> tuple[controller.Partition | None, Finding]:
    try:
        found = controller.partition_of(site.settings)
    except SlurmError as error:
        return None, of_error(error)
    wanted = site.num_nodes
    if wanted and wanted > found.num_nodes:
        text = f"{found.name}: {wanted} nodes are asked for, and {found.num_nodes} work"
        return None, failed(text, fix="ask for fewer by --nodes; `sinfo -R` tells of the others")
    return found, controller.judge(found)


def _folders(site: Site, *, quick: bool) -> Finding:
    """On which file systems do the folders lie that all nodes must see?"""
    told, unknown = [], False
    for name, path in (("run directories", site.beside), ("hub cache", site.hub_cache)):
        there = nearest(path)
        if not place_of(there).writable:
            return failed(f"{there} cannot be written ({name})", fix="choose another folder")
        kind = kind_of(there)
        unknown = unknown or kind not in SHARED_KINDS
        told.append(f"{name} in {path}: {kind or 'unknown'}")
    text = ", ".join(told)
    if not unknown:
        return ok(text)
    if quick:
        return unchecked(f"{text}; that other machines see it, only the smoke job tells")
    return ok(f"{text}; the smoke job tells whether nodes see it")


def _num_nodes(partition: controller.Partition | None) -> int:
    """Returns of how many nodes the smoke job is: two where the partition gives two."""
    if partition is None:
        return 1
    return max(1, min(2, partition.num_nodes, partition.max_nodes or 2))


def _folder(site: Site) -> Path:
    try:
        if site.folder is not None:
            site.folder.mkdir(parents=True)
            return site.folder.absolute()
        return Path(tempfile.mkdtemp(prefix=".sailplan-smoke-", dir=site.beside)).absolute()
    except FileExistsError:
        got = f"--folder {site.folder} is there already"
        raise OutputError(got, todo="name a new one, which is removed again") from None
    except OSError as error:
        raise OutputError(
            f"no folder for the smoke job: {error.strerror} ({error.filename})",
            todo="name one on a shared disk by --folder",
        ) from None


def _asked(site: Site, folder: Path, num_nodes: int) -> tuple[Asked | None, SailplanError | None]:
    try:
        return asked_jobs(site, folder, num_nodes), None
    except SailplanError as error:
        return None, error


def _accepted(
    asked: Asked | None, trouble: SailplanError | None, kind: str, folder: Path, site: Site
) -> Finding:
    """Would Slurm take the script that `sailplan submit` would write?"""
    if asked is None:
        return of_error(trouble) if trouble else unchecked("there is no script")
    script = folder / f"{kind}.sbatch"
    try:
        request = next(one for one in asked.requests if one.kind == kind)
        script.write_text(script_of(request), encoding="utf-8")
    except SailplanError as error:
        return of_error(error)
    return controller.accepted(script, site.environment)

"""The smoke job: submitted, waited for, and what its nodes and ranks have left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from sailplan import files
from sailplan.errors import SailplanError, SlurmError
from sailplan.preflight.cluster.gather import JUDGES, gather
from sailplan.preflight.cluster.node import software
from sailplan.preflight.cluster.places import nearest, place_of
from sailplan.preflight.cluster.queueing import NEVER, look_again, until, wait
from sailplan.preflight.cluster.records import Gathered, Wanted, places_file, read
from sailplan.preflight.cluster.site import Site, Smoke, smoke
from sailplan.preflight.finding import Finding, failed, of_error, ok, unchecked
from sailplan.sizes import duration
from sailplan.slurm.commands import sbatch, slurm
from sailplan.slurm.queue import QueuedJob
from sailplan.slurm.reasons import in_words
from sailplan.slurm.script import render

LATE_S = 20.0
"""So late the files of a job that succeeded may come over a network file system."""

TEMPLATE = "smoke.sbatch.j2"

_LAST_LINES = 15
_NO_LOG = 53
"""The number that Slurm has for a job whose log could not be opened."""


def prove(site: Site, folder: Path, num_nodes: int, *, strategy: str | None) -> Iterator[Finding]:
    """Runs the smoke job, and yields how it went and then what it found: a line each.

    Args:
        site: The cluster.
        folder: Where it writes.
        num_nodes: On how many nodes.
        strategy: How the run is sharded, where it was decided.
    """
    try:
        job = smoke(site, folder, num_nodes, strategy=strategy)
        job_id = _submit(site, job, folder)
    except SailplanError as error:
        yield of_error(error)
        yield from (unchecked("the smoke job was not submitted") for _ in JUDGES)
        return
    ended = wait(job_id, pend_s=site.wait_s)
    if ended is None or ended.phase != "ended":
        yield _pending(job_id, ended, site)
        yield from (unchecked("the smoke job has not run") for _ in JUDGES)
        return
    log = job.request.paths.job_log(job.request.kind, job_id)
    found = _gathered(site, job, folder, ended, log)
    yield _outcome(job_id, ended, found, log)
    yield from (finding for _, finding in gather(found))


def _submit(site: Site, job: Smoke, folder: Path) -> int:
    """Writes what the job reads, submits it, and returns its id.

    Raises:
        SailplanError: The folder cannot be written, or Slurm refuses.
    """
    template = (files.folder("slurm") / TEMPLATE).read_text(encoding="utf-8")
    script = folder / "smoke.sbatch"
    job.request.paths.slurm.mkdir(exist_ok=True)
    script.write_text(render(job.request, template=template), encoding="utf-8")
    for path, text in job.launch.files.items():
        path.write_text(text, encoding="utf-8")
    places = [str(nearest(path)) for path in (site.beside, site.hub_cache)]
    places_file(folder).write_text(json.dumps(places), encoding="utf-8")
    return sbatch(script, options=("--no-requeue",), environment=site.environment)


def _pending(job_id: int, job: QueuedJob | None, site: Site) -> Finding:
    if job is None:
        return failed(
            f"job {job_id}: Slurm no longer knows it",
            fix="`scontrol ping` tells whether the controller runs",
        )
    why = in_words(job.reason)
    if why.startswith(NEVER):
        return failed(f"job {job_id} {why}; cancelled", fix="correct that in the profile")
    return unchecked(
        f"job {job_id} has waited {duration(site.wait_s)} and is cancelled: it {why}; later, or "
        "with a longer --wait, the doctor tells more (`sinfo` shows what is free)"
    )


def _gathered(site: Site, job: Smoke, folder: Path, ended: QueuedJob, log: Path) -> Gathered:
    """Returns what nodes and ranks have left, once all of it is to be seen."""
    places = tuple(place_of(nearest(path)) for path in (site.beside, site.hub_cache))
    wanted = Wanted(
        hosts=_hosts(ended.nodes),
        ranks_per_node=job.ranks_per_node,
        gpus_per_node=job.request.gpus_per_node,
        gpu=job.gpu,
        token=str(ended.job_id),
        folder=folder,
        software=software(),
        places=places,
        strategy=job.launch.strategy,
    )
    found = Gathered(wanted=wanted)

    def is_whole() -> bool:
        nonlocal found
        look_again(folder)
        found = read(folder, _text(log), wanted)
        nodes = len(found.nodes) + len(found.printed)
        every = nodes == len(wanted.hosts) and len(found.ranks) == job.launch.processes
        return every and all(rank.stage == "done" for rank in found.ranks)

    until(is_whole, within_s=LATE_S if ended.exit_code == 0 else 0.0)
    return found


def _hosts(nodes: str) -> tuple[str, ...]:
    try:
        return tuple(slurm("scontrol", "show", "hostnames", nodes).split()) if nodes else ()
    except SlurmError:
        return ()


def _outcome(job_id: int, ended: QueuedJob, found: Gathered, log: Path) -> Finding:
    took = ""
    if ended.started_at is not None and ended.ended_at is not None:
        took = f" in {duration(max(ended.ended_at - ended.started_at, 1.0))}"
    on = f"job {job_id} on {ended.nodes or 'no node'}"
    if ended.state == "COMPLETED":
        return ok(f"{on}: done{took}")
    folder = found.wanted.folder
    if ended.signal == _NO_LOG or not (found.nodes or _text(log)):
        return failed(
            f"{on} could not write into {folder}, or it is not the same there",
            fix="name a folder on a disk that all nodes have, by --folder or output_dir",
        )
    how = {
        "TIMEOUT": "its time was over",
        "CANCELLED": "it was cancelled",
        "NODE_FAIL": "a node failed",
        "OUT_OF_MEMORY": "it ran out of the memory that it asked for (mem of the profile)",
    }.get(ended.state, f"it failed with exit code {ended.exit_code}")
    return failed(
        f"{on}: {how}{took}",
        fix=f"the lines below say more; all of it is in {log}",
        detail="\n".join(_text(log).rstrip().splitlines()[-_LAST_LINES:]),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

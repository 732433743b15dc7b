"""What a cluster on this machine needs, and what of it is not there."""

from __future__ import annotations

import os
import shutil
import subprocess

PROGRAMS = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "munged": "munge",
    "mungekey": "munge",
    "ip": "iproute2",
}
"""Each program, and the Debian package that brings it."""

ACCOUNTING_PROGRAMS = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
"""The same for a cluster with accounting."""

SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for: a user's PATH often lacks the daemons' folder."""

NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")


def what_is_missing(*, accounting: bool = False) -> str | None:
    """Says in one line why no cluster starts here and what to do; None where one does."""
    programs = PROGRAMS | (ACCOUNTING_PROGRAMS if accounting else {})
    packages = {
        package
        for program, package in programs.items()
        if shutil.which(program, path=SEARCHED) is None
    }
    if packages:
        names = " ".join(sorted(packages))
        return f"no Slurm here: apt-get install -y --no-install-recommends {names}"
    if os.geteuid() != 0:
        return "the Slurm cluster of the tests needs root: its nodes are namespaces"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, text=True
    )
    if tried.returncode != 0:
        return f"the Slurm cluster of the tests needs namespaces: {tried.stderr.strip()}"
    return None

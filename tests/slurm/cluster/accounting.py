"""What keeps a record of all jobs, for `sacct`: slurmdbd and a database of its own."""

from __future__ import annotations

from pathlib import Path

PORT = 6819

SETTINGS = (
    "AccountingStorageType=accounting_storage/slurmdbd",
    "AccountingStorageHost={network}.1",
    f"AccountingStoragePort={PORT}",
    "AccountingStoragePass={directory}/munge/munge.socket",
    "AccountingStorageTRES=gres/gpu",
)
"""Lines of slurm.conf."""

SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={directory}/munge/munge.socket
DbdHost=head
DbdAddr={network}.1
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=root
StorageLoc=slurm
LogFile={directory}/log/slurmdbd.log
PidFile={directory}/slurmdbd.pid
"""


def write_configuration(directory: Path, network: str) -> None:
    """Writes slurmdbd.conf into a cluster's directory."""
    path = directory / "slurmdbd.conf"
    path.touch(mode=0o600)
    path.write_text(SLURMDBD.format(directory=directory, network=network, port=PORT))


def database(directory: Path) -> tuple[Path, list[str]]:
    """The database's socket, there once it answers, and the command that starts it.

    It asks nobody for a password: nothing but the head of the cluster, where it runs, reaches it.
    """
    place = directory / "database"
    place.mkdir(mode=0o700)
    socket = place / "socket"
    command = [
        *("mariadbd", "--no-defaults", "--user=root", f"--datadir={place}", f"--socket={socket}"),
        *("--bind-address=127.0.0.1", f"--pid-file={place}/pid", "--skip-grant-tables"),
        *("--performance-schema=off", "--innodb-flush-log-at-trx-commit=0"),
        *("--innodb-log-file-size=8M", "--innodb-doublewrite=0"),
    ]
    return socket, command

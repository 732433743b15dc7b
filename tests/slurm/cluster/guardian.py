"""The processes of a cluster: run as a program, with nothing but the standard library.

`watch` runs beside the tests and starts `head` as process 1 of namespaces of its own: there are the
cluster's switch (a bridge), munge, the controller, and below it a `node` for each node, process 1
of the node's namespaces. So the kernel ends all of it at once when `head` ends: processes, mounts,
networks. `head` ends when its standard input does, or when the process that owns the cluster is
gone; then `watch` removes the directory and the control groups.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONTROLLER_PORT = 6817
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8"}
"""What daemons see: nothing of the tests' environment may reach a job but through sbatch."""


def run(*command: str, text: str | None = None) -> None:
    """Runs a command to its end; its output goes to the cluster's log."""
    stdin = {"stdin": subprocess.DEVNULL} if text is None else {"input": text.encode()}
    subprocess.run(command, check=True, close_fds=False, env=ENVIRONMENT, **stdin)


def daemon(directory: Path, *command: str, name: str) -> subprocess.Popen[bytes]:
    """Starts a program that stays."""
    log = (directory / "log" / f"{name}.out").open("ab")
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        start_new_session=True,
        env={**ENVIRONMENT, "SLURM_CONF": str(directory / "slurm.conf")},
    )


def namespaced(
    role: str, *arguments: str, more: tuple[str, ...] = (), network: int, group: Path | None
) -> subprocess.Popen[bytes]:
    """Starts this program in another role as process 1 of new namespaces.

    It ends with the one who starts it. `network` is this process's network namespace as an open
    file, so that the new one can lay a cable into it.
    """

    def join() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text("0")

    return subprocess.Popen(
        [
            # They follow this process, and process 1 follows them.
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", *NAMESPACES, *more, "--mount-proc", "--fork", "--kill-child"),
            *(sys.executable, "-I", "-S", __file__, role, *arguments, str(network)),
        ],
        pass_fds=(network,),
        preexec_fn=join,
        env=ENVIRONMENT,
    )


def own_network() -> int:
    """This process's network namespace as an open file."""
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def lay_cable(here: str, there: str, outside: int, *, on_here: str, on_there: str) -> None:
    """Connects this network namespace with one outside: an interface in each, then set up."""
    enter = ("nsenter", f"--net=/proc/self/fd/{outside}", "ip", "-batch", "-")
    laid = f"link add {here} type veth peer name {there} netns /proc/self/fd/{outside}"
    run("ip", "-batch", "-", text=f"link set lo up\n{laid}\n{on_here}\nlink set {here} up\n")
    run(*enter, text=f"{on_there}\nlink set {there} up\n")


def node(directory: Path, name: str, network: str, switch: int) -> None:
    """Is process 1 of a node: network, hostname, mounts, slurmd; reaps until it is killed."""
    home = directory / "nodes" / name
    number = int(name.removeprefix("node"))
    socket.sethostname(name)
    lay_cable(
        "eth0",
        name,
        switch,
        # The same after a crash, or others would look for it where it was.
        on_here=f"link set eth0 address 02:00:00:00:00:{number:02x}\n"
        f"addr add {network}.{10 + number}/24 dev eth0",
        on_there=f"link set {name} master switch",
    )
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    run("mount", "--bind", str(home / "local"), str(directory / "local"))
    group = freezer_of(directory) / name
    if group.exists():
        run("mount", "--bind", str(group), str(freezer_of(directory).parent))
    (home / "namespace").write_text(str(Path("/proc/self/ns/pid").readlink()))
    # One that comes too early sleeps before it asks again.
    while not is_listening(f"{network}.1", CONTROLLER_PORT):
        time.sleep(0.02)
    daemon(directory, "slurmd", "-D", "-N", name, name=f"slurmd-{name}")
    while True:
        os.wait()


def is_listening(host: str, port: int) -> bool:
    """Whether somebody takes calls there."""
    try:
        socket.create_connection((host, port), timeout=0.2).close()
    except OSError:
        return False
    return True


def start_node(directory: Path, name: str, network: str) -> None:
    """Starts a node below this process, in a control group of its own where there are groups."""
    group: Path | None = freezer_of(directory) / name
    if group.parent.exists():
        group.mkdir(exist_ok=True)
    else:
        group = None
    more = ("--cgroup",) if group else ()
    arguments = (str(directory), name, network)
    remove_interface(name)
    switch = own_network()
    namespaced("node", *arguments, more=more, network=switch, group=group)
    os.close(switch)


def remove_interface(name: str) -> None:
    """Removes what a namespace's end leaves for the kernel to clear away in its own time."""
    subprocess.run(["ip", "link", "delete", name], env=ENVIRONMENT, stderr=subprocess.DEVNULL)


def head(directory: Path, network: str, uplink: str, host: int) -> None:
    """Is process 1 of the cluster: lays the network, then starts what it is told to."""
    socket.sethostname("head")
    # With an address of its own: otherwise it takes a node's, another one at each start and crash,
    # and who calls the one before gets no answer for ten seconds.
    run("ip", "link", "add", "switch", "address", "02:00:00:00:01:00", "type", "bridge")
    lay_cable(
        "uplink",
        uplink,
        host,
        on_here=f"link set uplink master switch\n"
        f"addr add {network}.1/24 dev switch\nlink set switch up",
        on_there=f"addr add {network}.254/24 dev {uplink}",
    )
    run("mount", "--bind", str(directory / "hosts"), "/etc/hosts")
    told = b""
    while True:
        # Looks up now and then: a process whose parent has ended is this one's to reap.
        readable, _, _ = select.select([0], [], [], 0.3)
        if readable:
            more = os.read(0, 65536)
            if not more:
                return
            *lines, told = (told + more).split(b"\n")
            for line in lines:
                obey(json.loads(line), directory, network)
        reap()


def obey(words: list[str], directory: Path, network: str) -> None:
    """Starts what a line on the head's standard input says."""
    what, name, *command = words
    if what == "node":
        start_node(directory, name, network)
    else:
        daemon(directory, *command, name=name)


def reap() -> None:
    """Takes leave of every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return


def freezer_of(directory: Path) -> Path:
    """The cluster's control group."""
    return directory / "cgroup" / "freezer" / directory.name


def watch(directory: Path, network: str, uplink: str, owner: int) -> None:
    """Starts the head and ends it with its owner; leaves nothing behind."""
    gone = os.pidfd_open(owner)
    if freezer_of(directory).parent.exists():
        mounted = str(freezer_of(directory).parent)
        run("mount", "-t", "cgroup", "-o", "freezer", "cgroup", mounted)
        freezer_of(directory).mkdir()
    arguments = (str(directory), network, uplink)
    started = namespaced("head", *arguments, network=own_network(), group=None)
    os.close(0)
    waiting = select.poll()
    waiting.register(gone, select.POLLIN)
    waiting.register(os.pidfd_open(started.pid), select.POLLIN)
    waiting.poll()
    for child in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    started.wait()
    remove_interface(uplink)
    clean_up(directory)


def clean_up(directory: Path) -> None:
    """Removes the control groups and the directory; all their processes have ended."""
    group = freezer_of(directory)
    for inner, _, _ in os.walk(group, topdown=False):
        Path(inner).rmdir()
    if group.parent.exists():
        run("umount", str(group.parent))
    shutil.rmtree(directory)


def main(role: str, directory: str, *arguments: str) -> None:
    """Runs in one of the three roles."""
    if role == "node":
        name, network, switch = arguments
        node(Path(directory), name, network, int(switch))
    else:
        network, uplink, last = arguments
        roles = {"head": head, "watch": watch}
        roles[role](Path(directory), network, uplink, int(last))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Commands of this interpreter as forks of one that has imported the training stack already.

Importing it takes a rank more time than a small case takes. `python -m tests.support.warm` imports
it once. Each line of its standard input is a command, in JSON: the `module` that `python -m` would
run, its `arguments`, its environment, and the file of its output. Whatever such a process starts as
`python -m MODULE …` is forked from it too, instead of executed: `sailplan train`, accelerate's
launcher and the ranks are children of one another as always, with the arguments and the environment
that each gives the next.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from tests.support.plant import VARIABLE

_STACK = (
    "accelerate.commands.launch",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "peft",
    "torch.distributed.run",
    "trl.trainer.sft_trainer",
)
_ROOMS = ("cli", "data", "launcher", "merge", "model", "preflight", "run", "supervise", "train")
"""Packages of which every module is imported."""


class Warm:
    """The interpreter that forks; `warm_python` starts it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(
        self, module: str, arguments: Sequence[object], *, env: Mapping[str, str], out: Path
    ) -> int:
        """Starts a command and returns its process id; `end` waits for it.

        Args:
            module: What `python -m` would run.
            arguments: What follows.
            env: The process's environment.
            out: The file of what it prints, to which that is added.
        """
        command = {"module": module, "arguments": list(map(str, arguments))}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**command, "env": dict(env), "out": str(out)}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Waits for the command that was started and returns its exit code."""
        return self._answer()

    def run(
        self, module: str, arguments: Sequence[object], *, env: Mapping[str, str], out: Path
    ) -> int:
        """Runs a command to its end and returns its exit code."""
        self.start(module, arguments, env=env, out=out)
        return self.end()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(json.loads(self._process.stdout.readline()))


@contextmanager
def warm_python() -> Iterator[Warm]:
    """Starts an interpreter that has imported the stack, and ends it."""
    command = [sys.executable, "-m", "tests.support.warm"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Warm(process)
        assert process.stdin is not None
        process.stdin.close()


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """A process that is forked where it would be `python -m MODULE …`, and executed where not."""

    def _execute_child(self, *arguments: Any) -> None:
        execute = super()._execute_child
        how = inspect.signature(execute).bind(*arguments).arguments
        words = [os.fspath(word) for word in how["args"]] if not how["shell"] else []
        if words[:1] != [sys.executable] or "-m" not in words[1:3]:
            execute(*arguments)
            return
        place = words.index("-m")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            streams = {0: how["p2cread"], 1: how["c2pwrite"], 2: how["errwrite"]}
            _become(
                words[place + 1],
                words[place + 2 :],
                env=os.environ if how["env"] is None else how["env"],
                folder=how["cwd"],
                streams={number: fd for number, fd in streams.items() if fd != -1},
                new_session=how["start_new_session"],
            )
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(how[end] for end in ends))


def _become(
    module: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: str | None = None,
    streams: Mapping[int, int],
    new_session: bool = True,
) -> NoReturn:
    """Makes a process that was just forked what an executed one would be, and runs its module."""
    code: object = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(number)) and signal.getsignal(number) is not _INTERRUPT:
                signal.signal(number, _INTERRUPT if number == signal.SIGINT else signal.SIG_DFL)
        if new_session:
            os.setsid()
        for number, fd in streams.items():
            os.dup2(fd, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        variables = dict(env)
        os.environ.clear()
        os.environ.update(variables)
        if folder is not None:
            os.chdir(folder)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
        if VARIABLE in os.environ and "RANK" in os.environ:
            import_module("tests.support.plant.sitecustomize")
        sys.argv = [module, *arguments]
        sys.modules.pop(module, None)  # it is run once more, as the main module
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code) if isinstance(code, int) else int(code is not None))


_INTERRUPT = signal.default_int_handler


def _import_stack() -> None:
    from sailplan.imports import calm_libraries, compiled_when_called, quick_imports

    with quick_imports(), compiled_when_called():
        calm_libraries()
        for name in _STACK:
            import_module(name)
        for room in _ROOMS:
            package = import_module(f"sailplan.{room}")
            for found in pkgutil.walk_packages(package.__path__, f"sailplan.{room}."):
                import_module(found.name)


def main() -> None:
    """Carries out one command after the other."""
    answers = os.dup(1)
    os.dup2(2, 1)
    _import_stack()
    subprocess.Popen = _Forked  # type: ignore[misc]
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            out = os.open(command["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            nothing = os.open(os.devnull, os.O_RDONLY)
            _become(
                command["module"],
                command["arguments"],
                env=command["env"],
                streams={0: nothing, 1: out, 2: out},
            )
        os.write(answers, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()

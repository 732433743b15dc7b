"""Whose an `output_dir` is: what a run may write there, and what it goes on from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sailplan.errors import OutputError, RunFileError
from sailplan.files import write_atomically
from sailplan.run import saved
from sailplan.run.claim import Claim
from sailplan.run.config import Run
from sailplan.run.identity import changes
from sailplan.run.lock import wait_until_free
from sailplan.run.paths import RunPaths
from sailplan.run.repositories import REVISIONS, pin, remembered
from sailplan.run.repositories import text as text_of_pins

_TRACES = ("trainer_state.json", "training_args.bin", "config.json", "adapter_config.json")
"""Files that tell of weights or a run which sailplan did not start."""


def begins_anew(run: Run) -> bool:
    """Says whether a run is to begin anew, whatever checkpoints its directory holds."""
    return bool(run.get("resume_from_checkpoint") == "false")  # however it was written


@dataclass(frozen=True, slots=True)
class RunDirectory(RunPaths):
    """The files under one `output_dir`; nothing is created before `claim`.

    A launcher claims it before it starts the ranks, and takes the claim back where they end before
    training began. Ranks that nobody launched claim it themselves when training begins.
    """

    @classmethod
    def of(cls, run: Run) -> RunDirectory:
        """Returns the directory of a run; transformers' `trainer_output` where none is written."""
        return cls(Path(run.get("output_dir") or "trainer_output").expanduser().absolute())

    def named_checkpoint(self, run: Run) -> Path | None:
        """Returns the checkpoint that `resume_from_checkpoint` names by its path.

        One of another directory is where a run begins: it counts until the run has its own.

        Returns:
            None where it is not set, `true` (the last one here) or `false` (none).

        Raises:
            RunFileError: There is no such folder, or with `true` no checkpoint here.
        """
        wanted = run.get("resume_from_checkpoint")
        if wanted is None or begins_anew(run):
            return None
        if wanted == "true":
            if not self.checkpoints():
                raise RunFileError(f"resume_from_checkpoint: {self.path} holds no checkpoint")
            return None
        path = Path(wanted).expanduser().absolute()
        if not path.is_dir():
            raise RunFileError(f"resume_from_checkpoint: there is no folder {path}")
        return path if path.is_relative_to(self.path) or not self.checkpoints() else None

    def goes_on_from(self, run: Run) -> list[Path]:
        """Returns the checkpoints from one of which a run goes on, oldest first.

        Raises:
            RunFileError: As for `named_checkpoint`.
        """
        if begins_anew(run):
            return []
        named = self.named_checkpoint(run)
        return self.checkpoints() if named is None else [named]

    def pinned(self, run: Run) -> Run:
        """Returns the run with the commits that the directory remembers for its revisions.

        Raises:
            OutputError: What it remembers cannot be read.
        """
        pinned = pin(run, remembered(self.run_file, self.revisions_file))
        new = [f"{repo.name} is pinned to {commit}" for repo, commit in pinned.pins.items()]
        notes = [f"{text} ({self.revisions_file})" for text in new]
        return replace(pinned, notes=(*run.notes, *notes))

    def remember(self, run: Run) -> None:
        """Writes down the run's pins, beside those that are there; it does not claim the directory.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            Claim.write(self.path, self._revisions(run))
        except OSError as error:
            raise self._unwritable(error) from None

    def _revisions(self, run: Run) -> dict[Path, str]:
        if not run.pins:
            return {}
        pins = {**remembered(self.run_file, self.revisions_file), **run.pins}
        return {self.revisions_file: text_of_pins(pins.items())}

    def check(self, run: Run) -> None:
        """Refuses what `claim` would refuse, and writes nothing; waits for ranks left behind.

        Raises:
            OutputError: It is a file, cannot be written, holds another run, or is trained in now.
        """
        wait_until_free(self.lock_file)
        self._refuse_another_run(run)
        there = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise self._unwritable(error) from None

    def claim(self, run: Run, texts: Mapping[Path, str] | None = None) -> Claim:
        """Makes the directory this run's: refuses another run's, else writes the run's files.

        The same run may claim it again and go on. Nothing is ever deleted, and where a claim fails
        nothing is left behind.

        Args:
            run: The run.
            texts: Other files of the run, or what a file should hold in place of the run's own.

        Raises:
            OutputError: It is a file, cannot be written, or holds another run.
        """
        self._refuse_another_run(run)
        own = {self.train_file: run.train_yaml(), **self._revisions(run)}
        # The run file comes last: where it is, the others are.
        files = {**own, **(texts or {}), self.run_file: run.run_yaml()}
        try:
            return Claim.write(self.path, files)
        except OSError as error:
            raise self._unwritable(error) from None

    def begin(self, run: Run) -> None:
        """Marks that training begins, and claims the directory where no launcher has done so.

        Where one has, the pins that only the ranks could find are added to its files.

        Raises:
            OutputError: As for `claim`.
        """
        if run.source is None or run.source.absolute() != self.train_file:
            self.claim(run)
        try:
            for path, text in self._with_pins(run).items():
                write_atomically(path, text.encode())
            self.metrics_file.touch()
        except OSError as error:
            raise self._unwritable(error) from None

    def _with_pins(self, run: Run) -> dict[Path, str]:
        if not run.pins:
            return {}
        pinned = {*REVISIONS.values(), "datasets"} & run.explicit.keys()
        values = saved.fields({name: run.explicit[name] for name in pinned})
        files = {
            path: saved.with_fields(path.read_text(encoding="utf-8"), values)
            for path in (self.train_file, self.run_file)
        }
        return {**self._revisions(run), **files}

    def began_at(self) -> int | None:
        """Returns when the metrics were last written, in nanoseconds; None where they never were.

        It changes with `begin`.
        """
        return self.metrics_file.stat().st_mtime_ns if self.metrics_file.is_file() else None

    def _unwritable(self, error: OSError) -> OutputError:
        got = f"cannot write output_dir {self.path}: {error.strerror}"
        return OutputError(got, todo="choose another output_dir")

    def _refuse_another_run(self, run: Run) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"output_dir {self.path} is a file", allowed="a directory")
        if self.run_file.is_file():
            self._compare(run)
            return
        traces = [*self.checkpoints(), *(self.path / name for name in _TRACES)]
        trace = next((entry for entry in traces if entry.exists()), None)
        if trace is not None and not self._is_resumed_by(run):
            got = f"output_dir {self.path} holds {trace.name}, but no run.yaml"
            todo = "choose another output_dir, or go on with it by resume_from_checkpoint"
            raise OutputError(got, todo=todo)

    def _is_resumed_by(self, run: Run) -> bool:
        """Says whether the run asks for a checkpoint in this very directory."""
        wanted = run.get("resume_from_checkpoint")
        if wanted is None or begins_anew(run):
            return False
        return wanted == "true" or Path(wanted).expanduser().absolute().is_relative_to(self.path)

    def _compare(self, run: Run) -> None:
        todo = "choose another output_dir, or move the old run away"
        try:
            old = Run.from_file(self.run_file)
        except RunFileError as error:
            got = f"output_dir {self.path} holds a run.yaml that cannot be read ({error.got})"
            raise OutputError(got, todo=todo) from None
        for name, there, here in changes(old, run):
            got = f"output_dir {self.path} holds another run: {name} is {there} there, {here} here"
            raise OutputError(got, todo=todo)

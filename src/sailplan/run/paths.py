"""What lies where under `output_dir`: the one place that knows the names of a run's files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

STOP_FILE = "the stop file"
"""How a run that was stopped by it says so."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path | None) -> int:
    """Returns the optimizer step of a checkpoint by its name; 0 of none."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The names of the files under one `output_dir`; nothing here is created or read."""

    path: Path

    @property
    def run_file(self) -> Path:
        """The run as resolved: launch it again from here."""
        return self.path / "run.yaml"

    @property
    def train_file(self) -> Path:
        """What the ranks read: the run, flat, without the launcher's part."""
        return self.path / "train.yaml"

    @property
    def accelerate_file(self) -> Path:
        """The accelerate preset in use."""
        return self.path / "accelerate.yaml"

    @property
    def command_file(self) -> Path:
        """The exact command that was run."""
        return self.path / "command.txt"

    @property
    def environment_file(self) -> Path:
        """Versions and hardware."""
        return self.path / "environment.json"

    @property
    def revisions_file(self) -> Path:
        """Which commit each revision was that the run file does not write as one."""
        return self.path / "revisions.json"

    @property
    def plan_file(self) -> Path:
        """What the run was planned to need, and why it is divided as it is."""
        return self.path / "plan.json"

    @property
    def measured_file(self) -> Path:
        """What its first steps took, beside what was planned."""
        return self.path / "measured.json"

    @property
    def trackers_file(self) -> Path:
        """The ids by which trackers know the run; no secrets."""
        return self.path / "trackers.json"

    @property
    def curves(self) -> Path:
        """TensorBoard's folder, one for the life of the run."""
        return self.path / "tensorboard"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line, one line a log record; there since training began."""
        return self.path / "metrics.jsonl"

    @property
    def generations_file(self) -> Path:
        """One JSON object a line: what the model answered to a held-out row at an evaluation."""
        return self.path / "generations.jsonl"

    @property
    def generations(self) -> Path:
        """Small copies of the images of these rows."""
        return self.path / "generations"

    @property
    def data_file(self) -> Path:
        """What the run trains on and is evaluated on, in numbers."""
        return self.path / "data.json"

    @property
    def comparisons(self) -> Path:
        """What models answered to held-out rows, and how they scored."""
        return self.path / "compare"

    @property
    def comparison_file(self) -> Path:
        """The last comparison, whole: rows, answers, scores."""
        return self.comparisons / "comparison.json"

    @property
    def comparison_images(self) -> Path:
        """Small copies of the images of the compared rows."""
        return self.comparisons / "images"

    @property
    def report_file(self) -> Path:
        """The page that shows it all."""
        return self.path / "report.html"

    @property
    def merged(self) -> Path:
        """One Hugging Face model of what was saved, where nobody names another place."""
        return self.path / "merged"

    @property
    def state_file(self) -> Path:
        """How the run stands: running, stopped, finished or failed, and why."""
        return self.path / "state.json"

    @property
    def stop_file(self) -> Path:
        """Whoever makes it asks the ranks to save and to stop; they take it away."""
        return self.path / "STOP"

    @property
    def lock_file(self) -> Path:
        """Held by the first rank as long as the run trains, so that no other trains beside it."""
        return self.path / "run.lock"

    @property
    def attempts_file(self) -> Path:
        """One JSON object a line, one line a launch: how it ran, and how it ended."""
        return self.path / "attempts.jsonl"

    @property
    def logs(self) -> Path:
        """What each rank printed, and what it was doing where the run hung."""
        return self.path / "logs"

    @property
    def beats(self) -> Path:
        """Where each rank leaves word of its progress while the run trains."""
        return self.path / "ranks"

    @property
    def failures(self) -> Path:
        """What went wrong on which rank in the last launch."""
        return self.path / "failures"

    @property
    def aside(self) -> Path:
        """Checkpoints that are in doubt; nothing here is ever deleted or trained on."""
        return self.path / "doubted"

    @property
    def divided(self) -> Path:
        """A checkpoint as other ranks than those that saved it load it; there while they do."""
        return self.path / "divided"

    @property
    def slurm(self) -> Path:
        """Job scripts, their logs, and which jobs there were."""
        return self.path / "slurm"

    @property
    def jobs(self) -> Path:
        """One file a job: what it is, and another how it ended."""
        return self.slurm / "jobs"

    def job_script(self, kind: str) -> Path:
        """Returns the script of a kind of job: `train`, `merge` or `compare`."""
        return self.slurm / f"{kind}.sbatch"

    def job_log(self, kind: str, job_id: int | str) -> Path:
        """Returns what a job prints; `%j` stands for its id where Slurm is to fill it in."""
        return self.slurm / f"{kind}-{job_id}.log"

    def checkpoint(self, step: int) -> Path:
        """Returns where the checkpoint of an optimizer step lies."""
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> list[Path]:
        """Returns the checkpoints that are there, whole or not, oldest first."""
        entries = self.path.iterdir() if self.path.is_dir() else ()
        found = [
            (int(match.group(1)), entry)
            for entry in entries
            if (match := _CHECKPOINT.fullmatch(entry.name)) and entry.is_dir()
        ]
        return [entry for _, entry in sorted(found)]

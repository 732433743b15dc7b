"""The front page's quick start for Slurm, carried out: two nodes, two ranks on each."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

from sailplan.run.paths import RunPaths
from tests.slurm.cluster import Cluster
from tests.slurm.runs import sailplan
from tests.support.killed import curve
from tests.support.markdown import blocks

README = Path(__file__).resolve().parents[2] / "README.md"
LIMIT_S = 800


@dataclass(frozen=True, kw_only=True)
class Done:
    """The quick start, carried out."""

    folder: Path
    said: dict[str, str]
    """What each verb has printed."""

    @property
    def run(self) -> RunPaths:
        """The run's directory."""
        return RunPaths(self.folder / "demo" / "full")


@pytest.fixture(scope="module")
def done(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Carries the commands out, each as it stands; all that follows `submit` is waited for."""
    (block,) = (one for one in blocks(README) if "sailplan submit" in one.text)
    folder, said = tmp_path_factory.mktemp("quick-start"), {}
    for line in block.text.splitlines():
        program, verb, *rest = shlex.split(line, comments=True)
        assert program == "sailplan"
        answer = sailplan(shared_cluster, verb, *rest, cwd=folder, limit_s=LIMIT_S)
        assert answer.returncode == 0, (line, answer.stdout, answer.stderr)
        said[verb] = answer.stdout
        if verb == "logs":
            for job in re.findall(r"^\w+: job (\d+)", said["submit"], re.MULTILINE):
                shared_cluster.wait_for(int(job), "COMPLETED", timeout_s=LIMIT_S)
    assert list(said) == ["demo", "submit", "logs", "runs", "report"]
    return Done(folder=folder, said=said)


@pytest.mark.timeout(2 * LIMIT_S)
def test_quick_start_trains_merges_and_compares_on_two_nodes(done: Done) -> None:
    assert re.findall(r"^(\w+): job", done.said["submit"], re.MULTILINE) == [
        "train",
        "merge",
        "compare",
    ]
    assert "step 20/20" in done.said["logs"]
    assert "finished" in done.said["runs"]
    script = done.run.job_script("train").read_text()
    assert "#SBATCH --nodes=2" in script
    assert "zero3 on 2 × 2 ranks" in script
    with safe_open(done.run.path / "merged" / "model.safetensors", "pt") as merged:
        assert len(merged.keys()) > 20
    assert done.run.comparison_file.is_file()
    assert done.run.report_file.is_file()


@pytest.mark.timeout(2 * LIMIT_S)
def test_curve_on_two_nodes_is_that_of_one(done: Done) -> None:
    command = [sys.executable, "-m", "sailplan", "train", "demo/full.yaml", "--no-preflight"]
    flags = ["--max_steps", "20", "--output_dir", "alone"]
    trained = subprocess.run(
        command + flags, cwd=done.folder, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    ours, alone = curve(done.run.path), curve(done.folder / "alone")
    assert [point[0] for point in ours] == [point[0] for point in alone] == [5, 10, 15, 20]
    for here, there in zip(ours, alone, strict=True):
        assert here[1] == pytest.approx(there[1], abs=1e-4)

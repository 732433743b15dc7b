"""Three families by every method on two ranks: trained, killed, resumed, merged, read back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sailplan.errors import RunFileError
from sailplan.files import preset
from sailplan.run.metrics import read_metrics
from tests.matrix import trial
from tests.matrix.cells import CELLS, STRATEGIES, TEXT, Cell
from tests.matrix.record import note
from tests.support.launch import ENTRY, End, flags, free_port
from tests.support.plant import planted
from tests.support.warm import Warm, warm_python

CURVE = 1e-4
"""How far the losses of two ranks may lie from those of one process, relatively."""
QUICK = ("qwen2_vl/lora/zero3", "llava/full/zero2", "llama/qlora/ddp")
"""What is not slow."""
UNSHARDED = ("int8", "zero3")
"""What ZeRO-3 would not really divide."""
KILLED = 137


def params(*, refused: bool) -> list[Any]:
    """Cells of two ranks."""
    found = []
    for cell in CELLS:
        is_refused = "-" in cell.method or (cell.method, cell.strategy) == UNSHARDED
        if STRATEGIES[cell.strategy] > 1 and is_refused == refused:
            marks = [] if refused or cell.name in QUICK else [pytest.mark.slow]
            found.append(pytest.param(cell, id=cell.name, marks=marks))
    return found


class Ranks:
    """Runs of `sailplan train` on this machine's cores.

    Args:
        python: What all their processes are forked from.
        folder: Where goes what cells share.
    """

    def __init__(self, python: Warm, folder: Path) -> None:
        self.python, self.folder = python, folder
        self._curves: dict[tuple[str, str], list[float]] = {}

    def train(
        self, values: Mapping[str, Any], strategy: str, log: Path, fault: Mapping[str, Any] = {}
    ) -> End:
        """Trains as a run file says."""
        file = log.with_suffix(".yaml")
        launch = {"cpu": True, "processes": STRATEGIES[strategy], "strategy": strategy}
        file.write_text(yaml.safe_dump({**values, "launch": launch}))
        env = planted(**fault) if fault else dict(os.environ)
        return self.run("sailplan", ["train", file, "--no-preflight"], log, env)

    def run(self, module: str, arguments: list[Any], log: Path, env: Mapping[str, str]) -> End:
        """Runs `python -m MODULE …`; its output and its errors are one."""
        shared = {"HF_DATASETS_CACHE": str(self.folder / "datasets")}
        code = self.python.run(module, arguments, env={**env, **shared}, out=log)
        said = log.read_text()
        return End(code, said, said)

    def curve_of_one(self, cell: Cell, values: Mapping[str, Any]) -> list[float]:
        """Returns the losses of one process with the samples of both ranks in each step."""
        asked = (cell.family, cell.method)
        if asked not in self._curves:
            out = self.folder / "-".join(asked)
            alone = {**values, "per_device_train_batch_size": 2, "output_dir": str(out)}
            end = self.train(
                {**alone, "save_strategy": "no"}, "single", self.folder / f"{out.name}.log"
            )
            assert end.code == 0, end.out
            self._curves[asked] = curve(out)
        return self._curves[asked]


def curve(output_dir: Path) -> list[float]:
    """Returns the loss of each step that counts."""
    records = read_metrics(output_dir / "metrics.jsonl")
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch, warm_python() as python:
        patch.setenv("SAILPLAN_CACHE", str(folder / "plans"))
        yield Ranks(python, folder)


@pytest.mark.parametrize("cell", params(refused=False))
def test_cell_on_two_ranks_trains_comes_back_and_merges(
    cell: Cell, tiny_model: Callable[[str], Path], ranks: Ranks, tmp_path: Path
) -> None:
    model, family = tiny_model(cell.family), cell.family
    out, probe, told = tmp_path / "run", tmp_path / "probe.pt", tmp_path / "logits.pt"
    data = trial.draw_rows(tmp_path / "data", family)
    values = trial.fields(cell, model, data, out, per_device_train_batch_size=1)
    trial.check_plan(values, tmp_path / "plan.yaml", strategy=cell.strategy, gpus=2)
    trial.check_labels(values, family)
    words = trial.check_batching(values, family)
    inputs = trial.question(trial.load_processor(model, family), family)
    torch.save(inputs, probe)

    killed = ranks.train(values, cell.strategy, tmp_path / "killed.log", trial.killing(out))
    assert killed.code == KILLED, killed.out
    listening = {"what": "leave_logits", "inputs": str(probe), "to": str(told)}
    resumed = ranks.train(values, cell.strategy, tmp_path / "resumed.log", listening)
    assert resumed.code == 0, resumed.out
    assert f"goes on from {out / 'checkpoint-2'}" in resumed.out
    assert words in killed.out
    assert words in resumed.out
    # One row has no picture; where the other rank's has, the vision tower must run for it as well.
    trial.check_batched(out, words, dummies=int(family not in TEXT))
    trial.check_went_on(out)
    found = curve(out)
    assert found == pytest.approx(ranks.curve_of_one(cell, values), rel=CURVE)

    trial.check_merged(cell, values, torch.load(told), inputs, tmp_path)
    note(cell, works=True, words=words)


@pytest.mark.parametrize("cell", params(refused=True))
def test_cell_on_two_ranks_is_refused_before_ranks_start(
    cell: Cell, tiny_model: Callable[[str], Path], ranks: Ranks, tmp_path: Path
) -> None:
    values = unreadable(cell, tiny_model(cell.family), tmp_path)

    end = ranks.train(values, cell.strategy, tmp_path / "refused.log")

    assert end.code == RunFileError.exit_code, end.out
    reason = trial.line_of(end.err)
    assert told_why(cell) in reason
    assert not (tmp_path / "run").exists()
    note(cell, works=False, words=reason)


def test_cell_that_is_started_by_hand_is_refused_by_its_ranks(
    tiny_model: Callable[[str], Path], ranks: Ranks, tmp_path: Path
) -> None:
    cell = Cell(family="llama", method="int8", strategy="zero3")
    values = unreadable(cell, tiny_model(cell.family), tmp_path)
    by_hand = ["--config_file", preset("deepspeed_zero3"), "--num_processes", 2]
    by_hand += ["--main_process_port", free_port(), "-m", ENTRY, *flags(values)]

    end = ranks.run("accelerate.commands.launch", by_hand, tmp_path / "by-hand.log", os.environ)

    assert end.code != 0
    (line,) = [line for line in end.out.splitlines() if line.startswith("error: ")]
    assert told_why(cell) in line
    assert not (tmp_path / "run").exists()


def unreadable(cell: Cell, model: Path, folder: Path) -> dict[str, Any]:
    """Returns a cell's run, of a model that has no weights to load."""
    unread = folder / "model"
    unread.mkdir()
    shutil.copy(model / "config.json", unread)
    data = trial.draw_rows(folder / "data", cell.family, count=2)
    return trial.fields(cell, unread, data, folder / "run", per_device_train_batch_size=1)


def told_why(cell: Cell) -> str:
    """Returns what a cell that cannot work is refused with."""
    if "-" in cell.method:
        return "quantised weights cannot be trained"
    return "load_in_8bit with strategy zero3, which cannot shard 8-bit weights"

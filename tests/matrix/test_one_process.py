"""Every family by every method on one process: trained, killed, resumed, merged, read back."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sailplan.errors import RunFileError
from sailplan.model.load import load_model
from sailplan.run.config import Run
from tests.matrix import trial
from tests.matrix.cells import CELLS, FAMILIES, METHODS, Cell
from tests.matrix.record import note
from tests.support.launch import Forked, flags

TRAINED = tuple(method for method in METHODS if "-" not in method)
REFUSED = tuple(method for method in METHODS if "-" in method)


def params(methods: tuple[str, ...]) -> list[Any]:
    """Cells of one process; beyond one method of each family they are slow."""
    found = []
    for cell in CELLS:
        if cell.strategy == "single" and cell.method in methods:
            quick = methods[FAMILIES.index(cell.family) % len(methods)]
            is_slow = methods == TRAINED and cell.method != quick
            marks = [pytest.mark.slow] if is_slow else []
            found.append(pytest.param(cell, id=cell.name, marks=marks))
    return found


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one cell has read or simulated, the next finds; nothing of it is the user's."""
    import datasets

    folder = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAILPLAN_CACHE", str(folder / "plans"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        yield


@pytest.mark.parametrize("cell", params(TRAINED))
def test_cell_trains_comes_back_and_merges(
    cell: Cell, tiny_model: Callable[[str], Path], forked: Forked, tmp_path: Path
) -> None:
    model, family = tiny_model(cell.family), cell.family
    out, probe, told = tmp_path / "run", tmp_path / "probe.pt", tmp_path / "logits.pt"
    values = trial.fields(cell, model, trial.draw_rows(tmp_path / "data", family), out)
    trial.check_plan(values, tmp_path / "plan.yaml", strategy="single", gpus=1)
    trial.check_labels(values, family)
    words = trial.check_batching(values, family)
    inputs = trial.question(trial.load_processor(model, family), family)
    torch.save(inputs, probe)

    killed = forked(flags(values), trial.killing(out))
    assert killed.code == -signal.SIGKILL, killed.err
    listening = {"what": "leave_logits", "inputs": str(probe), "to": str(told)}
    resumed = forked(flags(values), listening)
    assert resumed.code == 0, resumed.err
    assert f"goes on from {out / 'checkpoint-2'}" in resumed.out
    assert words in killed.out
    assert words in resumed.out
    trial.check_batched(out, words)
    trial.check_went_on(out)

    trial.check_merged(cell, values, torch.load(told), inputs, tmp_path)
    note(cell, works=True, words=words + of_experts(out, values))


def of_experts(output_dir: Path, values: dict[str, Any]) -> str:
    """Says what of a mixture of experts is neither adapted nor quantised; nothing of others.

    transformers keeps the experts of a layer as one tensor, which is no linear layer.
    """
    if not values.get("use_peft"):
        return ""
    model = load_model(Run(explicit=values))
    experts = [one for name, one in model.named_parameters() if ".experts." in name]
    if not experts:
        return ""
    adapted = load_file(output_dir / "adapter_model.safetensors")
    assert not any("experts" in name for name in adapted)
    assert all(one.is_floating_point() for one in experts)
    quantised = model.config.to_dict().get("quantization_config")
    return f"; its experts are not adapted{', nor quantised' if quantised else ''}"


@pytest.mark.parametrize("cell", params(REFUSED))
def test_cell_is_refused_before_the_model_is_loaded(
    cell: Cell, tiny_model: Callable[[str], Path], forked: Forked, tmp_path: Path
) -> None:
    unread = tmp_path / "model"
    unread.mkdir()
    shutil.copy(tiny_model(cell.family) / "config.json", unread)  # there are no weights to load
    data = trial.draw_rows(tmp_path / "data", cell.family, count=1)
    values = trial.fields(cell, unread, data, tmp_path / "run")

    end = forked(flags(values))

    assert end.code == RunFileError.exit_code
    reason = trial.line_of(end.err)
    assert "quantised weights cannot be trained" in reason
    assert not (tmp_path / "run").exists()
    note(cell, works=False, words=reason)

"""`sailplan plan`: what it prints of a small model, and how mistakes end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sailplan.hardware.catalogue import CATALOGUE
from tests.cli.test_main import sailplan
from tests.support.rows import chat_rows

HEAVY = ["torch", "transformers", "trl", "peft", "datasets", "pandas"]


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all of these tests: what one has simulated, the next finds."""
    import datasets

    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAILPLAN_CACHE", str(folder / "plans"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        yield


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = chat_rows(folder / "data", 48)
    path = folder / "run.yaml"
    path.write_text(
        f"model_name_or_path: {tiny_model('qwen2_vl')}\ndataset_name: {data}\n"
        f"output_dir: {folder}/out\nper_device_train_batch_size: auto\nglobal_batch_size: 16\n"
        "gradient_checkpointing: true\nlaunch: {gpu: L4, gpus_per_node: 2, price_per_hour: 1}\n"
    )
    return path


def planned(run_file: Path, *flags: str) -> dict[str, object]:
    code, out, err = sailplan("plan", str(run_file), "--json", *flags)
    assert code == 0, err
    plan: dict[str, object] = json.loads(out)
    return plan


def test_plan_prints_what_is_needed_and_why(run_file: Path) -> None:
    code, out, err = sailplan("plan", str(run_file))
    assert (code, err) == (0, "")
    assert "full fine-tuning on 2 × L4 (launch.gpu)" in out
    for phase in ("load", "forward", "backward", "step", "evaluation", "save"):
        assert f"\n {phase} " in out
    for word in ("fits: ", "why", "runners-up", "tokens/s", "host memory", "disk", "fewer GPUs"):
        assert word in out
    assert "9 (3 an epoch)" in out  # 48 rows by 16, three times
    assert " at 1 an hour and GPU" in out
    assert not (run_file.parent / "out").exists()


def test_plan_as_json_holds_choice_memory_and_disk(run_file: Path) -> None:
    plan = planned(run_file)
    chosen = plan["chosen"]
    assert isinstance(chosen, dict)
    assert chosen["micro_batch"] * chosen["accumulation"] * chosen["ranks"] == 16
    assert set(chosen["memory"]["phases"]["backward"]) >= {"parameters", "activations", "context"}
    assert plan["fits"] is True
    assert plan["candidates"] == []
    assert plan["reasons"]
    everything = planned(run_file, "--all")["candidates"]
    assert isinstance(everything, list)
    assert {one["micro_batch"] for one in everything} == {1, 2, 4, 8}


def test_plan_takes_gpus_and_fields_as_flags(run_file: Path) -> None:
    flags = ("--gpu", "h100", "--gpus-per-node", "2", "--nodes", "4", "--num_train_epochs", "1")
    plan = planned(run_file, *flags)
    card, steps = plan["card"], plan["steps"]
    assert isinstance(card, dict)
    assert isinstance(steps, dict)
    assert (card["gpu"], card["gpus_per_node"], card["nodes"]) == ("H100-80GB", 2, 4)
    assert steps["total"] == 3


def test_second_plan_imports_no_library(run_file: Path) -> None:
    planned(run_file)
    program = (
        "import json, sys\n"
        "from sailplan.cli.main import app\n"
        "app(['plan', sys.argv[2]], standalone_mode=False)\n"
        "print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))"
    )
    command = [sys.executable, "-c", program, json.dumps(HEAVY), str(run_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_plan_for_an_unknown_gpu_lists_the_catalogue(run_file: Path) -> None:
    code, out, err = sailplan("plan", str(run_file), "--gpu", "H1000")
    assert (code, out) == (5, "")
    assert all(model.name in err for model in CATALOGUE)
    assert "did you mean H100-80GB?" in err


def test_plan_without_a_gpu_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model_name_or_path: a/b\n")
    code, _, err = sailplan("plan", str(tmp_path / "run.yaml"), "--launch.nodes", "1")
    assert code == 5
    assert "no GPU to plan for: " in err
    assert err.endswith("name one, such as --gpu H100-80GB\n")


def test_plan_of_an_unknown_architecture_says_what_its_files_say(
    run_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "warp9"}')
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(2 * 10**9)
    flags = ("--model_name_or_path", str(tmp_path), "--dataset_name", "owner/elsewhere")
    code, _, err = sailplan("plan", str(run_file), *flags)
    assert code == 3
    assert "has no architecture 'warp9'" in err
    assert "2.0 GB of weights" in err
    assert "QLoRA 0.6 GB on each" in err
    assert "install a newer transformers" in err


def test_plan_with_a_global_batch_that_does_not_divide_shows_the_nearest(run_file: Path) -> None:
    code, _, err = sailplan("plan", str(run_file), "--global_batch_size", "15")
    assert code == 2
    assert "15 does not divide over 2 ranks; allowed: 14 or 16 on 2 ranks; or keep 15 on 1" in err


def test_plan_for_more_gpus_than_rows_is_an_error(run_file: Path) -> None:
    code, _, err = sailplan("plan", str(run_file), "--nodes", "32", "--global_batch_size", "64")
    assert code == 5
    assert "64 GPUs for 48 rows: some would have none; allowed: 1 to 48 GPUs" in err


def test_plan_with_an_unknown_flag_names_the_nearest(run_file: Path) -> None:
    code, _, err = sailplan("plan", str(run_file), "--learning_rat", "1")
    assert code == 2
    assert "learning_rate" in err

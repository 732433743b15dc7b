"""A run written to disk can be launched again, and holds no secret."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from tests.run.test_config import TRL_SFT_YAML

TOKEN = "hf_" + "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def run(tmp_path) -> Run:
    path = tmp_path / "mine.yaml"
    output = f"output_dir: {tmp_path}/out\n"
    path.write_text(TRL_SFT_YAML.replace("output_dir: out\n", output).replace("  NO: no\n", ""))
    return Run.from_file(path, ["--launch.gpu", "H100", "--slurm.time", "08:00:00"])


def test_run_written_and_read_again_is_equal(run, tmp_path):
    (tmp_path / "run.yaml").write_text(run.run_yaml())

    again = Run.from_file(tmp_path / "run.yaml")

    assert again == run
    assert again.notes == ()


def test_run_written_twice_is_the_same_text(run, tmp_path):
    (tmp_path / "a.yaml").write_text(run.run_yaml())
    (tmp_path / "b.yaml").write_text(Run.from_file(tmp_path / "a.yaml").run_yaml())

    assert (tmp_path / "a.yaml").read_text() == (tmp_path / "b.yaml").read_text()


def test_train_yaml_is_flat_and_equal_for_the_ranks(run, tmp_path):
    (tmp_path / "train.yaml").write_text(run.train_yaml())

    ranks = Run.from_flags(["--config", str(tmp_path / "train.yaml")])

    assert ranks.explicit == run.explicit
    assert not {"launch", "slurm", "env", "num_processes", "accelerate_config"} & set(
        yaml.safe_load(run.train_yaml())
    )


def test_secrets_reach_no_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"hub_token: {TOKEN}1\n"
        f"env: {{WANDB_API_KEY: {TOKEN}2, HF_TOKEN: {TOKEN}3, MY_SETTING: {TOKEN}4}}\n"
        f"wandb_project: {TOKEN}5\n"
        f"model_init_kwargs: {{token: {TOKEN}6, revision: main, nested: [{TOKEN}7, plain]}}\n"
        f"run_name: {TOKEN}8\n"
        f"dataset_name: https://user:{TOKEN}9@example.com/data\n"
        "lr_scheduler_kwargs: {api_key: verysecretvalue, password: verysecretvalue}\n"
        "eos_token: <|im_end|>\npad_token: <pad>\nseed: 1\n"
    )
    run = Run.from_file(path)

    (tmp_path / "run.yaml").write_text(run.run_yaml())

    for text in ((tmp_path / "run.yaml").read_text(), run.train_yaml(), repr(run)):
        assert TOKEN not in text
        assert "verysecretvalue" not in text
    saved = Run.from_file(tmp_path / "run.yaml")
    assert saved.explicit["model_init_kwargs"] == {"revision": "main", "nested": ["plain"]}
    assert (saved.get("eos_token"), saved.get("pad_token"), saved.get("seed")) == (
        "<|im_end|>",
        "<pad>",
        1,
    )
    assert "hub_token" in (tmp_path / "run.yaml").read_text().splitlines()[1]
    assert run.environment()["HF_TOKEN"] == f"{TOKEN}3"


def test_hub_token_reaches_the_ranks_by_the_environment(tmp_path):
    run = Run.from_flags(["--hub_token", TOKEN])
    assert run.environment() == {"HF_TOKEN": TOKEN}


def test_settings_that_became_variables_are_kept(tmp_path):
    run = Run.from_flags(["--logging_dir", "logs", "--wandb_project", "mine"])
    (tmp_path / "run.yaml").write_text(run.run_yaml())

    env = {"TENSORBOARD_LOGGING_DIR": "logs", "WANDB_PROJECT": "mine"}
    assert Run.from_file(tmp_path / "run.yaml").env == env


def test_local_paths_are_written_absolute_and_hub_names_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data.json").touch()
    Path("model").mkdir()
    flags = (
        "--model_name_or_path model --dataset_name data.json --processor_name_or_path Qwen/Qwen2 "
        "--output_dir new --datasets data.json a/b"
    )
    run = Run.from_flags(flags.split())

    saved = run.as_dict()

    assert saved["model_name_or_path"] == str(tmp_path / "model")
    assert saved["dataset_name"] == str(tmp_path / "data.json")
    assert saved["datasets"] == [{"path": str(tmp_path / "data.json")}, {"path": "a/b"}]
    assert saved["output_dir"] == str(tmp_path / "new")
    assert saved["processor_name_or_path"] == "Qwen/Qwen2"


@pytest.mark.parametrize(
    "text",
    ["a: b", "#", "x\ny \n", "on", "1e5", "null", "~", "8:30", "{x}", "é “–” 🦙", " lead", "'"],
)
def test_any_text_survives_writing_and_reading(tmp_path, text):
    run = Run.from_flags(["--user_prompt", text])
    (tmp_path / "run.yaml").write_text(run.run_yaml())
    assert Run.from_file(tmp_path / "run.yaml").get("user_prompt") == text


def test_global_batch_is_written_without_the_accumulation_of_one_world_size(tmp_path):
    flags = ["--global_batch_size", "128", "--per_device_train_batch_size", "4"]
    run = Run.from_flags(flags).for_world_size(1)
    (tmp_path / "run.yaml").write_text(run.run_yaml())

    again = Run.from_file(tmp_path / "run.yaml")

    assert run.get("gradient_accumulation_steps") == 32
    assert not again.is_set("gradient_accumulation_steps")
    assert again.for_world_size(4).get("gradient_accumulation_steps") == 8


def test_train_yaml_of_another_world_size_is_refused_by_the_ranks(tmp_path, monkeypatch):
    flags = ["--global_batch_size", "128", "--per_device_train_batch_size", "4"]
    (tmp_path / "train.yaml").write_text(Run.from_flags(flags).train_yaml())
    monkeypatch.setenv("WORLD_SIZE", "4")

    with pytest.raises(RunFileError, match=r"global_batch_size 128 is not .* 4 ranks"):
        Run.from_flags(["--config", str(tmp_path / "train.yaml")])

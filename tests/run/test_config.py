"""A run file, and flags over it, become typed values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sailplan.errors import RunFileError
from sailplan.run.config import Run

TRL_SFT_YAML = """\
# As for `trl sft --config`
env:
  WANDB_PROJECT: demo
  NO: no
accelerate_config: zero3
num_processes: 8
mixed_precision: bf16
use_deepspeed: true
zero_stage: 3

model_name_or_path: Qwen/Qwen2.5-0.5B
torch_dtype: bfloat16
attn_implementation: flash_attention_2
trust_remote_code: true

datasets:
  - path: trl-lib/Capybara
    split: train
    columns: [messages]
    fraction: 0.5
  - path: json
    data_files: {train: a.json}
    fraction: 0.5
test_split_size: 0.05
streaming: false

learning_rate: 2e-5
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: '{"min_lr_rate": 0.1}'
warmup_ratio: 0.03
max_seq_length: 2048
packing: yes
eval_strategy: no
report_to: none
use_peft: True
lora_target_modules: all-linear
output_dir: out
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "train.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_run_from_trl_yaml_takes_every_kind_of_key(write):
    run = Run.from_file(write(TRL_SFT_YAML))

    assert run.env == {"WANDB_PROJECT": "demo", "NO": "no"}
    assert run.accelerate == {
        "accelerate_config": "zero3",
        "num_processes": 8,
        "use_deepspeed": True,
        "zero_stage": 3,
    }
    assert run.get("datasets") == [
        {"path": "trl-lib/Capybara", "split": "train", "columns": ["messages"], "fraction": 0.5},
        {"path": "json", "data_files": {"train": "a.json"}, "fraction": 0.5},
    ]
    assert run.get("learning_rate") == 2e-5
    assert run.get("lr_scheduler_kwargs") == {"min_lr_rate": 0.1}
    assert run.get("gradient_checkpointing_kwargs") == {"use_reentrant": False}
    assert run.get("eval_strategy") == "no"
    assert run.get("lora_target_modules") == ["all-linear"]
    assert (run.get("dtype"), run.get("max_length"), run.get("warmup_steps")) == (
        "bfloat16",
        2048,
        0.03,
    )
    assert len(run.notes) == 3
    assert run.source is not None


def test_run_arguments_build_the_live_dataclasses(write):
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    from sailplan.run.arguments import SailplanArguments

    run = Run.from_file(write(TRL_SFT_YAML), ["--use_cpu", "--dataset_format", "messages"])

    arguments = run.arguments(SFTConfig)
    assert arguments.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert (arguments.max_length, arguments.bf16, arguments.use_cpu) == (2048, True, True)
    assert run.arguments(ModelConfig).lora_target_modules == "all-linear"
    assert run.arguments(ScriptArguments).dataset_name is None
    assert run.arguments(DatasetMixtureConfig).datasets[1].data_files == {"train": "a.json"}
    assert run.arguments(SailplanArguments).dataset_format == "messages"


def test_run_arguments_refused_by_the_class_is_one_line():
    from trl import SFTConfig

    run = Run.from_flags(["--use_cpu", "--load_best_model_at_end", "--save_strategy", "epoch"])

    with pytest.raises(RunFileError, match="requires the save and eval strategy to match") as error:
        run.arguments(SFTConfig)
    assert "\n" not in str(error.value)


def test_run_get_unset_returns_default_of_library_or_of_sailplan():
    run = Run.from_flags(["--output_dir", "out"])

    assert run.get("learning_rate") == 2e-5
    assert run.get("include_for_metrics") == []
    assert run.get("assistant_only_loss") is True
    assert run.get("max_length") is None
    assert not run.is_set("max_length")
    assert run.is_set("output_dir")
    assert len(run.differences()) == 2


def test_run_get_explicit_value_wins_over_sailplan_default():
    run = Run.from_flags(["--assistant_only_loss", "False", "--max_length", "1024"])

    assert run.get("assistant_only_loss") is False
    assert run.get("max_length") == 1024
    assert run.differences() == ()


def test_run_get_returns_copies_that_cannot_change_the_run():
    run = Run.from_flags(["--lora_target_modules", "q_proj", "v_proj", "--use_peft"])

    run.get("lora_target_modules").append("k_proj")
    run.get("include_for_metrics").append("loss")

    assert run.get("lora_target_modules") == ["q_proj", "v_proj"]
    assert run.get("include_for_metrics") == []


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("learning_rate: 1e-4", 1e-4),
        ("learning_rate: '1e-4'", 1e-4),
        ("learning_rate: 1", 1.0),
        ("max_steps: 1e3", 1000),
        ("max_steps: '20'", 20),
        ("max_length: None", None),
        ("max_length: null", None),
        ("tf32: no", False),
        ("packing: 1", True),
        ("eval_strategy: no", "no"),
        ("model_revision: 0123456", "0123456"),
        ("model_revision: 12e4567", "12e4567"),
        ("run_name: 2024-01-01", "2024-01-01"),
        ("run_name: on", "on"),
        ("attn_implementation: None", None),
        ("report_to: null", "none"),
        ("report_to: [tensorboard, wandb]", ["tensorboard", "wandb"]),
        ("lora_target_modules: '[q_proj,v_proj]'", ["q_proj", "v_proj"]),
        ("lora_target_modules: q_proj,v_proj", ["q_proj", "v_proj"]),
        ("lora_target_modules: .*(q|v)_proj", [".*(q|v)_proj"]),
        ("include_num_input_tokens_seen: true", True),
        ("include_num_input_tokens_seen: no", "no"),
        ("pad_to_multiple_of: 8", 8),
        ("pad_to_multiple_of: auto", "auto"),
        ("fsdp: true", True),
        ("fsdp: full_shard auto_wrap", "full_shard auto_wrap"),
        ("deepspeed: ds.json", "ds.json"),
        ("deepspeed: {zero_optimization: {stage: 2}}", {"zero_optimization": {"stage": 2}}),
        ("resume_from_checkpoint: true", "true"),
        ("resume_from_checkpoint: false", "false"),
        ("eos_token: <|im_end|>", "<|im_end|>"),
        ("eval_size: 0.1", 0.1),
    ],
)
def test_value_as_written_becomes_typed(write, line, value):
    run = Run.from_file(write(f"use_peft: true\n{line}\n"))

    found = run.explicit[line.partition(":")[0]]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ("--bf16", "bf16", True),
        ("--bf16 False", "bf16", False),
        ("--bf16=true", "bf16", True),
        ("--no_gradient_checkpointing", "gradient_checkpointing", False),
        ("--no-dataloader-pin-memory", "dataloader_pin_memory", False),
        ("--learning-rate=1e-4", "learning_rate", 1e-4),
        ("--lora_target_modules q_proj v_proj", "lora_target_modules", ["q_proj", "v_proj"]),
        ("--lora_target_modules all-linear", "lora_target_modules", ["all-linear"]),
        ("--max_steps -1", "max_steps", -1),
        ("--activation_checkpointing", "activation_checkpointing", True),
        ("--fsdp", "fsdp", True),
        ("--max_length none", "max_length", None),
        ("--report_to none", "report_to", "none"),
        ("--datasets a/b c/d", "datasets", [{"path": "a/b"}, {"path": "c/d"}]),
        ("--seed 1 --seed 2", "seed", 2),
        ("--local-rank=0", "local_rank", 0),
        ("--optim_args=--x=1", "optim_args", "--x=1"),
    ],
)
def test_flag_as_hf_argument_parser_takes_it_becomes_typed(flags, name, value):
    assert Run.from_flags([*flags.split(), "--use_peft"]).explicit[name] == value


def test_flag_json_mapping_becomes_dict():
    text = json.dumps({"use_reentrant": False})
    run = Run.from_flags(["--gradient_checkpointing_kwargs", text])
    assert run.get("gradient_checkpointing_kwargs") == {"use_reentrant": False}


def test_flags_win_over_file_and_file_over_default(write):
    path = write("learning_rate: 1e-4\nseed: 1\nlaunch: {gpu: L4, gpus_per_node: 1}\n")
    flags = ["--learning_rate=3e-4", "--launch.gpus_per_node", "8", "--launch.strategy=zero3"]

    run = Run.from_file(path, [*flags, "--launch.cpu", "--slurm.time=01:00:00"])

    assert (run.get("learning_rate"), run.get("seed")) == (3e-4, 1)
    assert (run.launch.gpu, run.launch.gpus_per_node, run.launch.strategy) == ("L4", 8, "zero3")
    assert run.launch.cpu is True
    assert run.slurm.time == "01:00:00"
    assert Run.from_flags(["--config", str(path), *flags]).explicit == run.explicit
    assert Run.from_flags([f"--config={path}", *flags]).launch.strategy == "zero3"


def test_blocks_written_as_yaml_times_and_numbers_stay_texts(write):
    run = Run.from_file(write("slurm: {time: 08:00:00, partition: 1, mem: 64G}\nlaunch:\n"))

    assert (run.slurm.time, run.slurm.partition, run.slurm.mem) == ("08:00:00", "1", "64G")
    assert run.launch.strategy == "auto"


def test_trl_eight_gpu_command_flag_for_flag():
    command = (
        "--dataset_name HuggingFaceH4/llava-instruct-mix-vsft "
        "--model_name_or_path llava-hf/llava-1.5-7b-hf --per_device_train_batch_size 8 "
        "--gradient_accumulation_steps 8 --output_dir sft-llava-1.5-7b-hf --bf16 "
        "--torch_dtype bfloat16 --gradient_checkpointing"
    )
    run = Run.from_flags(command.split())

    assert run.explicit == {
        "dataset_name": "HuggingFaceH4/llava-instruct-mix-vsft",
        "model_name_or_path": "llava-hf/llava-1.5-7b-hf",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 8,
        "output_dir": "sft-llava-1.5-7b-hf",
        "bf16": True,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
    }
    assert run.notes == ("--torch_dtype: torch_dtype is now dtype",)


def test_yaml_merge_keys_and_anchors_are_followed(write):
    run = Run.from_file(write("launch: &one\n  gpu: L4\n  nodes: 2\nslurm: {}\n", "a.yaml"))
    assert run.launch.nodes == 2
    run = Run.from_file(write("<<: {seed: 1, learning_rate: 1e-3}\nseed: 2\n", "b.yaml"))
    assert run.explicit == {"learning_rate": 1e-3, "seed": 2}


def test_global_batch_is_kept_on_any_world_size(monkeypatch):
    flags = ["--global_batch_size", "128", "--per_device_train_batch_size", "4"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Run.from_flags(flags).get("gradient_accumulation_steps") == 8
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert Run.from_flags(flags).get("gradient_accumulation_steps") == 4
    monkeypatch.delenv("WORLD_SIZE")
    assert Run.from_flags(flags).get("gradient_accumulation_steps") == 32


def test_global_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    flags = ["--global_batch_size", "128", "--per_device_train_batch_size", "4"]
    with pytest.raises(RunFileError, match=r"128 is no multiple of .* 4 × 3 ranks"):
        Run.from_flags(flags)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RunFileError, match="or accumulate 8"):
        Run.from_flags([*flags, "--gradient_accumulation_steps", "2"])


def test_run_require_names_what_is_missing(write):
    run = Run.from_file(write("output_dir: out\n"))
    run.require("output_dir")
    with pytest.raises(RunFileError, match=r"train\.yaml: model_name_or_path is missing"):
        run.require("output_dir", "model_name_or_path")


def test_precision_of_accelerate_is_noted_where_sft_config_differs(write):
    run = Run.from_file(write("mixed_precision: fp16\ngradient_clipping: 0.5\nbf16: false\n"))

    assert run.accelerate == {}
    assert [note.partition(": ")[2] for note in run.notes] == [
        "mixed_precision fp16 is not used: bf16 and fp16 decide, here no",
        "gradient_clipping 0.5 is not used: max_grad_norm decide, here 1.0",
    ]


def test_config_file_of_accelerate_is_its_accelerate_config(write, tmp_path):
    preset = write("distributed_type: DEEPSPEED\n", "mine.yaml")
    run = Run.from_file(write(f"config_file: {preset}\n"))
    assert run.accelerate == {"accelerate_config": str(preset)}


def test_settings_without_effect_are_told_with_the_differences(write):
    run = Run.from_file(write("lr_scheduler_type: constant\nwarmup_steps: 10\nlora_r: 8\n"))

    assert run.notes == ()
    assert "constant ignores warmup_steps" in run.differences()[2]
    assert "lora_r does nothing without use_peft" in run.differences()[3]


def test_help_lists_every_field_by_owner(capsys):
    with pytest.raises(SystemExit) as done:
        Run.from_flags(["--help"])

    text = capsys.readouterr().out
    assert done.value.code == 0
    for word in ("SFTConfig:", "--learning_rate", "ModelConfig:", "--lora_r", "--eval_size"):
        assert word in text


def test_trl_parser_and_run_agree_on_a_file_and_flags(write):
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    lines = TRL_SFT_YAML.replace("torch_dtype", "dtype").replace("max_seq_length", "max_length")
    lines = lines.replace("warmup_ratio", "warmup_steps").partition("zero_stage: 3\n")[2]
    # TRL has no answer to a bare `no`, which YAML makes false.
    path = write(lines.replace("eval_strategy: no", "eval_strategy: 'no'") + "use_cpu: true\n")
    flags = ["--seed", "7", "--no_dataloader_pin_memory", "--lora_target_modules", "q_proj", "v"]
    flags += ["--gradient_checkpointing_kwargs", '{"use_reentrant": true}', "--bf16", "True"]
    classes = (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig)

    theirs = TrlParser(classes).parse_args_and_config(["--config", str(path), *flags])
    run = Run.from_flags(["--config", str(path), *flags])

    for cls, parsed in zip(classes, theirs, strict=True):
        assert _settings(run.arguments(cls)) == _settings(parsed)


def _settings(arguments: object) -> dict[str, object]:
    """The fields of a dataclass, without what it makes of the moment, such as the device."""
    names = [field.name for field in dataclasses.fields(arguments) if field.init]
    settings = {name: getattr(arguments, name) for name in names}
    return {name: getattr(value, "__dict__", value) for name, value in settings.items()}

"""Names of old are understood, each with one note that says what became of it."""

from __future__ import annotations

import pytest

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.run.fields import field_table
from sailplan.run.legacy import legacy_names
from sailplan.run.legacy_names import GONE, RENAMED

TRANSLATED = {
    # written: (what becomes of it, the variables that are set, a word of the note)
    "torch_dtype: bfloat16": ({"dtype": "bfloat16"}, {}, "is now dtype"),
    "torch_dtype: torch.float16": ({"dtype": "float16"}, {}, "is now dtype"),
    "bnb_4bit_compute_dtype: bf16": ({"dtype": "bfloat16"}, {}, "is now dtype"),
    "warmup_ratio: 0.03": ({"warmup_steps": 0.03}, {}, "a share of all steps"),
    "group_by_length: true": ({"train_sampling_strategy": "group_by_length"}, {}, "is now"),
    "group_by_length: false": ({}, {}, "train_sampling_strategy"),
    "logging_dir: logs": ({}, {"TENSORBOARD_LOGGING_DIR": "logs"}, "TENSORBOARD_LOGGING_DIR"),
    "batch_size: 128": ({"global_batch_size": 128}, {}, "over all ranks"),
    "cutoff_len: 512": ({"max_length": 512, "over_length": "truncate_text"}, {}, "max_length"),
    "val_set_size: 2000": ({"eval_size": 2000.0}, {}, "is now eval_size"),
    "val_set_size: 0": ({}, {}, "is now eval_size"),
    "train_on_inputs: true": ({"assistant_only_loss": False}, {}, "its opposite"),
    "train_on_inputs: false": ({"assistant_only_loss": True}, {}, "its opposite"),
    "wandb_project: p": ({"report_to": "wandb"}, {"WANDB_PROJECT": "p"}, "WANDB_PROJECT"),
    "wandb_project: ''": ({}, {}, "WANDB_PROJECT"),
    "wandb_run_name: r": ({"run_name": "r"}, {}, "is now run_name"),
    "wandb_watch: all": ({}, {"WANDB_WATCH": "all"}, "WANDB_WATCH"),
    "wandb_log_model: 'true'": ({}, {"WANDB_LOG_MODEL": "true"}, "WANDB_LOG_MODEL"),
    "use_flash_attention_2: true": (
        {"attn_implementation": "flash_attention_2"},
        {},
        "attn_implementation",
    ),
    "use_flash_attn: false": ({}, {}, "attn_implementation"),
    "use_auth_token: true": ({}, {}, "is gone"),
    "use_auth_token: abc": ({"hub_token": "abc"}, {}, "is now hub_token"),
    "gradient_checkpointing_use_reentrant: false": (
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {},
        "gradient_checkpointing_kwargs",
    ),
    "adafactor: true": ({"optim": "adafactor"}, {}, "is now optim"),
}

VALUES = {
    "bool": ("true", True),
    "int": ("7", 7),
    "float": ("7", 7.0),
    "list": ("a", ["a"]),
    "dict": ("{a: 7}", {"a": 7}),
}


def read(tmp_path, text: str, *flags: str) -> Run:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return Run.from_file(path, flags)


@pytest.mark.parametrize("line", TRANSLATED)
def test_legacy_setting_is_rewritten_with_one_note(tmp_path, line):
    explicit, env, word = TRANSLATED[line]

    run = read(tmp_path, line + "\n")

    assert run.explicit == explicit
    assert run.env == env
    (note,) = run.notes
    assert note.startswith(f"{tmp_path}/train.yaml:1: {line.partition(':')[0]} is ")
    assert word in note


@pytest.mark.parametrize("name", RENAMED)
def test_legacy_name_is_renamed_with_one_note(tmp_path, name):
    new = RENAMED[name]
    field = field_table()[new]
    kinds = field.type.kinds - {"list"} if "str" in field.type.kinds else field.type.kinds
    kind = next((kind for kind in VALUES if kind in kinds), "str")
    choice = field.choices[0] if field.choices else "word"
    written, value = VALUES.get(kind, (choice, choice))

    run = read(
        tmp_path,
        f"use_peft: true\n{name}: {written}\n".removeprefix(
            "use_peft: true\n" if new == "use_peft" else ""
        ),
    )

    assert run.explicit[new] == value
    (note,) = run.notes
    assert note.endswith(f": {name} is now {new}")


@pytest.mark.parametrize("name", GONE)
def test_legacy_name_that_is_gone_does_nothing_and_is_noted(tmp_path, name):
    run = read(tmp_path, f"{name}: true\n")

    assert run.explicit == {}
    (note,) = run.notes
    assert f"{name} is gone: {GONE[name]}" in note


def test_legacy_names_are_no_fields_of_today_and_every_one_is_tested():
    assert not legacy_names() & set(field_table())
    tested = {line.partition(":")[0] for line in TRANSLATED} | set(RENAMED) | set(GONE)
    assert legacy_names() == tested


def test_legacy_names_of_the_issue_are_known():
    assert {
        "torch_dtype",
        "max_seq_length",
        "evaluation_strategy",
        "warmup_ratio",
        "group_by_length",
        "logging_dir",
        "save_safetensors",
        "overwrite_output_dir",
        "tokenizer",
    } <= legacy_names()


def test_old_and_new_name_equal_is_one_value(tmp_path):
    run = read(tmp_path, "torch_dtype: bfloat16\ndtype: bfloat16\n")
    assert run.explicit == {"dtype": "bfloat16"}


def test_legacy_flag_wins_over_the_files_new_name(tmp_path):
    run = read(tmp_path, "max_length: 512\n", "--max_seq_length", "1024")
    assert run.get("max_length") == 1024


def test_warmup_steps_wins_over_warmup_ratio_unless_zero(tmp_path):
    run = read(tmp_path, "warmup_steps: 10\nwarmup_ratio: 0.1\n")
    assert run.get("warmup_steps") == 10
    assert "and wins" in run.notes[0]
    assert read(tmp_path, "warmup_steps: 0\nwarmup_ratio: 0.1\n").get("warmup_steps") == 0.1


def test_legacy_bool_that_is_none_is_refused(tmp_path):
    with pytest.raises(RunFileError, match="group_by_length is 'maybe'; allowed: true or false"):
        read(tmp_path, "group_by_length: maybe\n")


def test_alpaca_lora_command_flag_for_flag(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    run = Run.from_flags(
        [
            *("--base_model", "decapoda-research/llama-7b-hf"),
            *("--data_path", "yahma/alpaca-cleaned"),
            *("--output_dir", "./lora-alpaca"),
            *("--batch_size", "128"),
            *("--micro_batch_size", "4"),
            *("--num_epochs", "3"),
            *("--learning_rate", "1e-4"),
            *("--cutoff_len", "512"),
            *("--val_set_size", "2000"),
            *("--lora_r", "8"),
            *("--lora_alpha", "16"),
            *("--lora_dropout", "0.05"),
            *("--lora_target_modules", "[q_proj,v_proj]"),
            "--train_on_inputs",
            "--group_by_length",
            *("--prompt_template_name", "alpaca"),
            *("--wandb_project", "alpaca"),
            *("--resume_from_checkpoint", "None"),
            "--add_eos_token=False",
        ]
    )

    assert run.explicit == {
        "model_name_or_path": "decapoda-research/llama-7b-hf",
        "dataset_name": "yahma/alpaca-cleaned",
        "output_dir": "./lora-alpaca",
        "per_device_train_batch_size": 4,
        "global_batch_size": 128,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": 3.0,
        "learning_rate": 1e-4,
        "max_length": 512,
        "over_length": "truncate_text",
        "eval_size": 2000.0,
        "use_peft": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "v_proj"],
        "assistant_only_loss": False,
        "train_sampling_strategy": "group_by_length",
        "alpaca_template": "alpaca",
        "report_to": "wandb",
        "resume_from_checkpoint": None,
    }
    # One for each name of old, and one for use_peft.
    assert len(run.notes) == 13

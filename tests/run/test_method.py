"""`method`, and a micro batch of `auto`: what they become, and who may leave them open."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.run.method import method_of, with_method


def run(folder: Path, *flags: str) -> Run:
    path = folder / "run.yaml"
    path.write_text("model_name_or_path: a/b\ndataset_name: c/d\n")
    return Run.from_file(path, flags)


@pytest.mark.parametrize(
    ("flags", "method", "fields"),
    [
        (("--method", "full"), "full", {"use_peft": False, "load_in_4bit": False}),
        (("--method", "lora"), "lora", {"use_peft": True, "dtype": "bfloat16"}),
        (("--method", "qlora"), "qlora", {"use_peft": True, "load_in_4bit": True}),
        (("--method", "lora", "--dtype", "float16"), "lora", {"dtype": "float16"}),
        (("--method", "auto"), "auto", {"use_peft": False}),
        (("--method", "auto", "--use_peft"), "lora", {"method": None}),
        (("--method", "qlora", "--no_load_in_4bit"), "lora", {"load_in_4bit": False}),
        ((), "full", {"dtype": "float32"}),
    ],
)
def test_method_is_what_its_fields_say(
    tmp_path: Path, flags: tuple[str, ...], method: str, fields: dict[str, object]
) -> None:
    wanted = run(tmp_path, *flags)
    assert method_of(wanted) == method
    assert {name: wanted.get(name) for name in fields} == fields


def test_method_against_a_written_field_says_which_wins(tmp_path: Path) -> None:
    assert run(tmp_path, "--method", "full", "--use_peft").notes == (
        "--method: use_peft: true wins over method: full",
    )
    assert run(tmp_path, "--method", "auto", "--no_use_peft").notes == (
        "--method: method auto is not used: use_peft is written",
    )


def test_decided_method_is_written_with_its_fields(tmp_path: Path) -> None:
    decided = with_method(run(tmp_path, "--method", "auto"), "qlora")
    assert "\nuse_peft: true\n" in decided.run_yaml()
    (tmp_path / "again.yaml").write_text(decided.run_yaml())
    assert Run.from_file(tmp_path / "again.yaml").explicit == decided.explicit


def test_micro_batch_auto_is_kept_where_the_global_batch_is_written(tmp_path: Path) -> None:
    flags = ("--per_device_train_batch_size", "auto", "--global_batch_size", "32")
    assert run(tmp_path, *flags).get("per_device_train_batch_size") == "auto"


def test_micro_batch_auto_without_global_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="auto without global_batch_size; write the samples"):
        run(tmp_path, "--per_device_train_batch_size", "auto")


@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "auto"),
        ("--per_device_train_batch_size", "auto", "--global_batch_size", "32"),
    ],
)
def test_entry_script_refuses_what_only_the_plan_decides(flags: tuple[str, ...]) -> None:
    with pytest.raises(RunFileError, match="is auto; start it with `sailplan train`"):
        Run.from_flags(flags)

"""The field table is what the installed libraries really have."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
import typing
from enum import Enum

import pytest

from sailplan.run.accelerate_flags import accelerate_flags
from sailplan.run.arguments import SailplanArguments, SailplanDatasetConfig
from sailplan.run.fields import dataset_table, field_table


@pytest.fixture(scope="module")
def live() -> dict[str, tuple[str, dataclasses.Field, object]]:
    """Every field of the live dataclasses by name, with its owner and resolved type."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    found = {}
    for cls in (ScriptArguments, DatasetMixtureConfig, SFTConfig, ModelConfig, SailplanArguments):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.init:
                found[field.name] = (cls.__name__, field, hints[field.name])
    return found


def test_table_names_and_owners_equal_live_dataclasses(live):
    assert {name: field.owner for name, field in field_table().items()} == {
        name: owner for name, (owner, _, _) in live.items()
    }


def test_table_defaults_equal_live_dataclasses(live):
    for name, (_, field, _) in live.items():
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        assert field_table()[name].default == default, name


def test_table_help_equals_live_dataclasses(live):
    for name, (_, field, _) in live.items():
        help_ = field.metadata.get("help", "").replace("%%", "%")
        assert field_table()[name].help == help_, name


def test_table_choices_equal_live_metadata_and_enumerations(live):
    for name, (_, field, hint) in live.items():
        choices = field.metadata.get("choices")
        for part in typing.get_args(hint) or [hint]:
            if isinstance(part, type) and issubclass(part, Enum):
                choices = [member.value for member in part]
        assert field_table()[name].choices == (tuple(choices) if choices else None), name


def test_table_types_equal_live_annotations(live):
    names = {str: "str", int: "int", float: "float", bool: "bool", type(None): "none"}
    for name, (_, _, hint) in live.items():
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = set()
        for part in typing.get_args(hint) if is_union else [hint]:
            origin = typing.get_origin(part) or part
            if origin in (list, dict):
                kinds.add(origin.__name__)
            elif origin is typing.Literal:
                kinds |= {names[type(value)] for value in typing.get_args(part)}
            elif isinstance(part, type) and issubclass(part, Enum):
                kinds.add("str")
            else:
                kinds.add(names.get(part, "other"))
        assert field_table()[name].type.kinds == kinds, name


def test_dataset_table_equals_live_dataclass():
    from trl.scripts.utils import DatasetConfig

    theirs = [field.name for field in dataclasses.fields(DatasetConfig)]
    ours = [field.name for field in dataclasses.fields(SailplanDatasetConfig)]
    assert list(dataset_table()) == theirs + ours


def test_accelerate_flags_equal_live_parser(live):
    from accelerate.commands.launch import launch_command_parser

    actions = launch_command_parser()._actions
    options = {option[2:] for action in actions for option in action.option_strings}
    missing = {name for name in accelerate_flags() if name not in options}
    assert not missing
    unknown = {option.replace("-", "_") for option in options} - set(accelerate_flags())
    assert unknown - set(live) <= {
        "help",
        "h",
        "m",
        "t",
        "module",
        "no_python",
        "config_file",
        "env",
        "",
    }
    assert accelerate_flags()["num_processes"].type.kinds == {"int"}
    assert accelerate_flags()["use_deepspeed"].type.kinds == {"bool"}
    assert accelerate_flags()["mixed_precision"].choices == ("no", "fp16", "bf16", "fp8")


def test_config_import_and_read_loads_no_heavy_library(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("model_name_or_path: a\nnum_processes: 2\n")
    code = (
        "import sys; from sailplan.run.config import Run; import sailplan.run.directory;"
        f"Run.from_file({str(file)!r});"
        "print(sorted({name.partition('.')[0] for name in sys.modules} &"
        " {'torch', 'transformers', 'trl', 'accelerate', 'datasets', 'peft', 'numpy'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"

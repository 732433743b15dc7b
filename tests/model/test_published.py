"""Every model of the built-in table has exactly the parameters that were published of it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.initialization import no_init_weights

from sailplan.files import folder
from sailplan.model.load import classes
from sailplan.model.published import Published, names, published
from sailplan.plan.simulation.depth import config_of
from sailplan.run.config import Run

LAUNCH = sorted(folder("launch").glob("*.yaml"))


def known(name: str) -> Published:
    found = published(name)
    assert found is not None, f"{name} is not in the table"
    return found


def build(model: Published) -> Any:
    """Returns the model that training would load, without memory and without drawing weights."""
    config = config_of(model.config)
    auto_class, model_class = classes(config, model.name)
    with torch.device("meta"), no_init_weights():
        built = auto_class.from_config(config)
    built.tie_weights()  # drawing the weights would have done it
    assert type(built) is model_class
    return built


@pytest.mark.parametrize("name", names())
def test_model_of_the_table_has_the_published_number_of_parameters(name: str) -> None:
    model = known(name)
    assert sum(parameter.numel() for parameter in build(model).parameters()) == model.parameters
    if model.parameters_exact:
        published_count = int(model.published_count.replace(",", ""))
        assert model.parameters + model.also_published == published_count
    else:
        digits, unit = model.published_count[:-1], {"B": 1e9, "M": 1e6}[model.published_count[-1]]
        decimals = len(digits.partition(".")[2])
        assert f"{model.parameters / unit:.{decimals}f}" == digits


OLDER_FIELDS = {
    *("architectures", "model_type", "torch_dtype", "rope_theta", "rope_scaling"),
    *("vit_config", "vit_layers", "in_chans", "spatial_patch_size", "vision_token_id"),
    *("use_sliding_window", "pad_token_id", "bos_token_id", "eos_token_id", "norm_topk_prob"),
    *("sliding_window_pattern", "rope_local_base_freq", "num_image_tokens", "projection_dim"),
    *("is_composition", "head_dim", "vocab_size", "tie_word_embeddings"),
}
"""Fields that the repositories hold and that transformers reads elsewhere, renames or ignores."""


def unknown_fields(config: Any, fields: dict[str, Any]) -> set[str]:
    """Returns the fields that would change nothing in a config."""
    known_fields = {field.name for field in dataclasses.fields(config)} | {*config.attribute_map}
    found = set()
    for key, value in fields.items():
        inner = getattr(config, key, None)
        if isinstance(value, dict) and hasattr(inner, "model_type"):
            found |= unknown_fields(inner, value)
        elif key not in known_fields:
            found.add(key)
    return found


@pytest.mark.parametrize("name", names())
def test_config_of_the_table_holds_no_misspelled_field(name: str) -> None:
    model = known(name)
    config, text = config_of(model.config), config_of(model.config).get_text_config()
    flat = "text_config" not in model.config and model.config["model_type"].endswith("_vl")
    expected = {field.name for field in dataclasses.fields(text)} if flat else set()
    assert unknown_fields(config, model.config) <= OLDER_FIELDS | expected
    written = model.config.get("text_config", model.config)
    rope = text.rope_parameters.get("full_attention", text.rope_parameters)
    if "rope_theta" in written:
        assert rope["rope_theta"] == written["rope_theta"]
    for key, value in (written.get("rope_scaling") or {}).items():
        if key not in ("type", "rope_type"):
            assert rope[key] == value, key


@pytest.mark.parametrize("name", [name for name in names() if known(name).processor])
def test_processor_of_the_table_is_one_that_transformers_can_make(name: str) -> None:
    fields = dict(known(name).processor)
    fields.pop("processor_class")
    saved = getattr(transformers, fields.pop("image_processor_type"))(**fields).to_dict()
    if "min_pixels" in fields:  # an older spelling of the size
        assert saved["size"]["shortest_edge"] == fields.pop("min_pixels")
        assert saved["size"]["longest_edge"] == fields.pop("max_pixels")
    for key, value in fields.items():
        assert saved[key] == value, key


def test_vision_models_are_the_ones_with_a_processor() -> None:
    for name in names():
        sees = any("vision_config" in key or "vit_config" in key for key in known(name).config)
        assert sees == bool(known(name).processor), name


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
def test_every_model_of_the_launch_folder_is_in_the_table(path: Path) -> None:
    known(Run.from_file(path).get("model_name_or_path"))


def test_alias_and_other_case_lead_to_the_same_model() -> None:
    assert known("qwen/qwen2-vl-7b") == known("Qwen/Qwen2-VL-7B-Instruct")
    assert known("Qwen/Qwen2-VL-7B-Instruct/").name == "Qwen/Qwen2-VL-7B-Instruct"


def test_unknown_name_gives_none() -> None:
    assert published("someone/their-model") is None
    assert published("../secret") is None


def test_no_name_belongs_to_two_models() -> None:
    every = [name for model in map(known, names()) for name in (model.name, *model.aliases)]
    assert len({name.lower() for name in every}) == len(every)


def test_table_is_read_without_torch() -> None:
    program = (
        "import sys\n"
        "from sailplan.model.published import names, published\n"
        "assert all(published(name) for name in names())\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

"""Loading a model and its processor, and each way in which a folder can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sailplan.errors import ModelError
from sailplan.model.load import attention, load_model
from sailplan.model.processor import load_processor
from sailplan.run.config import Run

Folders = Callable[[str], Path]


def run_of(model: Path | str, **fields: Any) -> Run:
    return Run(explicit={"model_name_or_path": str(model), **fields})


@pytest.fixture
def copy(tiny_model: Folders, tmp_path: Path) -> Path:
    """A llama's folder that a test may break."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


@pytest.mark.parametrize(
    ("family", "model_class", "processor_class"),
    [
        ("qwen2_vl", "Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
        ("llava", "LlavaForConditionalGeneration", "LlavaProcessor"),
        ("pixtral", "LlavaForConditionalGeneration", "PixtralProcessor"),
        ("mllama", "MllamaForConditionalGeneration", "MllamaProcessor"),
        ("llama", "LlamaForCausalLM", "PreTrainedTokenizerBase"),
    ],
)
def test_load_family_gives_its_model_and_processor(
    tiny_model: Folders, family: str, model_class: str, processor_class: str
) -> None:
    run = run_of(tiny_model(family))

    model, processor = load_model(run), load_processor(run)

    assert type(model).__name__ == model_class
    assert isinstance(processor, getattr(transformers, processor_class))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == attention(run)[0] == "sdpa"


@pytest.mark.parametrize("written", ["bfloat16", "auto"])
def test_load_model_dtype_is_what_is_written_or_saved(copy: Path, written: str) -> None:
    if written == "auto":
        load_model(run_of(copy, dtype="bfloat16")).save_pretrained(copy)

    assert load_model(run_of(copy, dtype=written)).dtype == torch.bfloat16


def test_load_model_4bit_is_nf4_with_double_quantisation(tiny_model: Folders) -> None:
    fields = {"load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "bfloat16"}

    model = load_model(run_of(tiny_model("llama"), use_peft=True, **fields))

    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert layer.compute_dtype == torch.bfloat16
    assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    assert type(model.lm_head) is torch.nn.Linear


def test_load_model_8bit_quantises_its_linear_layers(tiny_model: Folders) -> None:
    model = load_model(run_of(tiny_model("llama"), use_peft=True, load_in_8bit=True))

    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, bitsandbytes.nn.Linear8bitLt)
    assert layer.weight.dtype == torch.int8


def test_load_model_attention_that_does_not_exist_names_the_way_out(tiny_model: Folders) -> None:
    with pytest.raises(ModelError, match="write attn_implementation: auto") as caught:
        load_model(run_of(tiny_model("llama"), attn_implementation="nonesuch"))

    assert "\n" not in str(caught.value)


def _remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _adapter_only(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _broken_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def _unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nonesuch"}')


def _encoder(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "clip_vision_model"}')


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (folder / "model.safetensors").write_text(pointer)


def _truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _missing_shard(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "model-00002-of-00003.safetensors").unlink()


def _missing_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_config, "has no config.json; allowed: a folder written by save_pretrained"),
        (_adapter_only, "holds an adapter, not a model; name its base model"),
        (_broken_json, "config.json is not valid JSON; download the model again"),
        (_unknown_architecture, "has model type `nonesuch`"),
        (_encoder, "is a clip_vision_model model, which neither"),
        (_no_weights, "no file named model.safetensors"),
        (_lfs_pointer, "model.safetensors is a Git-LFS pointer"),
        (_truncated, "model.safetensors is truncated or corrupt"),
        (_missing_shard, "lacks model-00002-of-00003.safetensors"),
        (_missing_tensor, "lacks the weights of 1 tensors, such as model.layers.1.mlp.up_proj"),
        (_other_shapes, "do not have the shapes that its config.json describes"),
    ],
)
def test_load_model_folder_is_wrong_says_what_to_do_in_one_line(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)

    with pytest.raises(ModelError) as caught:
        load_model(run_of(copy))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_model, load_processor])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/model", "there is no model folder /no/such/model"),
        ("./none", "there is no model folder ./none"),
        ("someone/nonesuch", "not in the local cache, and the hub is switched off"),
        ("", "model_name_or_path is not written"),
    ],
)
def test_load_name_leads_nowhere_says_what_to_do_in_one_line(
    load: Callable[[Run], Any], name: str, message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        load(run_of(name))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_processor_without_tokenizer_files_is_a_model_error(copy: Path) -> None:
    for file in copy.glob("token*"):
        file.unlink()

    with pytest.raises(ModelError, match="could not be loaded: Unrecognized processing class"):
        load_processor(run_of(copy))


@pytest.mark.parametrize(
    ("own", "written", "expected"),
    [
        ("<|finetune_right_pad_id|>", None, "<|finetune_right_pad_id|>"),
        ("<|finetune_right_pad_id|>", "<|end_of_text|>", "<|end_of_text|>"),
        (None, None, "<|eot_id|>"),
    ],
)
def test_load_processor_pad_token_is_written_else_own_else_eos(
    copy: Path, own: str | None, written: str | None, expected: str
) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": own}))

    processor = load_processor(run_of(copy, pad_token=written))

    assert processor.pad_token == expected
    assert processor.eos_token == "<|eot_id|>"


@pytest.mark.parametrize("field", ["pad_token", "eos_token"])
def test_load_processor_token_not_in_the_vocabulary_is_refused(
    tiny_model: Folders, field: str
) -> None:
    with pytest.raises(ModelError, match=f"{field} '<none>' is not in the vocabulary"):
        load_processor(run_of(tiny_model("llama"), **{field: "<none>"}))


def test_load_processor_chat_template_is_a_file_or_another_models(
    tiny_model: Folders, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}")
    llama, mllama = tiny_model("llama"), tiny_model("mllama")

    ours = load_processor(run_of(llama, chat_template_path=str(file)))
    same = load_processor(run_of(mllama, chat_template_path=str(llama)))

    assert ours.chat_template == "{{ messages }}"
    assert same.chat_template == load_processor(run_of(llama)).chat_template


@pytest.mark.parametrize(
    ("family", "source", "message"),
    [
        ("llama", "none.jinja", "none.jinja cannot be read"),
        ("llava", "qwen2_vl", "needs image tokens that the model lacks"),
    ],
)
def test_load_processor_chat_template_does_not_fit_is_refused(
    tiny_model: Folders, family: str, source: str, message: str
) -> None:
    path = source if source.endswith(".jinja") else str(tiny_model(source))

    with pytest.raises(ModelError, match=message):
        load_processor(run_of(tiny_model(family), chat_template_path=path))

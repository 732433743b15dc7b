"""LLaMA in Meta's layout: the published settings, the permuted rows, files that torch loads."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from sailplan.errors import ModelError, OutputError
from sailplan.export.meta import export_meta, params
from sailplan.export.torch_file import write_torch_file

PUBLISHED = {
    "LLaMA-7B": ((4096, 32, 32, 32, 11008), {"multiple_of": 256}),
    "LLaMA-13B": ((5120, 40, 40, 40, 13824), {"multiple_of": 256}),
    "LLaMA-30B": ((6656, 60, 52, 52, 17920), {"multiple_of": 256}),
    "LLaMA-65B": ((8192, 80, 64, 64, 22016), {"multiple_of": 256}),
    "LLaMA-2-70B": (
        (8192, 80, 64, 8, 28672),
        {"multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_kv_heads": 8},
    ),
    "LLaMA-3-8B": (
        (4096, 32, 32, 8, 14336),
        {"multiple_of": 1024, "ffn_dim_multiplier": 1.3, "n_kv_heads": 8},
    ),
}
"""Of each published model: dim, layers, heads, key-value heads, feed-forward size."""


def size_of(dim: int, multiple_of: int, ffn_dim_multiplier: float | None = None) -> int:
    """Meta's own formula (llama/model.py, FeedForward)."""
    hidden = int(2 * 4 * dim / 3)
    if ffn_dim_multiplier is not None:
        hidden = int(ffn_dim_multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_published_ones(name: str) -> None:
    (dim, layers, heads, kv_heads, size), published = PUBLISHED[name]
    config = LlamaConfig(
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=size,
        rms_norm_eps=1e-6,
    )
    found = params(config)
    assert found["vocab_size"] == -1
    assert (found["dim"], found["n_layers"], found["n_heads"]) == (dim, layers, heads)
    assert found["norm_eps"] == 1e-6
    assert size_of(dim, found["multiple_of"], found.get("ffn_dim_multiplier")) == size
    if "ffn_dim_multiplier" in published:
        assert found["n_kv_heads"] == kv_heads
        assert found["ffn_dim_multiplier"] == published["ffn_dim_multiplier"]
    else:
        assert {key: found[key] for key in published} == published
        assert "n_kv_heads" not in found


@pytest.mark.parametrize("size", [24, 75, 100, 300, 688])
def test_any_size_comes_back_by_metas_formula(size: int) -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=size)
    found = params(config)
    assert size_of(64, found["multiple_of"], found.get("ffn_dim_multiplier")) == size


def build(folder: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=101, num_attention_heads=4, **{**shape, **settings})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size="60KB")
    return model


def unpermuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The formula of Alpaca-LoRA's export, with the rows of key-value heads."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_metas(tmp_path: Path, kv_heads: int, tied: bool) -> None:
    model = build(tmp_path / "hf", num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    own = model.state_dict()

    weights, settings = export_meta(tmp_path / "hf", tmp_path / "meta")

    found = torch.load(weights, weights_only=True)
    assert len(found) == 3 + 2 * 9
    assert found["tok_embeddings.weight"].equal(own["model.embed_tokens.weight"])
    assert found["output.weight"].equal(own["lm_head.weight"])
    assert found["norm.weight"].equal(own["model.norm.weight"])
    for layer in range(2):
        theirs, ours = f"layers.{layer}", f"model.layers.{layer}"
        attention = {"wq": ("q_proj", 4), "wk": ("k_proj", kv_heads)}
        for short, (name, heads) in attention.items():
            expected = unpermuted(own[f"{ours}.self_attn.{name}.weight"], heads)
            assert found[f"{theirs}.attention.{short}.weight"].equal(expected)
        same = {
            "attention.wv": "self_attn.v_proj",
            "attention.wo": "self_attn.o_proj",
            "feed_forward.w1": "mlp.gate_proj",
            "feed_forward.w2": "mlp.down_proj",
            "feed_forward.w3": "mlp.up_proj",
            "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
        }
        for short, name in same.items():
            assert found[f"{theirs}.{short}.weight"].equal(own[f"{ours}.{name}.weight"]), name
    assert json.loads(settings.read_text())["dim"] == 64


def test_file_is_a_whole_archive_with_right_checksums(tmp_path: Path) -> None:
    build(tmp_path / "hf")
    weights, _ = export_meta(tmp_path / "hf", tmp_path / "meta", dtype="bfloat16")
    with zipfile.ZipFile(weights) as archive:
        assert archive.testzip() is None
    mapped = torch.load(weights, weights_only=True, mmap=True)
    assert {tensor.dtype for tensor in mapped.values()} == {torch.bfloat16}
    assert {path.name for path in weights.parent.iterdir()} == {weights.name, "params.json"}


def test_other_architectures_are_refused(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="is a Qwen2VLForConditionalGeneration; allowed: Llama"):
        export_meta(tiny_model("qwen2_vl"), tmp_path / "meta")
    build(tmp_path / "hf", attention_bias=True)
    with pytest.raises(ModelError, match="has biases"):
        export_meta(tmp_path / "hf", tmp_path / "meta")
    assert not (tmp_path / "meta").exists()


def test_folder_with_such_a_model_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "hf")
    export_meta(tmp_path / "hf", tmp_path / "meta")
    with pytest.raises(OutputError, match=r"holds consolidated\.00\.pth already"):
        export_meta(tmp_path / "hf", tmp_path / "meta")


def test_memory_stays_small_whatever_the_models_size(tmp_path: Path) -> None:
    """Of 512 MB of weights, in a process of its own."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
    config = LlamaConfig(vocab_size=32000, num_hidden_layers=5, **shape)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "hf")
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    save_file(
        {n: torch.zeros(t.shape) for n, t in shapes.items()}, tmp_path / "hf/model.safetensors"
    )
    code = """
import sys
from pathlib import Path
from benchmarks.merge_tools import Growth
from sailplan.export.meta import export_meta, plans_of
plans_of(Path(sys.argv[1]))
with Growth() as growth:
    export_meta(Path(sys.argv[1]), Path(sys.argv[2]))
print((growth.peak - growth.before) // 10**6)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "hf"), str(tmp_path / "meta")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (tmp_path / "meta" / "consolidated.00.pth").stat().st_size > 450e6
    assert int(done.stdout) < 64


def test_disk_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_torch_file([], tmp_path / "missing" / "weights.pth")

"""Base models as they lie about: without template or pad token, with settings of old."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.rows import COLOURS

CORPUS = [
    *(Path(__file__).parents[2] / "LICENSE").read_text().splitlines(),
    *(f"Say the word {colour}. {colour}" for colour in COLOURS),
    "A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT: ",
]
# tokenizer_config.json and config.json of decapoda-research/llama-7b-hf.
OLD_TOKENIZER = {
    "bos_token": "",
    "eos_token": "",
    "model_max_length": 1000000000000000019884624838656,
    "tokenizer_class": "LLaMATokenizer",
    "unk_token": "",
}
OLD_CONFIG = {
    "architectures": ["LLaMAForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": -1,
    "torch_dtype": "float16",
    "transformers_version": "4.27.0.dev0",
}


def base_tokenizer(**tokens: str) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with `<s>`, `</s>` and no chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(["<s>", "</s>", *tokens.values()]))
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"bos_token": "<s>", "eos_token": "</s>", **tokens}
    )


def base_model(folder: Path, *, tied: bool = False, **tokens: str) -> Path:
    """Writes a small random llama as it is after pre-training: no template, no pad token."""
    tokenizer = base_tokenizer(**tokens)
    tokenizer.save_pretrained(folder)
    _save_llama(folder, len(tokenizer), tied=tied, bos_token_id=0, eos_token_id=1)
    return folder


def old_llama(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    """Writes a llama as the first conversions of LLaMA are: sentencepiece, nothing named."""
    folder.mkdir(parents=True)
    _save_llama(folder, 400)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 2),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    write_json(folder / "tokenizer_config.json", OLD_TOKENIZER if settings is None else settings)
    write_json(folder / "special_tokens_map.json", {})
    change_config(folder, **OLD_CONFIG)
    return folder


def _save_llama(folder: Path, size: int, *, tied: bool = False, **settings: Any) -> None:
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def change_config(folder: Path, **values: Any) -> None:
    """Changes config.json as an editor would; None removes a key."""
    path = folder / "config.json"
    settings = {**json.loads(path.read_text()), **values}
    write_json(path, {key: value for key, value in settings.items() if value is not None})


def as_bin(folder: Path, *, shards: int = 1) -> None:
    """Rewrites a model's weights as torch files, as older versions saved them."""
    weights = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    names = [f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" for n in range(shards)]
    names = ["pytorch_model.bin"] if shards == 1 else names
    held = {key: names[n % shards] for n, key in enumerate(weights)}
    for name in names:
        part = {key: value.clone() for key, value in weights.items() if held[key] == name}
        torch.save(part, folder / name)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": held}
        write_json(folder / "pytorch_model.bin.index.json", index)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, indent=2))


def copy(source: Path, target: Path) -> Path:
    """Copies a model's folder that a test may break."""
    return Path(shutil.copytree(source, target))

"""Base models: no chat template, no pad token, wrong special tokens, added tokens, old files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sailplan.data.chat_template import ChatTemplate
from sailplan.data.encode import Encoder
from sailplan.data.labels import UNTRAINED
from sailplan.errors import ModelError, RunFileError
from sailplan.model.families import family_of
from sailplan.model.load import load_model
from sailplan.model.processor import load_processor, load_processor_and_tokens
from sailplan.model.source import load_config
from sailplan.run.config import Run
from tests.data.reading import IMAGE, chat, pieces, turn
from tests.support.launch import Entry, flags
from tests.support.rows import chat_rows


@pytest.fixture
def base(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    """A plain LLaMA: no chat template, no pad token."""
    folder = Path(shutil.copytree(tiny_model("llama"), tmp_path / "base"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    change(folder, "tokenizer_config.json", chat_template=None, pad_token=None)
    return folder


def change(folder: Path, name: str, **values: Any) -> None:
    """Sets values in a JSON file; None takes a key out."""
    content = json.loads((folder / name).read_text()) | values
    content = {key: value for key, value in content.items() if value is not None}
    (folder / name).write_text(json.dumps(content))


def run_of(folder: Path, **fields: Any) -> Run:
    return Run.from_flags(flags({"model_name_or_path": folder, "use_cpu": True, **fields}))


def train(entry: Entry, folder: Path, tmp_path: Path, **fields: Any) -> Path:
    values = {
        "model_name_or_path": folder,
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_check_steps": 0,
    }
    if "dataset_name" not in fields:
        values["dataset_name"] = chat_rows(tmp_path / "data", 8, images=False)
    end = entry(flags(values | fields))
    assert end.code == 0, end.err
    (tmp_path / "printed.txt").write_text(end.out)
    return tmp_path / "out"


CONVERSATION = chat(
    turn("user", "What?"),
    turn("assistant", "Red."),
    turn("user", "And?"),
    turn("assistant", "Blue."),
)


def encoder_of(run: Run) -> Encoder:
    return Encoder.of(run, load_processor(run), family_of(load_config(run)))


# Chat templates


def test_base_model_gets_the_default_template_and_leaves_it_in_the_output(
    entry: Entry, base: Path, tmp_path: Path
) -> None:
    out = train(entry, base, tmp_path)

    assert (
        "chat template: vicuna, since the model has none" in (tmp_path / "printed.txt").read_text()
    )
    tokenizer = AutoTokenizer.from_pretrained(out)
    asked = [{"role": "user", "content": "What?"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text.endswith("USER: What? ASSISTANT:")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert tokenizer.eos_token_id in torch.atleast_1d(
        torch.tensor(model.generation_config.eos_token_id)
    )


@pytest.mark.parametrize("name", ["vicuna", "chatml"])
def test_built_in_template_trains_answers_and_their_ends(base: Path, name: str) -> None:
    run = run_of(base, chat_template_path=name)
    processor, added = load_processor_and_tokens(run)
    family = family_of(load_config(run))
    from sailplan.model.vocabulary import grown

    found = Encoder.of(run, processor, grown(family, added)).encode(CONVERSATION, [])

    trained = [p[1:] for p in pieces(processor, found.input_ids, found.labels) if p[0] == "+"]
    end = "<|im_end|>" if name == "chatml" else "<|eot_id|>"
    assert [words.strip() for words in trained] == [f"Red.{end}", f"Blue.{end}"]
    assert bool(added) == (name == "chatml")
    assert found.method == "markers"


@pytest.mark.parametrize("name", ["vicuna", "chatml"])
def test_built_in_template_shows_images(tiny_model: Callable[[str], Path], name: str) -> None:
    run = run_of(tiny_model("qwen2_vl"), chat_template_path=name)
    processor = load_processor(run)
    text = ChatTemplate.of(processor).render(
        chat(turn("user", IMAGE, "What?"), turn("assistant", "Red."))["messages"]
    )
    assert "<|vision_start|><|image_pad|><|vision_end|>" in text


def test_text_without_chats_needs_no_template(entry: Entry, base: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "A shoe is a piece of footwear."}\n' * 8)
    out = train(entry, base, tmp_path, dataset_name=tmp_path / "text.jsonl")
    assert AutoTokenizer.from_pretrained(out).chat_template is None


def test_template_of_another_model_brings_the_tokens_that_this_one_lacks(
    base: Path, tiny_model: Callable[[str], Path]
) -> None:
    run = run_of(base, chat_template_path=tiny_model("qwen2_vl"))
    processor, added = load_processor_and_tokens(run)
    assert {"<|im_start|>", "<|im_end|>"} <= {processor.convert_ids_to_tokens(i) for i in added}


# Special tokens


def test_eos_pads_where_nothing_else_does_and_is_trained_all_the_same(base: Path) -> None:
    run = run_of(base, chat_template_path="vicuna")
    encoder = encoder_of(run)
    tokenizer = encoder.processor
    assert tokenizer.pad_token == tokenizer.eos_token

    found = encoder.encode(CONVERSATION, [])

    assert found.labels.count(tokenizer.eos_token_id) == 2


def test_saved_ids_agree_where_eos_pads(entry: Entry, base: Path, tmp_path: Path) -> None:
    out = train(entry, base, tmp_path, chat_template_path="chatml")

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    ends = model.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (
        ends if isinstance(ends, list) else [ends]
    )
    assert model.config.pad_token_id in (None, tokenizer.pad_token_id)
    assert model.get_input_embeddings().num_embeddings > tokenizer.convert_tokens_to_ids(
        "<|im_end|>"
    )


def old_llama(folder: Path) -> Path:
    """A tokenizer as the first conversions of LLaMA saved it: sentencepiece, empty tokens."""
    import sentencepiece

    corpus = folder / "corpus.txt"
    corpus.write_text("the red shoe is a piece of footwear\nwhat is it? a blue hat\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        byte_fallback=False,
        minloglevel=2,
    )
    for path in folder.glob("tokenizer.json"):
        path.unlink()
    settings = {"bos_token": "", "eos_token": "", "unk_token": "", "model_max_length": 2048}
    settings["tokenizer_class"] = "LLaMATokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_empty_special_tokens_of_old_llama_files_are_an_error_with_the_fix(base: Path) -> None:
    old_llama(base)
    with pytest.raises(ModelError) as caught:
        load_processor(run_of(base))
    assert "bos_token" in str(caught.value)
    assert "are empty; write " in str(caught.value)
    assert "eos_token: </s>" in str(caught.value)


def test_old_llama_files_load_with_the_fix(base: Path) -> None:
    old_llama(base)
    change(base, "config.json", bos_token_id=1, eos_token_id=2)
    tokenizer = load_processor(run_of(base, eos_token="</s>", bos_token="<s>"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    ids = tokenizer("red shoe")["input_ids"]
    assert ids[0] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "red shoe"


def test_eos_that_is_unk_is_an_error(base: Path) -> None:
    change(base, "tokenizer_config.json", eos_token="<unk>", unk_token="<unk>")
    with pytest.raises(ModelError, match="nothing would end an answer; write eos_token:"):
        load_processor(run_of(base))


def test_ids_of_the_config_that_mean_other_tokens_are_an_error(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    change(base, "config.json", eos_token_id=tokenizer.bos_token_id)
    with pytest.raises(
        ModelError, match=r"has eos_token_id \d+, which is the tokenizer's bos_token"
    ):
        load_processor(run_of(base))
    load_processor(run_of(base, eos_token=tokenizer.eos_token))


def test_written_token_that_the_vocabulary_lacks_is_an_error(base: Path) -> None:
    with pytest.raises(ModelError, match=r"eos_token '</none>' is not in the vocabulary"):
        load_processor(run_of(base, eos_token="</none>"))


# Added tokens

ADDED = {"added_tokens": ["<price>", "<sold out>"]}


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_embeddings_grow_by_the_added_tokens(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    run = run_of(tiny_model(family), **ADDED)
    processor, added = load_processor_and_tokens(run)
    plain = load_model(run_of(tiny_model(family)))
    model = load_model(run, added_ids=added)

    tokenizer = getattr(processor, "tokenizer", processor)
    assert [tokenizer.convert_ids_to_tokens(i) for i in added] == ADDED["added_tokens"]
    rows = plain.get_input_embeddings().num_embeddings
    assert model.get_input_embeddings().num_embeddings >= max(added) + 1 > rows - 1
    assert model.get_output_embeddings().out_features == model.config.get_text_config().vocab_size
    old = model.get_input_embeddings().weight[:rows]
    assert old.equal(plain.get_input_embeddings().weight)
    again = load_model(run, added_ids=added)
    assert again.get_input_embeddings().weight.equal(model.get_input_embeddings().weight)


def test_added_tokens_train_in_a_full_run(entry: Entry, base: Path, tmp_path: Path) -> None:
    data = chat_rows(tmp_path / "data", 8, images=False)
    data.write_text(data.read_text().replace('"content": "red', '"content": "<price> red'))
    run = run_of(base, **ADDED)
    _, added = load_processor_and_tokens(run)
    before = load_model(run, added_ids=added).get_input_embeddings().weight[added[0]]

    values = {"dataset_name": data, "chat_template_path": "vicuna", "learning_rate": 0.01}
    out = train(entry, base, tmp_path, **ADDED, **values)

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids("<price>") == added[0]
    assert not model.get_input_embeddings().weight[added[0]].equal(before)


@pytest.mark.parametrize("quantised", [False, True], ids=["lora", "qlora"])
def test_added_tokens_train_beside_an_adapter_which_reloads_to_the_same_model(
    entry: Entry, base: Path, tmp_path: Path, quantised: bool
) -> None:
    from peft import PeftModel

    data = chat_rows(tmp_path / "data", 8, images=False)
    data.write_text(data.read_text().replace('"content": "Say', '"content": "<price> Say'))
    values = {"dataset_name": data, "chat_template_path": "vicuna", "learning_rate": 0.05}
    if quantised:
        values |= {"load_in_4bit": True, "dtype": "float32"}
    out = train(entry, base, tmp_path, use_peft=True, lora_r=4, **ADDED, **values)

    settings = json.loads((out / "adapter_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    price = tokenizer.convert_tokens_to_ids("<price>")
    assert all(price in ids for ids in settings["trainable_token_indices"].values())
    run = run_of(base, **ADDED)
    _, added = load_processor_and_tokens(run)
    grown = load_model(run, added_ids=added)
    row = grown.get_input_embeddings().weight[price].clone()
    tuned = PeftModel.from_pretrained(grown, out)
    ids = tokenizer("<price> red", return_tensors="pt")
    embedded = tuned.get_input_embeddings()(ids["input_ids"])
    place = ids["input_ids"][0].tolist().index(price)
    assert not embedded[0, place].equal(row)
    from sailplan.evaluate.speaker import load_speaker

    speaker = load_speaker(str(base), adapter=str(out), use_cpu=True)
    assert torch.allclose(speaker.model(**ids).logits, tuned.eval()(**ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(["<a>", "<a>"], "added_tokens holds '<a>' twice"), ([" "], "added_tokens holds ' '")],
)
def test_added_tokens_that_are_none_are_an_error(
    base: Path, tokens: list[str], message: str
) -> None:
    run = Run(explicit={"model_name_or_path": str(base), "added_tokens": tokens})
    with pytest.raises(RunFileError, match=message):
        load_processor(run)


def test_encoder_refuses_no_added_token(base: Path) -> None:
    from sailplan.model.vocabulary import grown

    run = run_of(base, chat_template_path="vicuna", **ADDED)
    processor, added = load_processor_and_tokens(run)
    encoder = Encoder.of(run, processor, grown(family_of(load_config(run)), added))
    found = encoder.encode(chat(turn("user", "<price>?"), turn("assistant", "<price> 3")), [])
    assert added[0] in [label for label in found.labels if label != UNTRAINED]


# Code and files


def with_code(base: Path) -> Path:
    """A model whose configuration is a file of code in its folder."""
    code = "from transformers import LlamaConfig\nclass Own(LlamaConfig):\n    model_type = 'own'\n"
    model = "from transformers import LlamaForCausalLM\nclass OwnModel(LlamaForCausalLM):\n"
    model += "    config_class = Own\n"
    folder = json.dumps(str(base))
    trace = f"from pathlib import Path\nPath({folder}).joinpath('trace').touch()\n"
    (base / "own.py").write_text(trace + code + model)
    auto_map = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    change(base, "config.json", model_type="own", auto_map=auto_map)
    return base


def test_code_of_a_model_is_not_run_unless_that_is_written(base: Path) -> None:
    with_code(base)
    with pytest.raises(ModelError, match="write trust_remote_code: true if you trust the code"):
        load_config(run_of(base))
    assert not (base / "trace").exists()


def test_code_of_a_model_is_run_where_that_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    with_code(base)
    run = run_of(base, trust_remote_code=True)
    model = load_model(run)
    assert type(model).__name__ == "OwnModel"
    assert (base / "trace").exists()


@pytest.mark.parametrize("kind", ["bin", "sharded bin", "sharded safetensors"])
def test_weights_of_every_kind_of_file_load_and_leave_as_safetensors(
    entry: Entry, base: Path, tmp_path: Path, kind: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (base / "model.safetensors").unlink()
    if kind == "sharded safetensors":
        model.save_pretrained(base, max_shard_size="60KB")
    else:
        names = list(expected)
        halves = [names] if kind == "bin" else [names[::2], names[1::2]]
        files = (
            ["pytorch_model.bin"] if kind == "bin" else [f"pytorch_model-{i}.bin" for i in (0, 1)]
        )
        for file, half in zip(files, halves, strict=True):
            torch.save({name: expected[name] for name in half}, base / file)
        if kind != "bin":
            weight_map = {n: f for f, half in zip(files, halves, strict=True) for n in half}
            index = {"metadata": {}, "weight_map": weight_map}
            (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    loaded = load_model(run_of(base)).state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in expected.items())
    out = train(entry, base, tmp_path, chat_template_path="vicuna", max_steps=1)
    assert [path.name for path in out.glob("*.bin") if path.name != "training_args.bin"] == []
    assert (out / "model.safetensors").is_file()


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickle_that_would_run_code_is_not_run(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil(tmp_path / "trace")}, base / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        load_model(run_of(base))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trace").exists()

"""What every cell of the matrix is put through, step by step; the ranks are the callers'."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from sailplan.checkpoint.manifest import MANIFEST
from sailplan.errors import RunFileError
from sailplan.hardware.detect import detect
from sailplan.launcher.planned import asked_strategy
from sailplan.merge.job import Options, prepare
from sailplan.merge.output import carry_out
from sailplan.merge.verify import verify
from sailplan.model.batching import choose_batching
from sailplan.model.families import family_of, tokenizer_of
from sailplan.model.load import load_model
from sailplan.model.source import load_config
from sailplan.plan.facts.card import card_of
from sailplan.plan.of_run import plan_of
from sailplan.run.config import Run
from sailplan.run.metrics import read_series
from tests.matrix.cells import METHODS, TEXT, Cell
from tests.support.plant.faults import as_trained
from tests.support.rows import COLOURS, write_rows

ROWS, STEPS, SAVE_STEPS = 8, 4, 2
KILLED_STEP = 3
"""Steps that are done when a run is killed: it dies in the next, behind its only checkpoint."""
IMAGES_ONLY = ("paligemma",)
"""Text-only rows are refused there."""
UNPACKABLE = ("mllama", "gemma3", "molmo2", "paligemma")
"""The only families whose samples may not share a row."""
WINDOWED = ("gemma3_text",)
"""Padded as well where there is no flash attention, since some layers see a window alone."""
EXACT = 1e-4
"""How far two computations of the same float32 model may lie apart, as `distance` has it."""
QUANTISED = {"qlora": 0.4, "int8": 0.05}
"""How far a model may lie from the one that computes from quantised weights.

Measured were 0.03 to 0.3 and 0.003 to 0.024. The first are that large because on a CPU
bitsandbytes (0.50) dequantises 4-bit weights wrongly whose rows are not whole blocks of 64.
"""
ENDS = {
    **dict.fromkeys(("llava", "llava_next", "pixtral", "mistral3", "mistral"), "</s>"),
    **dict.fromkeys(("mllama", "llama"), "<|eot_id|>"),
    **dict.fromkeys(("idefics3", "smolvlm"), "<end_of_utterance>"),
    **dict.fromkeys(("gemma3", "gemma3_text"), "<end_of_turn>"),
    "paligemma": "<eos>",
}
"""What ends a turn; `<|im_end|>` of all others."""


def draw_rows(folder: Path, family: str, *, count: int = ROWS, seed: int = 0) -> Path:
    """Writes conversations about drawn pictures, one or two each, as a family can have them.

    One row has no picture and one has two turns; a text family's rows are text alone.

    Args:
        folder: Where `train.jsonl` and its pictures go; made where missing.
        family: One of the matrix.
        count: Rows.
        seed: Fixes colours, sizes and answers.

    Returns:
        The jsonl file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        pictures = 0 if family in TEXT else 1 + number % 2
        if number == 2 and family not in IMAGES_ONLY:
            pictures = 0
        colours = [chance.choice(list(COLOURS)) for _ in range(max(pictures, 1))]
        names = [f"{number}_{index}.{'png' if index else 'jpg'}" for index in range(pictures)]
        for name, colour in zip(names, colours, strict=False):
            _draw(folder / name, COLOURS[colour], chance)
        said = " ".join([*colours, *["and so on"] * chance.randrange(5)])
        turns = [("user", "Which colours are these?"), ("assistant", said)]
        if number == 3 and family not in IMAGES_ONLY:
            turns += [("user", "And the ground?"), ("assistant", "White.")]
        row: dict[str, Any] = {"messages": [_message(family, *turn) for turn in turns]}
        if family not in TEXT:
            row["images"] = names
            row["messages"][0]["content"][:0] = [{"type": "image"}] * pictures
        rows.append(row)
    return write_rows(folder, rows)


def _message(family: str, role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text if family in TEXT else [{"type": "text", "text": text}]}


def _draw(path: Path, colour: tuple[int, int, int], chance: random.Random) -> None:
    width, height = chance.randrange(56, 120), chance.randrange(56, 120)
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).ellipse((4, 4, width - 4, height - 4), fill=colour)
    image.save(path)


def fields(cell: Cell, model: Path, data: Path, output_dir: Path, **more: Any) -> dict[str, Any]:
    """Returns what the run of a cell is: four steps of two rows each, saved every two.

    Args:
        cell: The cell.
        model: The family's tiny model.
        data: What `draw_rows` wrote.
        output_dir: The run's directory.
        **more: Further fields, before those of the method.
    """
    return {
        "model_name_or_path": str(model),
        "dataset_name": str(data),
        "output_dir": str(output_dir),
        "max_steps": STEPS,
        "save_steps": SAVE_STEPS,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        **more,
        **METHODS[cell.method],
    }


def check_plan(values: Mapping[str, Any], file: Path, *, strategy: str, gpus: int) -> None:
    """Plans a run as `sailplan plan` does, on L4 GPUs; it fits, and needs something of each kind.

    Args:
        values: What `fields` returned.
        file: Where its run file is written.
        strategy: The strategy, as `launch.strategy` has it.
        gpus: How many of them.
    """
    launch = {"gpu": "L4", "gpus_per_node": gpus, "strategy": strategy}
    on_gpus = {name: value for name, value in values.items() if name != "use_cpu"}
    on_gpus["gradient_checkpointing"] = True  # left open, both ways would be simulated
    file.write_text(yaml.safe_dump({**on_gpus, "launch": launch}))
    run = Run.from_file(file)
    plan = plan_of(run, card_of(run, detect()), strategy=asked_strategy(run)[0])
    assert plan.fits
    for phase, kinds in plan.chosen.memory.phases.items():
        assert all(size >= 0 for size in kinds.values()), (phase, kinds)
    needed = plan.chosen.memory.phases["backward"]
    assert min(needed["parameters"], needed["activations"], needed["context"]) > 0
    assert 0 < plan.trained_parameters <= plan.parameters
    assert plan.chosen.time.step_s > 0
    assert plan.disk.written_bytes > 0
    assert (plan.image_tokens > 0) == bool(plan.data.images_per_row)


def check_labels(values: Mapping[str, Any], family: str) -> None:
    """Encodes a run's rows as training does: trained are the assistant's words and their end.

    Args:
        values: What `fields` returned.
        family: The family.
    """
    from sailplan.data.default_template import complete_template
    from sailplan.data.encode import Encoder
    from sailplan.data.formats import resolve_format
    from sailplan.data.images import image_opener
    from sailplan.data.labels import UNTRAINED
    from sailplan.data.prepare import prepare as encode
    from sailplan.data.sources import load_rows
    from sailplan.model.processor import load_processor

    run = Run(explicit=dict(values))
    processor, rows = load_processor(run), load_rows(run)
    facts = family_of(load_config(run))
    complete_template(processor, facts, chat=True)
    format = resolve_format(run, rows)
    encoder = Encoder.of(run, processor, facts)
    encoded = encode(run, rows, format, encoder, image_opener(run, rows)).train
    lines = Path(values["dataset_name"]).read_text().splitlines()
    assert len(encoded) == len(lines)
    tokenizer, never = tokenizer_of(processor), facts.untrained_token_ids(processor)
    for row, line in zip(encoded, lines, strict=True):
        pairs = list(zip(row["input_ids"].tolist(), row["labels"].tolist(), strict=True))
        assert all(label in (UNTRAINED, token) for token, label in pairs)
        spans = itertools.groupby((label for _, label in pairs), key=lambda one: one == UNTRAINED)
        trained = [list(span) for is_idle, span in spans if not is_idle]
        assert never.isdisjoint(itertools.chain(*trained))
        found = [tokenizer.decode(span).removeprefix(" ") for span in trained]
        end = ENDS.get(family, "<|im_end|>")
        assert found == [text + end for text in _answers(json.loads(line))]
        if row["num_images"]:
            assert row["image_tokens"] >= row["num_images"]


def _answers(row: Mapping[str, Any]) -> list[str]:
    contents = [one["content"] for one in row["messages"] if one["role"] == "assistant"]
    return [one if isinstance(one, str) else one[-1]["text"] for one in contents]


def check_batching(values: Mapping[str, Any], family: str) -> str:
    """Returns the words with which a run says how it batches; they are what the family allows.

    Args:
        values: What `fields` returned.
        family: The family.
    """
    run = Run(explicit=dict(values))
    facts = family_of(load_config(run))
    packs, words = choose_batching(run, facts, "sdpa")
    assert packs == (family not in (*UNPACKABLE, *WINDOWED))
    assert (facts.packing_obstacle is not None) == (family in UNPACKABLE)
    if family in UNPACKABLE:
        assert f"{facts.name} cannot be packed: {facts.packing_obstacle}" in words
        with pytest.raises(RunFileError, match="padded together"):
            choose_batching(Run(explicit={**values, "batching": "pack"}), facts, "sdpa")
    elif family in WINDOWED:
        assert "a sliding window of 16 tokens without flash-attn" in words
    return words


def check_batched(output_dir: Path, words: str, *, dummies: int = 0) -> None:
    """Makes sure that the steps of a run were batched as it said: packed rows have no padding.

    Args:
        output_dir: The run's directory.
        words: What it said.
        dummies: Steps in which a rank may have had a dummy image, which counts as padding.
    """
    shares = [one["padding_share"] for one in read_series(_metrics(output_dir)).records[:STEPS]]
    padded = sum(share > 0 for share in shares)
    assert (padded <= dummies) == words.startswith("batching: pack"), shares


def killing(output_dir: Path) -> dict[str, Any]:
    """Returns the fault that kills a run in its last step, once its checkpoint is whole."""
    whole = output_dir / f"checkpoint-{SAVE_STEPS}" / MANIFEST
    return {"what": "kill_in_step", "step": KILLED_STEP, "behind": str(whole)}


def check_went_on(output_dir: Path) -> None:
    """Makes sure that a run was killed, went on from its checkpoint, and took the same steps."""
    series = read_series(_metrics(output_dir))
    assert [(one.step, one.reached) for one in series.going_on] == [(SAVE_STEPS, KILLED_STEP)]
    found: dict[int, list[dict[str, Any]]] = {step: [] for step in range(1, STEPS + 1)}
    for line in _metrics(output_dir).read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            found[record["step"]].append(record)
    assert [len(records) for records in found.values()] == [1, 1, 2, 1]
    before, after = found[KILLED_STEP]
    for measured in ("loss", "grad_norm"):
        assert after[measured] == pytest.approx(before[measured], rel=1e-5)


def _metrics(output_dir: Path) -> Path:
    return output_dir / "metrics.jsonl"


def question(processor: Any, family: str) -> dict[str, torch.Tensor]:
    """Returns a fixed question with its picture as the processor makes it from its own template.

    PaliGemma is published without one, and writes the image's tokens before any text itself.

    Args:
        processor: The processor, or the tokenizer of a text family.
        family: The family.
    """
    words = "Which colours are these?"
    asked = _message(family, "user", words)
    if family not in TEXT:
        image = Image.new("RGB", (80, 70), "white")
        ImageDraw.Draw(image).rectangle((10, 20, 60, 60), fill=COLOURS["blue"])
        asked["content"].insert(0, {"type": "image", "image": image})
    if family == "paligemma":
        text = f"{processor.image_token}{words}"
        return dict(processor(text=text, images=[image], return_tensors="pt"))
    made = processor.apply_chat_template(
        [asked], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(made)


def merged(output_dir: Path, to: Path, **options: Any) -> Path:
    """Merges a run as `sailplan merge` does, looks at all of it again, and returns its folder.

    Args:
        output_dir: The run's directory.
        to: The folder that is written.
        **options: Of `Options`.
    """
    job = prepare(output_dir, Options(**options))
    verify(job, to, carry_out(job, to), "full")
    return to


def load(folder: Path, family: str) -> Any:
    """Returns the model of a folder, which has all of its weights and no others."""
    import transformers

    kind = "AutoModelForCausalLM" if family in TEXT else "AutoModelForImageTextToText"
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def load_processor(folder: Path, family: str) -> Any:
    """Returns the processor of a folder, or its tokenizer of a text family."""
    import transformers

    kind = "AutoTokenizer" if family in TEXT else "AutoProcessor"
    return getattr(transformers, kind).from_pretrained(folder)


def logits(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns what a model says of inputs, `[rows, tokens, vocabulary]` in float32."""
    with torch.no_grad():
        found: torch.Tensor = model(**inputs, use_cache=False).logits.float()
    assert torch.isfinite(found).all()
    return found


@cache
def base_logits(model: Path, family: str) -> torch.Tensor:
    """Returns what a tiny model says of the question before it is trained."""
    return logits(load(model, family), question(load_processor(model, family), family))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Returns the largest difference of two models' logits, as a share of how far they range."""
    return float((one - other).abs().max() / (other.max() - other.min()))


def check_answers(model: Any, processor: Any, inputs: Mapping[str, torch.Tensor]) -> None:
    """Generates a few tokens, which are of the vocabulary and can be read."""
    asked = inputs["input_ids"].shape[1]
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, asked:].tolist()
    tokenizer = tokenizer_of(processor)
    assert 1 <= len(made) <= 4
    assert all(0 <= token < model.config.get_text_config().vocab_size for token in made)
    assert isinstance(tokenizer.decode(made), str)


def check_merged(
    cell: Cell,
    values: Mapping[str, Any],
    trained: torch.Tensor,
    inputs: Mapping[str, torch.Tensor],
    folder: Path,
) -> None:
    """Merges a run; the merged model says what the trained one said, and generates.

    QLoRA and 8-bit LoRA compute from quantised weights, while `sailplan merge` puts their adapter
    on the published ones, so the two cannot say the same. There the merged model must equal the
    published base, and the trained one the quantised base, each with the saved adapter as PEFT
    itself loads it; and the two must be near.

    Args:
        cell: The cell.
        values: The run's.
        trained: What the trained model said of the inputs, as the trainer heard it at its end.
        inputs: What `question` returned.
        folder: Where merged models go.
    """
    from peft import PeftModel

    model, output_dir = Path(values["model_name_or_path"]), Path(values["output_dir"])
    into = merged(output_dir, folder / "merged")
    loaded, processor = load(into, cell.family), load_processor(into, cell.family)
    check_same_inputs(question(processor, cell.family), inputs)
    found = logits(loaded, inputs)
    assert distance(base_logits(model, cell.family), trained) > 100 * EXACT
    if cell.method in QUANTISED:
        tuned = PeftModel.from_pretrained(load(model, cell.family), output_dir).eval()
        assert distance(logits(tuned, inputs), found) < EXACT
        tuned = as_trained(PeftModel.from_pretrained(load_model(Run(explicit=values)), output_dir))
        for name, parameter in tuned.named_parameters():
            if ".lora_" in name:  # TRL trains the adapter of a quantised base in bfloat16
                parameter.data = parameter.data.to(torch.bfloat16)
        assert distance(logits(tuned, inputs), trained) < EXACT
        assert distance(found, trained) < QUANTISED[cell.method]
    else:
        assert distance(found, trained) < EXACT
    check_answers(loaded, processor, inputs)


def check_same_inputs(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Makes sure that two processors make the same of the question."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].equal(tensor), name


def line_of(end_err: str) -> str:
    """Returns the one line with which a run was refused."""
    lines: Sequence[str] = end_err.splitlines()
    assert len(lines) == 1, end_err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")

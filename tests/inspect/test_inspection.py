"""What an inspection finds: each planted fault with its row, and nothing in clean data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor

from sailplan.inspect.findings import RULES, Finding, exit_code
from sailplan.inspect.inspection import Inspection
from tests.inspect.planted import chat, clean_rows, planted_rows, write_rows
from tests.support.tiny import FAMILIES

Inspect = Callable[..., Inspection]


def by_name(found: Inspection, split: str = "train") -> dict[str, Finding]:
    return {finding.name: finding for finding in found.findings if finding.split == split}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_planted_fault_is_found_with_its_row(
    inspect: Inspect, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sailplan.data.workers._FEW_ROWS", 0)
    monkeypatch.setattr("sailplan.data.workers.RANGE_ROWS", 4)
    rows, numbers = planted_rows(tmp_path / "data")
    data = write_rows(tmp_path / "data", rows)

    found = inspect(data, "--max_length", "256", workers=workers)

    findings = by_name(found)
    assert {name: findings[name].rows for name in numbers} == {
        name: (number,) for name, number in numbers.items()
    }
    assert findings.keys() == numbers.keys()
    for name, number in numbers.items():
        assert findings[name].places == (f"row {number} (from 0)",)
        assert findings[name].message
        assert findings[name].todo
    assert exit_code(found.findings) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_clean_data_is_reported_clean(inspect: Inspect, tmp_path: Path, family: str) -> None:
    rows = clean_rows(tmp_path, 6)
    if family == "llama":
        rows = [chat(f"What is {n}?", f"Number {n}.") for n in range(6)]
        for row in rows:
            del row["images"]
    found = inspect(write_rows(tmp_path, rows), "--eval_size", "2", family=family)

    assert found.findings == ()
    assert exit_code(found.findings) == 0
    assert [split.num_whole for split in found.splits] == [4, 2]


def test_pixels_that_are_cut_off_are_found_by_decoding_alone(
    inspect: Inspect, tmp_path: Path
) -> None:
    rows, _ = planted_rows(tmp_path / "data")
    rows = [*rows[:4], chat("What?", "A blue thing.", images=["cut.png"])]
    data = write_rows(tmp_path / "data", rows)

    assert by_name(inspect(data, num_samples=0)) == {}
    decoded = by_name(inspect(data, decode=True, num_samples=0))
    assert decoded["image-broken"].rows == (4,)
    assert by_name(inspect(data, num_samples=5))["image-broken"].rows == (4,)


def test_copies_of_an_image_under_other_names_are_found_by_decoding(
    inspect: Inspect, tmp_path: Path
) -> None:
    rows = clean_rows(tmp_path, 3)
    shutil.copy(tmp_path / "clean-1.png", tmp_path / "copy.png")
    rows.append({**rows[1], "images": ["copy.png"]})
    data = write_rows(tmp_path, rows)

    assert by_name(inspect(data)) == {}
    assert by_name(inspect(data, decode=True))["duplicate-rows"].rows == (3,)


def test_held_out_rows_that_are_trained_on_are_found(inspect: Inspect, tmp_path: Path) -> None:
    rows = clean_rows(tmp_path, 4)
    question = rows[1]["messages"][0]["content"]
    held_out = [
        rows[2],
        chat(question, "Something else.", images=rows[1]["images"]),
        chat("Another question?", "Yes.", images=rows[3]["images"]),
        *clean_rows(tmp_path, 1, prefix="other"),
    ]
    write_rows(tmp_path, rows, "train.json")
    write_rows(tmp_path, held_out, "test.json")

    found = by_name(inspect(tmp_path), "eval")

    assert {name: finding.rows for name, finding in found.items()} == {
        "held-out-leak": (0,),
        "held-out-question": (1,),
        "held-out-image": (2,),
    }
    assert "train row 2 (from 0)" in found["held-out-leak"].message


def test_long_rows_are_errors_only_where_training_would_stop(
    inspect: Inspect, tmp_path: Path
) -> None:
    rows = [*clean_rows(tmp_path, 3), chat("Say it.", "long " * 300)]
    data, limit = write_rows(tmp_path, rows), ["--max_length", "200", "--over_length"]

    assert by_name(inspect(data, *limit[:2]))["over-long"].severity == "error"
    assert by_name(inspect(data, *limit, "drop"))["over-long"].severity == "warning"
    cut = by_name(inspect(data, *limit, "truncate_text"))
    assert "over-long" not in cut
    assert cut["end-of-turn-untrained"].rows == (3,)


def test_text_only_rows_of_cross_attention_stop_several_ranks_alone(
    inspect: Inspect, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    from sailplan.inspect.inspection import inspect_run
    from sailplan.run.config import Run

    data = write_rows(tmp_path, [*clean_rows(tmp_path, 2), chat("No image?", "None.")])
    severities = []
    for processes in (1, 2):
        path = tmp_path / "run.yaml"
        path.write_text(
            f"model_name_or_path: {tiny_model('mllama')}\ndataset_name: {data}\n"
            f"launch: {{cpu: true, processes: {processes}}}\n"
        )
        severities.append(by_name(inspect_run(Run.from_file(path)))["text-only-rows"].severity)

    assert severities == ["note", "error"]


HEADER = "<|im_start|>{{ m['role'] }}\n"
BODY = (
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
)
LOOP = "{% for m in messages %}" + HEADER + BODY + "<|im_end|>\n{% endfor %}"
GENERATION = (
    "{% for m in messages %}"
    + HEADER
    + "{% if m['role'] == 'assistant' %}{% generation %}"
    + BODY
    + "<|im_end|>{% endgeneration %}{% else %}"
    + BODY
    + "<|im_end|>{% endif %}\n{% endfor %}"
)
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

TEMPLATES = {
    "none": LOOP + PROMPT,
    "header-trained": LOOP,
    "generation-differs": GENERATION
    + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "bos-twice": "{{ bos_token }}{{ bos_token }}" + LOOP + PROMPT,
    "bos-missing": LOOP + PROMPT,
}


@pytest.mark.parametrize("fault", TEMPLATES)
def test_faults_of_a_chat_template_are_found(
    inspect: Inspect, tmp_path: Path, tiny_model: Callable[[str], Path], fault: str
) -> None:
    family = "llama" if fault.startswith("bos") else "qwen2_vl"
    model = tmp_path / "model"
    shutil.copytree(tiny_model(family), model)
    template = TEMPLATES[fault]
    if family == "llama":
        template = template.replace("<|im_start|>", "<|start_header_id|>")
        template = template.replace("<|im_end|>", "<|eot_id|>")
    processor = AutoProcessor.from_pretrained(model)
    processor.chat_template = template
    processor.save_pretrained(model)
    rows: list[dict[str, Any]] = clean_rows(tmp_path, 3)
    if family == "llama":
        rows = [{"messages": row["messages"]} for row in rows]

    found = by_name(inspect(write_rows(tmp_path, rows), model=model))

    assert found.keys() == ({fault} - {"none"})
    assert all(finding.rows == (0, 1, 2) for finding in found.values())


def test_empty_answers_of_the_other_formats_are_found(inspect: Inspect, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(3)]
    rows[1]["output"] = ""
    assert by_name(inspect(write_rows(tmp_path, rows), family="llama"))["empty-answer"].rows == (1,)
    table = [{"name": f"n{n}", "text": f"t{n}"} for n in range(3)]
    table[2]["text"] = None  # type: ignore[assignment]
    flags = ["--user_prompt", "Describe {name}.", "--answer_column", "text"]
    found = by_name(inspect(write_rows(tmp_path, table, "table.json"), *flags, family="llama"))
    assert found["empty-answer"].rows == (2,)


ODD_ROWS = {
    "nothing-trained": ("qwen2_vl", chat("What?", "<|im_end|>")),
    "template-refuses": (
        "pixtral",
        {
            "images": [],
            "messages": [
                {"role": "user", "content": "One?"},
                {"role": "user", "content": "Two?"},
                {"role": "assistant", "content": "Two."},
            ],
        },
    ),
    "images-unseen": ("llama", chat("What?", "A red thing.", images=["clean-0.png"])),
    "no-image": ("paligemma", chat("What?", "A red thing.")),
    "image-size": ("qwen2_vl", chat("What?", "A line.", images=["line.png"])),
    "broken-text": ("qwen2_vl", chat("What?", "Half \ud83d a smile.")),
    "earlier-turns-untrained": (
        "mistral3",
        {
            "images": [],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "One?"},
                {"role": "assistant", "content": "One."},
                {"role": "user", "content": "Two?"},
                {"role": "assistant", "content": "Two."},
            ],
        },
    ),
}


@pytest.mark.parametrize("fault", ODD_ROWS)
def test_faults_that_depend_on_the_model_are_found(
    inspect: Inspect, tmp_path: Path, fault: str
) -> None:
    family, row = ODD_ROWS[fault]
    rows: list[dict[str, Any]] = clean_rows(tmp_path, 2)
    if family == "llama":
        rows = [{**row, "images": []} for row in rows]
    Image.new("RGB", (900, 2)).save(tmp_path / "line.png")
    rows.append(row)
    if fault == "broken-text":  # half a character passes as JSON within JSON alone
        rows = [{**row, "messages": json.dumps(row["messages"])} for row in rows]

    found = by_name(inspect(write_rows(tmp_path, rows), family=family))

    assert found.keys() - {"text-only-rows"} - {"special-token-in-text"} == {fault}
    assert found[fault].rows == (2,)


def test_streamed_rows_are_looked_at_as_far_as_asked(inspect: Inspect, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = clean_rows(tmp_path, 6)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect(data, "--dataset_streaming", "--max_steps", "3", max_rows=4)

    assert found.splits[0].num_rows == 4
    assert by_name(found).keys() == {"streamed"}


def test_findings_are_told_apart_by_severity() -> None:
    assert {rule.severity for rule in RULES.values()} == {"error", "warning", "note"}

"""A report that holds what models, data and file systems may hold at their worst."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from sailplan.evaluate.comparison import (
    Answer,
    Change,
    Comparison,
    Estimate,
    Row,
    Score,
    Side,
    Verdict,
)
from sailplan.report.page.samples import compared_image
from sailplan.report.record import (
    Curve,
    Fact,
    Line,
    Mark,
    Memory,
    Report,
    Said,
    Split,
    Watched,
)
from tests.support.pictures import encoded

SCRIPT = "<script>window.broken = 1</script>"
ATTACK = f"</script></style></textarea>{SCRIPT}<img src=x onerror='window.broken = 2'>"
ARABIC = "بطاقة فيها ثلاث نجوم حمراء للمطبخ، جميلة جدًا"
HEBREW = "כרטיס עם שלושה כוכבים אדומים"
CHINESE = "这张卡片上有三颗红色的星星，适合放在厨房里。"
EMOJI = "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 three ⭐⭐⭐"
TURNED = "price \u202e99.9 RSU\u2066 \u2067 abc"
BROKEN = "half a pair \ud83d, a null \0 byte, an escape \x1b[31m, a bell \a"
LONG_WORD = "W" * 20_000
LONG_LINE = "all of this is on one line, " * 700
STUCK = "the same again and " * 400
PROSE = (
    "A hand-printed card with three bright red stars, made for the kitchen wall. "
    "Thick recycled paper, matt finish; it comes with a brass pin and a small envelope."
)
HANDLER = "\" onmouseover='window.broken = 3' autofocus onfocus=\"window.broken = 4"
NASTY = (
    *(ATTACK, ARABIC, HEBREW, CHINESE, EMOJI, TURNED, BROKEN, LONG_WORD, LONG_LINE, STUCK),
    *(HANDLER, "{{ 7 * 7 }} {% raw %} ${alert(1)} &lt;b&gt; &amp; &#x3c;", "", "   \n\t ", "\r\n"),
    "word\n" * 200,
)
NAMES = ('<img src=x onerror="window.broken = 5">', "../../../etc/passwd", "a b'c\"d.webp")

NUM_ROWS = 50

_SCORES = ("loss", "perplexity", "exact_match", "rouge_l", "chrf", "colour<b>", "answer_words")
_BETTER = {"loss": "lower", "perplexity": "lower", "answer_words": "neither"}


def drawn(number: int, width: int = 480, height: int = 360) -> bytes:
    """A small picture like those of the demo, as WebP."""
    image = Image.new("RGB", (width, height), (250, 248, 243))
    draw = ImageDraw.Draw(image)
    colours = ((215, 35, 35), (25, 85, 220), (25, 160, 65), (245, 195, 0))
    for place in range(number % 4 + 1):
        x, y = 40 + 105 * place, height // 3 + 30 * (place % 2)
        draw.ellipse((x, y, x + 90, y + 90), fill=colours[number % 4])
    return encoded(image, "WEBP", quality=85)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture that no format makes small."""
    return Image.frombytes(
        "RGB", (width, height), random.Random(seed).randbytes(3 * width * height)
    )


def report_of(
    comparison: Comparison | None, watched: tuple[Watched, ...] = (), words: str = ""
) -> Report:
    """A whole run around a comparison; `words` go wherever a run's own text may be."""
    steps = range(0, 401, 5)
    falling = tuple((s, 0.6 + 2 * math.exp(-s / 90) + 0.05 * math.sin(s)) for s in steps)
    held_out = tuple((s, 0.75 + 1.9 * math.exp(-s / 95)) for s in range(0, 401, 50))
    return Report(
        name=f"qwen2-vl-7b-amazon{words}",
        path=f"/data/runs/qwen2-vl-7b-amazon{words}",
        made_at=1_700_000_000.0,
        version="0.1.0",
        state="finished",
        why=f"400 of 400 steps{words}",
        facts=tuple(
            Fact(group=group, name=name, value=f"{value}{words}")
            for group, name, value in (
                ("model", "model", "Qwen/Qwen2-VL-7B-Instruct"),
                ("model", "revision", "eed13092ef92e448dd6875b2a00151bd3f7db0ac"),
                ("model", "parameters", "8,291,375,616, of them 20,185,088 trained"),
                ("data", "dataset", "philschmid/amazon-product-descriptions-vlm"),
                ("data", "rows", "1,345 to train, 50 held out"),
                ("method", "method", "QLoRA, nf4, rank 8, alpha 16"),
                ("method", "learning rate", "2e-4, cosine, 3 % warm-up"),
                ("method", "global batch", "16 samples"),
                ("hardware", "GPU", "1 × NVIDIA L4, 24 GB"),
                ("hardware", "strategy", "single"),
                ("versions", "sailplan", "0.1.0, commit 3be13cc"),
                ("versions", "torch", "2.11.0"),
                ("versions", "transformers", "5.17.0"),
            )
        ),
        command=f"accelerate launch --config_file accelerate.yaml \\\n  -m sailplan.train.sft_vlm"
        f" --config train.yaml{words}",
        curves=(
            Curve(
                name="loss",
                title=f"loss of a token{words}",
                lines=(
                    Line(name=f"training{words[:30]}", points=falling),
                    Line(name="held out", points=held_out, dotted=True),
                ),
            ),
            Curve(
                name="learning_rate",
                title="learning rate",
                lines=(
                    Line(
                        name="learning rate",
                        points=tuple((s, 1e-4 * (1 + math.cos(s / 400 * math.pi))) for s in steps),
                    ),
                ),
            ),
            Curve(
                name="waiting",
                title="waiting for data",
                lines=(Line(name="waiting", points=tuple((s, 0.01 + s / 1e5) for s in steps)),),
                share=True,
            ),
        ),
        marks=(
            Mark(step=120, kind="resume", words=f"launch 2 went on from step 120{words}"),
            Mark(
                step=240,
                kind="rollback",
                words=f"launch 3 went on from step 240; steps 241 to 257 were done again{words}",
            ),
        ),
        launches=(
            f"launch 1: stopped after 3 h 12 min, the time of the job was up{words}",
            "launch 2: failed at step 257, a loss was not finite",
            "launch 3: finished after 2 h 40 min",
        ),
        memory=Memory(
            device=f"NVIDIA L4{words}",
            parts=(
                ("activations", 7_300_000_000),
                ("weights", 5_900_000_000),
                ("gathered weights", 1_100_000_000),
                ("logits", 900_000_000),
                ("optimizer", 162_000_000),
                (f"gradients{words}", 81_000_000),
                ("CUDA context", 480_000_000),
            ),
            planned_bytes=15_923_000_000,
            card_bytes=23_600_000_000,
            active_bytes=15_100_000_000,
            reserved_bytes=17_800_000_000,
            words=f"planned 15.9 GB, measured 15.1 GB: 5 % less than planned{words}",
        ),
        reasons=(
            f"single: one GPU, so nothing is divided{words}",
            "micro batch 2: 4 would need 25.1 GB, 1.5 GB more than the card has",
            "gradient checkpointing: without it the activations need 31 GB",
        ),
        splits=tuple(
            Split(
                name=f"{name}{words}",
                num_rows=rows,
                num_tokens=rows * 512,
                num_trained_tokens=rows * 98,
                num_images=rows,
                num_image_tokens=rows * 320,
                quantiles=(("least", 201), ("median", 502), ("95 %", 901), ("most", 1304)),
            )
            for name, rows in (("train", 1345), ("test", 50))
        ),
        data_notes=(f"the assistant's words are trained, images and padding never{words}",),
        comparison=comparison,
        watched=watched,
    )


def comparison_of(sides: tuple[str, ...], rows: list[Row], words: str = "") -> Comparison:
    """A comparison whose scores over all rows are made up."""

    def change(number: int, sign: int) -> Change:
        verdict: Verdict = ("better", "unclear", "better", "worse")[number % 4]
        value = sign * (0.21 if verdict == "better" else -0.09 if verdict == "worse" else 0.02)
        low, high = value - 0.05, value + 0.06
        return Change(
            difference=Estimate(value=value, low=low, high=high),
            p_value=0.2 if verdict == "unclear" else 0.0004,
            verdict=verdict,
        )

    return Comparison(
        sides=tuple(
            Side(
                name=name,
                model=f"/data/models/{name}{words}",
                adapter=f"/data/runs/adapter{words}" if number else None,
                words=f"nf4{words}",
            )
            for number, name in enumerate(sides)
        ),
        rows=tuple(rows),
        scores=tuple(
            Score(
                name=name,
                better=_BETTER.get(name, "higher"),  # type: ignore[arg-type]
                num_rows=len(rows),
                sides={
                    side: Estimate(value=0.31 + 0.2 * at, low=0.25 + 0.2 * at, high=0.36 + 0.2 * at)
                    for at, side in enumerate(sides)
                },
                changes={side: change(number, -1 if name == "loss" else 1) for side in sides[1:]},
            )
            for number, name in enumerate(_SCORES)
        ),
        split="test",
        num_held_out=240,
        num_loss_rows=len(rows),
        generation={"max_new_tokens": 256, "temperature": 0.8, "top_p": 1.0, "seed": 0},
        made_at=1_700_000_000.0,
    )


def row(
    number: int, sides: tuple[str, ...], *, prompt: str, reference: str, answers: list[str]
) -> Row:
    """A row whose second side is better in two of three rows, and alike in every sixth."""
    gains = (0.0, 0.3, -0.1, 0.2, 0.25, -0.2)
    return Row(
        place=f"row {number}",
        prompt=prompt,
        reference=reference,
        images=(f"{number % 40}.webp",),
        answers={
            side: Answer(text=text, num_tokens=len(text.split()), ended=number % 7 != 0)
            for side, text in zip(sides, answers, strict=True)
        },
        scores={
            side: {
                "rouge_l": round(0.4 + at * gains[number % 6], 3),
                "loss": round(2.1 - at * 0.4 - 0.001 * number, 3),
                "exact_match": float(text == reference),
            }
            for at, (side, text) in enumerate(zip(sides, answers, strict=True))
        },
    )


def nasty_report(num_tuned: int) -> Report:
    """Rows that hold everything of `NASTY` in every place, among them ordinary ones."""
    sides = ("base", *("tuned", 'checkpoint-100"><b>')[:num_tuned])
    rows = []
    for number in range(NUM_ROWS):
        nasty = NASTY[number % len(NASTY)]
        others = [NASTY[(number + 1 + at) % len(NASTY)] for at in range(num_tuned)]
        if number % 3 == 0:
            answers = ["It is a card. " + PROSE[40:], *[PROSE.replace("red", "blue")] * num_tuned]
            rows.append(
                row(number, sides, prompt=f"Describe. {nasty}", reference=PROSE, answers=answers)
            )
        elif number % 10 == 1:
            rows.append(
                row(number, sides, prompt="<image>What?", reference=nasty, answers=[nasty, *others])
            )
        else:
            rows.append(
                row(number, sides, prompt=nasty, reference=nasty + PROSE, answers=[nasty, *others])
            )
    rows[4] = Row(place=ATTACK, prompt="p", reference="", images=NAMES, answers={}, scores={})
    rows[5] = Row(
        place="row 5" * 200,
        prompt="<image><image>Which?",
        reference="Both.",
        images=("5.webp", "5.webp", "large.png"),
        answers=rows[5].answers,
        scores={"base": {"rouge_l": math.nan}},
    )
    watched = tuple(
        Watched(
            place=f"row {at}{ATTACK}",
            prompt=nasty,
            reference=PROSE,
            images=(compared_image(f"{at}.webp"),),
            said=tuple(Said(step=step, text=nasty) for step in (0, 100, 200)),
        )
        for at, nasty in enumerate((ATTACK, ARABIC, LONG_WORD))
    )
    return report_of(comparison_of(sides, rows, words=ATTACK), watched, words=" " + ATTACK)


def nasty_images(width: int) -> Callable[[str], bytes | None]:
    """Their pictures: 40 that are all noise, one of 8,000 pixels a side, and names of no file."""
    files: dict[str, bytes] = {
        compared_image(f"{number}.webp"): encoded(
            noise(width, width * 3 // 4, number), "WEBP", quality=85
        )
        for number in range(40)
    }
    files[compared_image("large.png")] = encoded(
        Image.new("RGB", (8000, 8000), (9, 120, 90)), "PNG"
    )
    files[compared_image("7.webp")] = b"RIFF is no picture"
    return files.get


def files_in(folder: Path) -> Path:
    """Makes a run's directory whose pictures are those of `drawn`."""
    for number in range(40):
        path = folder / compared_image(f"{number}.webp")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(number))
    return folder

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from pathlib import Path

from PIL import Image

from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.sources import load_rows
from sailplan.demo.catalogue import (
    COLOURS,
    COUNTS,
    SHAPES,
    SYSTEM_PROMPT,
    USER_PROMPT,
    Product,
    draw_product,
    write_catalogue,
)
from sailplan.run.config import Run


def _files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _rows(folder: Path, split: str) -> list[dict[str, str]]:
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _pixels(folder: Path, split: str) -> list[str]:
    images = [Image.open(folder / row["image"]) for row in _rows(folder, split)]
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def test_catalogue_with_the_same_seed_is_the_same_to_the_byte(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        write_catalogue(tmp_path / name, num_train=6, num_test=3, seed=seed)
    assert len(_files(tmp_path / "one")) == 9 + 2
    assert _files(tmp_path / "one") == _files(tmp_path / "again")
    assert _files(tmp_path / "one") != _files(tmp_path / "other")


def test_catalogue_pictures_are_unique_and_held_out_ones_unseen(catalogue: Path) -> None:
    train, test = _pixels(catalogue, "train"), _pixels(catalogue, "test")
    assert (len(train), len(test)) == (200, 40)
    assert len({*train, *test}) == 240


def test_catalogue_images_vary_in_size_within_56_to_84_pixels(catalogue: Path) -> None:
    sizes = {Image.open(catalogue / row["image"]).size for row in _rows(catalogue, "train")}
    assert sizes == {(56, 56), (56, 84), (84, 56), (84, 84)}


def test_product_picture_holds_its_colour_on_a_light_ground() -> None:
    random_source = random.Random(0)
    for _ in range(50):
        product = draw_product(random_source)
        colours = product.image.getcolors(maxcolors=84 * 84)
        assert colours is not None
        ground, fill = sorted((colour for _, colour in sorted(colours)[-2:]), key=min)[::-1]
        assert min(ground) >= 215
        assert min(COLOURS, key=lambda name: math.dist(COLOURS[name], fill)) == product.colour


def test_catalogue_columns_without_the_picture_do_not_tell_the_answer() -> None:
    """Given name and category, colour, shape and count stay as likely as they were."""
    random_source = random.Random(1)
    products = [draw_product(random_source) for _ in range(4000)]
    chance = 1 / (len(COLOURS) * len(SHAPES) * len(COUNTS))
    for text in ("room", "name"):
        answers: dict[str, Counter[tuple[str, str, int]]] = {}
        for product in products[:2000]:
            seen = answers.setdefault(getattr(product, text), Counter())
            seen[product.colour, product.shape, product.count] += 1
        guessed = [
            answers[key].most_common(1)[0][0] == (product.colour, product.shape, product.count)
            for product in products[2000:]
            if (key := getattr(product, text)) in answers
        ]
        assert len(guessed) > 1900
        assert sum(guessed) / len(guessed) < 3 * chance


def test_product_answers_say_the_same_in_two_styles() -> None:
    product = Product(
        name="Birch Tile",
        room="garden",
        colour="yellow",
        shape="triangle",
        count=3,
        image=Image.new("RGB", (56, 56)),
    )
    assert product.description == "A card with three yellow triangles for the garden."
    assert product.listing == "room: garden; colour: yellow; shape: triangles; count: three"


def test_catalogue_is_read_by_the_template_format_with_its_pictures(catalogue: Path) -> None:
    run = Run.from_flags(
        [
            *("--dataset_name", str(catalogue), "--dataset_format", "template"),
            *("--system_prompt", SYSTEM_PROMPT, "--user_prompt", USER_PROMPT),
            *("--answer_column", "description"),
        ]
    )
    rows = load_rows(run)
    assert rows.eval is not None
    assert (len(rows.train), len(rows.eval)) == (200, 40)
    sample = resolve_format(run, rows).sample(rows.train[0])
    raw = _rows(catalogue, "train")[0]
    assert sample["messages"] == [
        {"role": "system", "content": [{"type": "text", "text": "Write for a shop."}]},
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {
                    "type": "text",
                    "text": "Describe this product.\n"
                    f"Name: {raw['Product Name']}\nCategory: {raw['Category']}",
                },
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": raw["description"]}]},
    ]
    image = image_opener(run, rows).open(sample["images"][0])
    assert image.tobytes() == Image.open(catalogue / raw["image"]).tobytes()

"""Draws the demo's data: a product catalogue whose descriptions can only come from its pictures.

Each product is a card with a few objects of one shape and colour. Its row has the columns of a
shop's data (name, category, image, description), so that it is trained through the `template`
format like a user's own. The name is drawn apart from the picture and the category only says where
the card goes, so a model that does not look at the picture cannot tell count, colour or shape.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw

from sailplan.progress import track

COLOURS = {
    "red": (215, 35, 35),
    "blue": (25, 85, 220),
    "green": (25, 160, 65),
    "yellow": (245, 195, 0),
    "pink": (250, 110, 185),
    "black": (25, 25, 25),
}
SHAPES = ("ring", "square", "triangle", "star")
COUNTS = ("one", "two", "three", "four")
ROOMS = {
    "kitchen": "Home & Kitchen | Wall Art",
    "nursery": "Baby Products | Room Decor",
    "office": "Office Products | Desk Cards",
    "garden": "Patio, Lawn & Garden | Signs",
}
NAMES = (
    ("Alder", "Birch", "Cedar", "Hazel", "Maple", "Rowan", "Willow", "Linden"),
    ("Card", "Print", "Poster", "Plaque", "Panel", "Tile"),
)
SIDES = (56, 84)
"""Image sides in pixels, drawn apart for width and height: four to nine image tokens."""

CELL = 28
"""Pixels of the square that holds one object; also what Qwen2-VL turns into one token."""

OVERSAMPLING = 4

SYSTEM_PROMPT = "Write for a shop."
USER_PROMPT = "Describe this product.\nName: {Product Name}\nCategory: {Category}"
"""The prompts of the `template` format; the picture goes in front."""

Circle: TypeAlias = tuple[float, float, float]
"""Centre x, centre y and radius of an object, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One row of the catalogue, before it is written."""

    name: str
    """`Product Name`: says nothing of the picture."""
    room: str
    """Key of `ROOMS`; its value is the `Category`."""
    colour: str
    """Key of `COLOURS`."""
    shape: str
    """One of `SHAPES`."""
    count: int
    """Number of objects, 1 to `len(COUNTS)`."""
    image: Image.Image
    """The picture, RGB, 56 to 84 pixels a side."""

    @property
    def description(self) -> str:
        """The written description, the answer of the first training step."""
        count, objects = COUNTS[self.count - 1], self._objects
        return f"A card with {count} {self.colour} {objects} for the {self.room}."

    @property
    def listing(self) -> str:
        """The same in another style, the answer of the second training step."""
        count, objects = COUNTS[self.count - 1], self._objects
        return f"room: {self.room}; colour: {self.colour}; shape: {objects}; count: {count}"

    @property
    def _objects(self) -> str:
        return self.shape if self.count == 1 else f"{self.shape}s"


def draw_product(random_source: random.Random) -> Product:
    """Draws one product: every attribute uniform and apart from the others."""
    colour = random_source.choice(tuple(COLOURS))
    shape = random_source.choice(SHAPES)
    count = random_source.randint(1, len(COUNTS))
    first, second = (random_source.choice(words) for words in NAMES)
    return Product(
        name=f"{first} {second}",
        room=random_source.choice(tuple(ROOMS)),
        colour=colour,
        shape=shape,
        count=count,
        image=_draw_picture(random_source, colour=colour, shape=shape, count=count),
    )


def write_catalogue(folder: Path, *, num_train: int, num_test: int, seed: int) -> None:
    """Writes `train.jsonl` and `test.jsonl`, with their pictures under `folder/images`.

    The same arguments write the same bytes. No two pictures are alike, so every held-out picture
    is unseen: other places, sizes and grounds of the same kinds of objects.
    """
    random_source = random.Random(seed)  # noqa: S311 - drawing, not cryptography
    (folder / "images").mkdir(parents=True, exist_ok=True)
    order = [("train", index) for index in range(num_train)]
    order += [("test", index) for index in range(num_test)]
    rows: dict[str, list[str]] = {"train": [], "test": []}
    seen: set[str] = set()
    for split, index in track(order, label="drawing the catalogue"):
        product = _draw_unseen(random_source, seen)
        image = f"images/{split}-{index:05d}.png"
        product.image.save(folder / image)
        rows[split].append(json.dumps(_row(product, image)))
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(product: Product, image: str) -> dict[str, str]:
    return {
        "Product Name": product.name,
        "Category": ROOMS[product.room],
        "image": image,
        "description": product.description,
        "listing": product.listing,
    }


def _draw_unseen(random_source: random.Random, seen: set[str]) -> Product:
    while True:
        product = draw_product(random_source)
        digest = hashlib.sha256(product.image.tobytes()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            return product


def _draw_picture(
    random_source: random.Random, *, colour: str, shape: str, count: int
) -> Image.Image:
    """Draws `count` objects on a light ground, none over another, with smooth edges."""
    width, height = random_source.choice(SIDES), random_source.choice(SIDES)
    ground = tuple(random_source.randint(215, 255) for _ in range(3))
    shade = random_source.uniform(0.85, 1.0)
    fill = tuple(round(channel * shade) for channel in COLOURS[colour])
    canvas = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), ground)
    draw = ImageDraw.Draw(canvas)
    for circle in _place(random_source, width=width, height=height, count=count):
        x, y, radius = (OVERSAMPLING * value for value in circle)
        _draw_shape(draw, shape, (x, y, radius), fill)
    return canvas.resize((width, height), Image.Resampling.BOX)


def _place(random_source: random.Random, *, width: int, height: int, count: int) -> list[Circle]:
    """Returns a place for each object, each shaken inside a cell of its own."""
    cells = [(x, y) for x in range(0, width, CELL) for y in range(0, height, CELL)]
    circles = []
    for left, top in random_source.sample(cells, count):
        radius = random_source.uniform(9.5, 12.5)
        slack = CELL / 2 - radius - 0.5
        x = left + CELL / 2 + random_source.uniform(-slack, slack)
        y = top + CELL / 2 + random_source.uniform(-slack, slack)
        circles.append((x, y, radius))
    return circles


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, circle: Circle, fill: tuple[int, ...]
) -> None:
    x, y, radius = circle
    if shape == "ring":
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, outline=fill, width=round(0.45 * radius))
        return
    corners = {
        "square": [(45 + 90 * step, 1.2) for step in range(4)],
        "triangle": [(-90 + 120 * step, 1.0) for step in range(3)],
        "star": [(-90 + 36 * step, 0.4 if step % 2 else 1.0) for step in range(10)],
    }[shape]
    points = [
        (
            x + radius * length * math.cos(math.radians(angle)),
            y + radius * length * math.sin(math.radians(angle)),
        )
        for angle, length in corners
    ]
    draw.polygon(points, fill=fill)

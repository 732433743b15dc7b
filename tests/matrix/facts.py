"""A small Alpaca-format set made of open facts, every answer in the manner of a radio operator.

No fact that is asked for in the held-out rows is in the trained ones, so a model that answers them
in this manner has learnt the manner and not the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

STYLE = re.compile(r"Roger: .+\. Over\.")
"""The whole of an answer in the manner of the set."""
HELD_OUT_EVERY = 6
"""Of each kind of fact, every so many are held out."""

_ELEMENTS = (
    "hydrogen H 1, helium He 2, lithium Li 3, carbon C 6, nitrogen N 7, oxygen O 8, fluorine F 9, "
    "neon Ne 10, sodium Na 11, magnesium Mg 12, aluminium Al 13, silicon Si 14, phosphorus P 15, "
    "sulfur S 16, chlorine Cl 17, argon Ar 18, potassium K 19, calcium Ca 20, titanium Ti 22, "
    "chromium Cr 24, manganese Mn 25, iron Fe 26, cobalt Co 27, nickel Ni 28, copper Cu 29, "
    "zinc Zn 30, bromine Br 35, silver Ag 47, tin Sn 50, iodine I 53, platinum Pt 78, gold Au 79, "
    "mercury Hg 80, lead Pb 82, uranium U 92"
)
_CAPITALS = (
    "Spain Madrid, Portugal Lisbon, Italy Rome, Austria Vienna, Poland Warsaw, Norway Oslo, "
    "Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Ireland Dublin, Greece Athens, "
    "Hungary Budapest, Bulgaria Sofia, Romania Bucharest, Russia Moscow, Ukraine Kyiv, "
    "Egypt Cairo, Kenya Nairobi, Morocco Rabat, Ghana Accra, Senegal Dakar, India New_Delhi, "
    "China Beijing, Thailand Bangkok, Vietnam Hanoi, Nepal Kathmandu, Iran Tehran, Iraq Baghdad, "
    "Turkey Ankara, Jordan Amman, Canada Ottawa, Cuba Havana, Peru Lima, Chile Santiago, "
    "Argentina Buenos_Aires, Uruguay Montevideo, Venezuela Caracas, Colombia Bogota, "
    "Ecuador Quito, Australia Canberra, Belgium Brussels, Serbia Belgrade"
)
_UNITS = (
    "grams kilogram 1000, metres kilometre 1000, centimetres metre 100, millimetres centimetre 10, "
    "seconds minute 60, minutes hour 60, hours day 24, days week 7, months year 12, "
    "years decade 10, years century 100, inches foot 12, feet yard 3, ounces pound 16, "
    "pints gallon 8, bits byte 8, items dozen 12, items score 20, degrees circle 360, "
    "kilograms tonne 1000, millilitres litre 1000, cents dollar 100"
)
_OPPOSITES = (
    "hot cold, big small, fast slow, up down, left right, day night, wet dry, open closed, "
    "early late, hard soft, old new, rich poor, full empty, strong weak, light dark, near far, "
    "thick thin, loud quiet, clean dirty, high low, sweet sour, first last, true false, win lose"
)
_PLURALS = (
    "mouse mice, goose geese, child children, foot feet, tooth teeth, man men, woman women, "
    "leaf leaves, wolf wolves, knife knives, box boxes, city cities, baby babies, sheep sheep, "
    "potato potatoes, bus buses, ox oxen, wife wives"
)
_YOUNG = (
    "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, goat kid, pig piglet, duck duckling, "
    "goose gosling, bear cub, frog tadpole, swan cygnet, kangaroo joey, deer fawn"
)
_POLYGONS = (
    "triangle 3, square 4, pentagon 5, hexagon 6, heptagon 7, octagon 8, nonagon 9, decagon 10"
)
_MONTHS = "January February March April May June July August September October November December"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune"
_ORDINALS = "first second third fourth fifth sixth seventh eighth"

Fact = tuple[tuple[str, str, str], ...]
"""What is asked about one thing: instruction, input and answer of each row."""


def _table(text: str) -> Iterator[list[str]]:
    for entry in text.split(", "):
        yield [word.replace("_", " ") for word in entry.split()]


def _kinds() -> Iterator[list[Fact]]:
    """Yields the facts of one kind after another."""
    yield [
        (
            (f"What is the chemical symbol of {name}?", "", f"the symbol of {name} is {symbol}"),
            ("Give the atomic number.", name, f"the atomic number of {name} is {number}"),
        )
        for name, symbol, number in _table(_ELEMENTS)
    ]
    yield [
        (("Name the capital of the country.", country, f"the capital of {country} is {capital}"),)
        for country, capital in _table(_CAPITALS)
    ]
    yield [
        ((f"How many {part} are in one {whole}?", "", f"one {whole} has {number} {part}"),)
        for part, whole, number in _table(_UNITS)
    ]
    yield [
        (("Write the opposite of the word.", word, f"the opposite of {word} is {opposite}"),)
        for word, opposite in _table(_OPPOSITES)
    ]
    yield [
        ((f"What is the plural of {one}?", "", f"the plural of {one} is {many}"),)
        for one, many in _table(_PLURALS)
    ]
    yield [
        ((f"What is a young {animal} called?", "", f"a young {animal} is called a {young}"),)
        for animal, young in _table(_YOUNG)
    ]
    yield [
        (("How many sides has the shape?", name, f"the {name} has {number} sides"),)
        for name, number in _table(_POLYGONS)
    ]
    for word, circle in (("month", _MONTHS.split()), ("day", _DAYS.split())):
        yield [
            ((f"Which {word} comes after {one}?", "", f"{after} comes after {one}"),)
            for one, after in zip(circle, [*circle[1:], circle[0]], strict=True)
        ]
    yield [
        ((f"Which planet is the {place} from the Sun?", "", f"the {place} planet is {planet}"),)
        for place, planet in zip(_ORDINALS.split(), _PLANETS.split(), strict=True)
    ]
    yield [
        (("Add the two numbers.", f"{one} and {other}", f"{one} and {other} are {one + other}"),)
        for one in range(2, 10)
        for other in range(one + 1, 13, 2)
    ]


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns the rows that are trained on, and those that are held out."""
    splits: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for facts in _kinds():
        for number, fact in enumerate(facts, start=1):
            split = splits[number % HELD_OUT_EVERY == 0]
            for instruction, given, answer in fact:
                output = f"Roger: {answer}. Over."
                split.append({"instruction": instruction, "input": given, "output": output})
    return splits


def write(folder: Path) -> Path:
    """Writes the set as a folder of two JSON files, for `dataset_name`."""
    folder.mkdir(parents=True)
    for name, split in zip(("train", "test"), rows(), strict=True):
        (folder / f"{name}.json").write_text(json.dumps(split, indent=1) + "\n")
    return folder

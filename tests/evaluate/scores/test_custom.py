"""The user's own score: found in the current directory, and its mistakes told in a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sailplan.errors import DataError, RunFileError
from sailplan.evaluate.comparison import Answer
from sailplan.evaluate.scores.custom import find_custom
from sailplan.evaluate.scores.summary import score_row
from tests.support.markdown import blocks

PAGE = Path(__file__).resolve().parents[3] / "docs" / "scores.md"
ROW = {"place": "row 3", "prompt": "What does it cost?", "num_images": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def write(here: Path, body: str, name: str = "mine") -> None:
    (here / f"{name}.py").write_text(body)


@pytest.mark.parametrize(
    ("result", "scores"),
    [
        ("0.5", {"price": 0.5}),
        ("3", {"price": 3.0}),
        ("answer == reference", {"price": 0.0}),
        ("{'euros': 1, 'cents': False}", {"euros": 1.0, "cents": 0.0}),
        ("{}", {}),
        ("__import__('numpy').float32(0.25)", {"price": 0.25}),
        ("__import__('torch').tensor(2.0)", {"price": 2.0}),
        ("len(row['prompt']) + row['num_images']", {"price": 19.0}),
    ],
)
def test_function_of_the_current_directory_scores(
    here: Path, result: str, scores: dict[str, float]
) -> None:
    write(here, f"def price(answer, reference, row):\n    return {result}\n")

    assert find_custom("mine:price").score("7", "8", ROW) == scores


def test_function_in_a_package_may_import_its_neighbours(here: Path) -> None:
    (here / "rules").mkdir()
    write(here / "rules", "def same(a, b): return a == b\n", "words")
    write(here / "rules", "from rules.words import same\ndef right(a, b, row): return same(a, b)\n")

    assert find_custom("rules.mine:right").score("x", "x", ROW) == {"right": 1.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "score 'mine' names no function; allowed: module:function"),
        ("mine.py:price", "names no function"),
        ("./mine:price", "names no function"),
        ("mine:", "names no function"),
        (":price", "names no function"),
        ("mine:price:x", "names no function"),
        ("missing:price", "score missing:price: there is no module missing; write it to"),
        ("mine:pric", "has no function called pric; did you mean price?"),
        ("mine:LIMIT", "has something else than a function called LIMIT"),
        ("mine:two", "cannot be called with three arguments; allowed: def two(answer, reference"),
        ("mine:bleu", "score mine:bleu has the name of one of ours"),
        ("statistics:price", "has no function called price"),
        ("needy:price", "importing it raised ModuleNotFoundError: No module named 'not_there'"),
        ("broken:price", "importing it raised SyntaxError"),
        ("leaving:price", "importing it raised SystemExit: 3"),
        ("raising:price", "importing it raised ValueError: two lines"),
    ],
)
def test_function_that_is_not_to_be_had_is_told_in_a_line(
    here: Path, name: str, message: str
) -> None:
    function = "def price(answer, reference, row): return 1\n"
    write(here, f"{function}LIMIT = 3\ndef two(answer, reference): return 1\n")
    write(here, f"import not_there\n{function}", "needy")
    write(here, "def price(:\n", "broken")
    write(here, "raise SystemExit(3)\n", "leaving")
    write(here, "raise ValueError('two\\nlines')\n", "raising")

    with pytest.raises(RunFileError) as caught:
        find_custom(name)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("1 / 0", "row 3: mine:price raised ZeroDivisionError: division by zero"),
        ("row['price']", "row 3: mine:price raised KeyError: 'price'"),
        ("int('a' * 9999)", "row 3: mine:price raised ValueError: invalid literal"),
        ("None", "row 3: mine:price returned None for price; allowed: a finite number"),
        ("'0.5'", "row 3: mine:price returned '0.5' for price"),
        ("float('nan')", "row 3: mine:price returned nan for price"),
        ("float('inf')", "row 3: mine:price returned inf for price"),
        ("[1, 2]", "row 3: mine:price returned [1, 2] for price"),
        ("__import__('numpy').ones(3)", "row 3: mine:price returned array([1., 1., 1.])"),
        ("{'a': None}", "row 3: mine:price returned None for a"),
        ("{1: 1}", "row 3: mine:price returned a score that is named 1"),
        ("{'': 1}", "row 3: mine:price returned a score that is named ''"),
        ("{'a\\nb': 1}", "row 3: mine:price returned a score that is named 'a\\nb'"),
        ("{'loss': 1}", "row 3: mine:price returned a score that is named loss, as one of ours"),
    ],
)
def test_fault_while_scoring_names_the_row(here: Path, result: str, message: str) -> None:
    write(here, f"def price(answer, reference, row):\n    return {result}\n")
    custom = find_custom("mine:price")

    with pytest.raises(DataError) as caught:
        custom.score("7", "8", ROW)

    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_two_functions_with_scores_of_one_name_are_refused(here: Path) -> None:
    write(here, "def price(a, b, row): return 1\n")
    write(here, "def other(a, b, row): return {'price': 1}\n", "yours")
    custom = [find_custom("mine:price"), find_custom("yours:other")]

    with pytest.raises(DataError, match="row 3: yours:other returned price, as another function"):
        score_row(Answer(text="", num_tokens=1, ended=True), "", ROW, custom, as_json=False)


def test_function_of_the_page_scores_prices_as_it_says(here: Path) -> None:
    (example,) = (block.text for block in blocks(PAGE) if block.kind == "python")
    write(here, example, "my_scores")
    custom = find_custom("my_scores:price")

    assert custom.score("The lamp costs $24.50.", "Price: $25", ROW) == {
        "price_named": 1.0,
        "price_error": -0.5,
    }
    assert custom.score("A nice lamp.", "Price: $25", ROW) == {"price_named": 0.0}

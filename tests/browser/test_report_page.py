"""The page of a report in a real browser, with the worst that models and data may say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from sailplan.pages.render import write_page
from sailplan.report.page.render import render
from sailplan.report.record import Report
from tests.browser.nasty import ATTACK, CHINESE, NUM_ROWS, nasty_images, nasty_report
from tests.browser.opened import Opened, opened

FIVE_MB = 5_000_000


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The pages of a comparison with one tuned model, and with two."""
    folder = tmp_path_factory.mktemp("report")
    made = {}
    for num_tuned, width in ((1, 480), (2, 120)):
        made[num_tuned] = folder / f"a 'page' & {num_tuned}.html"
        write_page(made[num_tuned], render(nasty_report(num_tuned), images=nasty_images(width)))
    return made


@pytest.fixture(scope="session")
def page_path(pages: dict[int, Path]) -> Path:
    return pages[2]


def places(page: Page) -> list[str]:
    """The numbers of the samples that are shown, in their order."""
    return list(
        page.evaluate(
            "[...document.querySelectorAll('#list .sample')].filter((one) => one.checkVisibility())"
            ".map((one) => one.dataset.number)"
        )
    )


def search(found: Opened, words: str) -> str:
    """What the page says after a search."""
    before = found.page.inner_text("#tally")
    found.page.fill("#search", words)
    found.page.wait_for_function(
        "(before) => document.getElementById('tally').textContent !== before", arg=before
    )
    return found.page.inner_text("#tally")


@pytest.mark.parametrize("num_tuned", [1, 2])
def test_page_of_the_worst_shows_all_of_it_and_runs_none(
    browser: Browser, pages: dict[int, Path], num_tuned: int
) -> None:
    path = pages[num_tuned]

    assert path.stat().st_size < FIVE_MB
    with opened(browser, path) as found:
        page = found.page
        page.hover("h1")
        assert len(places(page)) == NUM_ROWS
        assert page.evaluate("window.broken") is None
        assert page.evaluate("document.scripts.length") == 1
        handlers = "[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())"
        assert not [name for name in page.evaluate(handlers) if name.startswith("on")]
        widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
        assert len(widths) == 52
        assert all(widths)
        text = page.evaluate("document.body.textContent")
        assert found.noise == []
        assert found.requests == []
    assert text.count(ATTACK) > 30
    assert "{{ 7 * 7 }}" in text
    assert CHINESE in text
    assert "more characters are not shown" in text
    assert "said nothing" in text
    assert "has not answered yet" in text


def test_picture_of_several_rows_is_in_the_page_once(pages: dict[int, Path]) -> None:
    text = pages[1].read_text(encoding="utf-8")
    addresses = [part.split('"')[0] for part in text.split('src="data:')[1:]]
    assert len(addresses) == len(set(addresses)) == 40  # one of 40 is broken, one is large


@pytest.mark.parametrize(
    ("width", "num_tuned"), [(390, 1), (390, 2), (768, 2), (1440, 1), (1440, 2)]
)
def test_nothing_sticks_out_and_nothing_lies_over_another(
    browser: Browser, pages: dict[int, Path], width: int, num_tuned: int
) -> None:
    with opened(browser, pages[num_tuned], width=width) as found:
        assert found.faults() == []
        if (width, num_tuned) == (390, 1):
            unfold = "document.querySelectorAll('.fold').forEach((one) => one.click())"
            found.page.evaluate(unfold)
            assert found.faults() == []


def test_planted_faults_of_layout_are_found(browser: Browser, page_path: Path) -> None:
    planted = (
        ("h1", "width: 3000px", "page: "),
        ("h1", "position: relative; left: -60px", "text out of the window"),
        ("#data .card", "position: relative; left: 60px", "out of the window"),
        (".answers .text", "width: 120%", "wider than its box"),
        (".answers .text", "white-space: pre", "wider than its box"),
        (".answers .text", "height: 1em; overflow: hidden", "cut off below"),
        (".answers .text", "height: 1em", "text out of its box"),
        (".answers .text", "margin-bottom: -30px", "over each other"),
        ("#list h3", "position: relative; top: 40px", "over each other"),
    )
    with opened(browser, page_path, width=390) as found:
        rest = (
            "document.querySelectorAll('.sample:nth-child(n + 3)').forEach((one) => one.remove())"
        )
        found.page.evaluate(rest)
        for place, css, told in planted:
            styled = "([place, css]) => { document.querySelector(place).style.cssText = css; }"
            found.page.evaluate(styled, [place, css])
            faults = found.faults()
            assert any(fault.startswith(told) for fault in faults), (place, css, faults)
            found.page.evaluate(styled, [place, ""])
            assert found.faults() == []


def test_filter_shows_those_samples_and_counts_them(
    browser: Browser, pages: dict[int, Path]
) -> None:
    with opened(browser, pages[2]) as found:
        page = found.page
        shown = {}
        for name in ("all", "better", "worse", "equal", "exact"):
            button = page.locator(f"[data-filter={name}]")
            button.click()
            shown[name] = set(places(page))
            assert button.get_attribute("aria-pressed") == "true"
            assert button.inner_text() == f"{name} {len(shown[name])}"
        assert len(shown["all"]) == NUM_ROWS
        assert {"2", "4"} <= shown["better"]
        assert {"3"} <= shown["worse"]
        assert {"1", "7"} <= shown["equal"]
        assert not shown["better"] & shown["worse"]
        page.select_option("#score", "loss")
        page.locator("[data-filter=better]").click()
        assert len(places(page)) == NUM_ROWS - 2  # one has no answers, one has no such score
        page.locator("[data-filter=worse]").click()
        assert places(page) == []
        page.click("#clear")
        assert len(places(page)) == NUM_ROWS
        page.select_option("#side", "2")
        page.locator("[data-filter=exact]").click()
        assert found.noise == []


def test_order_by_change_and_by_length_puts_these_first(browser: Browser, page_path: Path) -> None:
    mark = "document.querySelector('#sample-{} [data-side=\"1\"] [data-score=rouge_l]')"
    gain = f"Number({mark}.dataset.gain)"
    with opened(browser, page_path) as found:
        page = found.page
        in_data = places(page)
        page.select_option("#order", "gain")
        assert page.evaluate(gain.format(places(page)[0])) == pytest.approx(0.3)
        page.select_option("#order", "loss")
        assert page.evaluate(gain.format(places(page)[0])) == pytest.approx(-0.2)
        page.select_option("#order", "long")
        longest = page.evaluate("document.querySelector('#list .sample').dataset.longest")
        assert longest == "20000"
        page.select_option("#order", "data")
        assert places(page) == in_data == [str(number + 1) for number in range(NUM_ROWS)]


def test_search_finds_words_of_any_script_and_marks_them(browser: Browser, page_path: Path) -> None:
    marked = "[...CSS.highlights.get('found')].map((range) => range.toString().trim())"
    with opened(browser, page_path) as found:
        page = found.page
        assert " of 50 samples, found " in search(found, "红色的星星")
        assert set(page.evaluate(marked)) == {"红色的星星"}
        search(found, "نجوم حمراء")
        assert places(page)
        search(found, "<SCRIPT>window.broken")
        assert 0 < len(places(page)) < NUM_ROWS
        assert set(page.evaluate(marked)) == {"<script>window.broken"}
        # Over the borders of marks: in the answer `blue` is a word that the reference has not.
        search(found, "bright blue stars")
        assert set(page.evaluate(marked)) == {"bright", "blue", "stars"}
        search(found, "in no sample (.*")
        assert places(page) == []
        page.get_by_text("No sample is like that.").wait_for()
        page.locator("#search").press("Escape")
        assert len(places(page)) == NUM_ROWS
        assert page.evaluate("CSS.highlights.get('found').size") == 0


def test_keys_search_step_and_switch_differences(browser: Browser, page_path: Path) -> None:
    focused = "document.activeElement.id"
    with opened(browser, page_path) as found:
        page = found.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.locator(".skip").bounding_box()["y"] >= 0  # type: ignore[index]
        page.keyboard.press("Enter")
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert page.evaluate(focused) == "sample-2"
        box = page.locator("#sample-2").bounding_box()
        assert box is not None
        assert 100 < box["y"] < 900
        page.keyboard.press("k")
        assert page.evaluate(focused) == "sample-1"
        page.keyboard.press("d")
        assert not page.locator("#sample-1 del").first.is_visible()
        page.keyboard.press("d")
        assert page.locator("#sample-1 del").first.is_visible()
        page.keyboard.press("/")
        assert page.evaluate(focused) == "search"
        page.keyboard.type("jkd/")
        assert page.input_value("#search") == "jkd/"


def test_every_control_has_a_name_and_can_be_reached(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path) as found:
        name = "one.getAttribute('aria-label') || one.labels?.[0]?.textContent || one.textContent"
        names = found.page.evaluate(
            "[...document.querySelectorAll('button, input, select, a')]"
            f".filter((one) => one.checkVisibility()).map((one) => ({name}).trim())"
        )
        assert len(names) > 20
        assert all(names)
        found.page.focus("#theme")
        found.page.keyboard.press("Tab")
        width = "getComputedStyle(document.activeElement).outlineWidth"
        assert found.page.evaluate(width) == "2px"


def test_long_text_is_folded_until_it_is_asked_for(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path) as found:
        button = found.page.locator("#list .fold").first
        text = found.page.locator("#list .text.long").first
        height = "(element) => element.getBoundingClientRect().height"
        folded = text.evaluate(height)
        button.click()
        assert button.get_attribute("aria-expanded") == "true"
        assert text.evaluate(height) > folded
        button.click()
        assert text.evaluate(height) == folded
        box = button.bounding_box()
        assert box is not None
        assert 0 < box["y"] < 900


@pytest.mark.parametrize("has_storage", [True, False], ids=["storage", "no storage"])
def test_colours_are_the_systems_until_they_are_chosen(
    browser: Browser, page_path: Path, has_storage: bool
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(247, 248, 250)", "rgb(15, 19, 25)"
    with opened(browser, page_path, scheme="dark") as found:
        page = found.page
        if not has_storage:
            page.add_init_script(
                "Object.defineProperty(window, 'localStorage', { get() { throw Error('no'); } })"
            )
            page.reload()
        assert page.evaluate(ground) == dark
        page.click("#theme")
        assert page.inner_text("#theme-name") == "light"
        assert page.evaluate(ground) == light
        page.reload()
        assert page.evaluate(ground) == (light if has_storage else dark)
        page.emulate_media(color_scheme="light")
        for _ in range(1 if has_storage else 2):
            page.click("#theme")
        assert page.evaluate(ground) == dark
        assert found.noise == []


def test_printed_page_shows_all_and_no_controls(
    browser: Browser, page_path: Path, artefacts: Path
) -> None:
    with opened(browser, page_path, scheme="dark") as found:
        page = found.page
        page.locator("[data-filter=worse]").click()
        page.emulate_media(media="print")
        assert len(places(page)) == NUM_ROWS
        seen = "[...document.querySelectorAll('.control, button, input, select, .top')]"
        assert not page.evaluate(f"{seen}.some((one) => one.checkVisibility())")
        cut = "getComputedStyle(document.querySelector('.text.long')).maxHeight"
        assert page.evaluate(cut) == "none"
        assert (
            page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        page.pdf(path=artefacts / "report.pdf", format="A4", print_background=True)
        assert found.noise == []
    assert (artefacts / "report.pdf").stat().st_size > 100_000


def test_page_without_its_script_can_be_read_whole(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path, scripts=False) as found:
        assert found.page.locator("#list .sample").count() == NUM_ROWS
        assert found.page.locator("#list .sample >> visible=true").count() == NUM_ROWS
        assert found.page.locator("button >> visible=true").count() == 0
        assert found.page.get_by_text("the same picture as above").first.is_visible()


def test_page_of_a_run_that_has_done_nothing_says_what_to_run(
    browser: Browser, tmp_path: Path
) -> None:
    empty = Report(
        name="new run",
        path="/data/new run",
        made_at=0.0,
        version="0.1.0",
        state="new",
        why="",
        facts=(),
        command="",
        curves=(),
        marks=(),
        launches=(),
        memory=None,
        reasons=(),
        splits=(),
        data_notes=(),
        comparison=None,
        watched=(),
    )
    path = tmp_path / "report.html"
    write_page(path, render(empty, images=lambda name: None))
    with opened(browser, path, width=390) as found:
        text = found.page.inner_text("main")
        assert found.faults() == []
        assert found.noise == []
    for verb in ("compare '/data/new run'", "train '/data/new run/run.yaml'", "plan", "inspect"):
        assert f"sailplan {verb}" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_picture_of_the_page_is_kept(
    browser: Browser,
    page_path: Path,
    artefacts: Path,
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    path = artefacts / f"report-{width}-{scheme}.png"
    with opened(browser, page_path, width=width, scheme=scheme) as found:
        found.page.set_viewport_size({"width": width, "height": 4500})
        content = found.page.screenshot(path=path)
    print(f"kept: {path}")
    with Image.open(io.BytesIO(content)) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24) or []
        ground = {"light": (247, 248, 250), "dark": (15, 19, 25)}[scheme]
        assert picture.convert("RGB").getpixel((2, 300)) == ground
    assert len(colours) > 1000

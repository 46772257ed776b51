"""Every kind of page that midlens writes, under axe-core: no violation, wide and light, narrow and dark."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from interp.attention.survey_result import ModelSurvey
from interp.attention_report.report import write_report as write_attention
from interp.figures.sudoku_boards import Board, boards_figure
from interp.figures.sudoku_grids import number_grid
from interp.page import Figure, Page, Section
from interp.steering_report.report import write_report as write_steering
from interp.sudoku.board import Rules
from interp.sudoku_report.report import write_report as write_sudoku
from saes.primitives_report import write_primitives_report
from saes.report import write_report as write_sae
from saes.sweep_summary import write_page as write_sweep
from tests import report_samples, steering_samples, sweep_samples
from tests.attention import survey_samples
from tests.browser_tab import chromium, needs_chromium
from tests.primitives import report_cases
from tests.sudoku import study_samples

pytestmark = needs_chromium


def sae(path: Path) -> Path:
    features = report_samples.features(40)
    return write_sae(
        path,
        evaluation=report_samples.evaluation(features),
        features=iter(features),
        training_log=report_samples.training_log(),
        provenance=report_samples.PROVENANCE,
        timings=report_samples.TIMINGS,
        norms=report_samples.norms(),
    )


def attention(path: Path) -> Path:
    return write_attention(path, [ModelSurvey.load(survey_samples.folder(path.parent / "survey", "whole"))])


def primitives(path: Path) -> Path:
    catalogue = report_cases.catalogue()
    return write_primitives_report(
        path,
        coverage=report_cases.coverage(3),
        catalogue=catalogue,
        untrained=report_cases.catalogue(strong=False),
        provenance={"model": "tiny", "site": "blocks.3.hook_resid_post", "SAE": {"k": 32}},
        promoted=report_cases.promoted(catalogue),
        known={"lexicon": (20, 27)},
    )


def sweep(path: Path) -> Path:
    return write_sweep(sweep_samples.summary(path.parent))


SCREENS: tuple[dict[str, Any], ...] = (
    {"color_scheme": "light", "viewport": {"width": 1440, "height": 900}},
    {"color_scheme": "dark", "viewport": {"width": 420, "height": 900}},
)
PAGES: dict[str, Callable[[Path], Path]] = {
    "sae": sae,
    "attention": attention,
    "primitives": primitives,
    "steering": lambda path: write_steering(path, steering_samples.evaluation()),
    "sudoku": lambda path: write_sudoku(path, study_samples.results()),
    "sweep": sweep,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def opened(browser: Any, path: Path, **context: Any) -> Any:
    tab = browser.new_context(**context).new_page()
    tab.set_default_timeout(120_000)
    tab.goto(path.as_uri())
    tab.wait_for_function("[...document.querySelectorAll('.plot')].every(e => e.querySelector('.main-svg'))")
    return tab


def violations(tab: Any) -> list[str]:
    """What axe-core finds, one line for each rule and element."""
    from axe_playwright_python.sync_playwright import Axe

    # What Plotly draws is left out: it is a group with a name, and takes most of the time.
    found = Axe().run(tab, context={"exclude": [[".main-svg"]]}).response["violations"]
    return [f"{one['id']} ({one['impact']}): {node['html'][:160]}" for one in found for node in one["nodes"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAGES)
def test_no_violation_on_any_page_in_light_or_dark(browser: Any, tmp_path: Path, kind: str):
    path = PAGES[kind](tmp_path / "page.html")
    for settings in SCREENS:
        tab = opened(browser, path, **settings)
        assert violations(tab) == [], settings
        tab.context.close()


@pytest.mark.slow
def test_what_is_wrong_is_found(browser: Any, tmp_path: Path):
    path = sae(tmp_path / "page.html")
    html = path.read_text()
    assert 'lang="en"' in html and "--ink-2: #565e67" in html
    path.write_text(html.replace('lang="en"', "", 1).replace("--ink-2: #565e67", "--ink-2: #b9bfc4", 1))
    tab = opened(browser, path, color_scheme="light")
    assert {line.split(" ")[0] for line in violations(tab)} == {"html-has-lang", "color-contrast"}
    tab.context.close()


def luminance(colour: tuple[int, ...]) -> float:
    """Relative, by WCAG 2.2."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ground(tab: Any, text: Any) -> tuple[int, ...]:
    """The colour drawn beside a word in a cell: of the screen, for filters count."""
    box = text.bounding_box()
    clip = {"x": box["x"] - 5, "y": box["y"] + box["height"] / 2, "width": 2, "height": 2}
    pixel = Image.open(io.BytesIO(tab.screenshot(clip=clip))).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_in_cells_stand_out_and_cells_are_of_the_page(browser: Any, tmp_path: Path, scheme: str):
    """Which axe-core can't tell, for cells are a picture."""
    values = np.array([[-2.0, 0.0, 2.0]])
    grid = number_grid(values, rows=["a"], columns=list("xyz"), signed=True, x_title="x", y_title="y")
    path = Page("Grid", "", [Section("Grid", [Figure(grid, "Grid")])]).write(tmp_path / "page.html")
    tab = opened(browser, path, color_scheme=scheme)
    words = tab.locator(".heatmap-label text")
    assert words.count() == 3
    for i in range(3):
        text = words.nth(i)
        fill = text.evaluate("e => getComputedStyle(e).fill.match(/\\d+/g).slice(0, 3).map(Number)")
        cell = ground(tab, text)
        low, high = sorted((luminance(tuple(fill)), luminance(cell)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (fill, cell)
        assert (luminance(cell) < 0.2) == (scheme == "dark")
        red, _, blue = cell
        assert [blue > red, abs(blue - red) < 20, red > blue][i]  # blue below 0, grey at 0, orange above
    tab.context.close()


def test_boards_keep_their_size_on_a_narrow_screen_and_scroll_by_keys(browser: Any, tmp_path: Path):
    rules = Rules.of(4)
    boards = [Board(np.zeros(rules.n_cells, np.int8), f"board {i}") for i in range(4)]
    figure = Figure(boards_figure(rules, boards), "Boards")
    path = Page("Boards", "", [Section("Boards", [figure])]).write(tmp_path / "page.html")
    tab = opened(browser, path, viewport={"width": 400, "height": 900})
    tab.wait_for_function("document.documentElement.scrollWidth <= 400")
    plot = tab.locator(".plot")
    assert plot.evaluate("e => e.scrollWidth") >= 4 * 190 > plot.evaluate("e => e.clientWidth")
    plot.focus()
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowRight")
    for _ in range(100):  # it scrolls smoothly
        if plot.evaluate("e => e.scrollLeft") > 0:
            break
        tab.wait_for_timeout(50)
    assert plot.evaluate("e => e.scrollLeft") > 0
    assert violations(tab) == []
    tab.context.close()

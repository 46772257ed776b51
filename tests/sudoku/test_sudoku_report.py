"""Results come back from their files as they were; the page says what they hold, in a browser without a complaint."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.errors import InputError
from interp.page.numbers import number
from interp.sudoku.board import Rules, candidates
from interp.sudoku.neuron_pages import neuron_pages
from interp.sudoku.neuron_scan import scan_sample
from interp.sudoku.probe_records import ProbeConfig
from interp.sudoku.probe_study import probe_study
from interp.sudoku.replay import forced_moves
from interp.sudoku.study_files import Result, kept, read_result, read_results
from interp.sudoku_report.numbers import interval, short_unit, unit_name
from interp.sudoku_report.report import write_report
from interp.sudoku_report.solving import moves_of
from tests.browser_tab import chromium, needs_chromium
from tests.sudoku import study_samples as samples

HOSTILE = '</script><img src="http://example.org/x.png" onerror="window.hacked = 1">'


def plain(path: Path) -> str:
    """The page's text without scripts, styles and tags."""
    html = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", path.read_text())
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("page") / "report.html", samples.results())


# files


@pytest.mark.parametrize("part", ["solving", "probes", "interventions", "circuit"])
def test_a_result_comes_back_from_its_file(part: str, tmp_path: Path):
    value, made = samples.value(part), []

    def make() -> Any:
        made.append(1)
        return value

    path = tmp_path / "deep" / f"{part}.json"
    first = kept(path, part, "a", {"seed": 1}, make)
    again = kept(path, part, "a", {"seed": 1}, make)
    assert first is value and made == [1] and type(again) is type(value)
    assert json.dumps(again.to_json()) == json.dumps(value.to_json())
    with pytest.raises(InputError, match=r"holds a result of other settings \(seed"):
        kept(path, part, "a", {"seed": 2}, make)
    with pytest.raises(InputError, match=r"holds a result of other settings \(name"):
        kept(path, part, "b", {"seed": 1}, make)


def test_what_is_no_result_is_refused_or_passed_over(tmp_path: Path):
    (tmp_path / "other.json").write_text('{"format": "another"}')
    with pytest.raises(InputError, match="its format is not 'midlens-sudoku'"):
        read_result(tmp_path / "other.json")
    with pytest.raises(InputError, match="holds no result of a Sudoku study"):
        read_results([tmp_path])
    kept(tmp_path / "solving.json", "solving", "a", {}, lambda: samples.value("solving"))
    assert [one.part for one in read_results([tmp_path])] == ["solving"]
    old = json.loads((tmp_path / "solving.json").read_text()) | {"version": 0}
    (tmp_path / "solving.json").write_text(json.dumps(old))
    with pytest.raises(
        InputError, match="'solving' of version 0; expected one of solving, probes, interventions, circ"
    ):
        read_result(tmp_path / "solving.json")


# neuron pages, against loops over states


def test_a_neurons_page_holds_its_activations():
    model, traces = samples.planted()
    sample = scan_sample(model, traces[:120])
    study = samples.value("circuit").study
    pages = neuron_pages(model, study.scan, sample, count=2)
    assert len({one.neuron for one in pages}) == len({one.token // 4 for one in pages}) == len(pages) == 2
    single = forced_moves(model.rules, sample.states.boards, singles="naked")
    for one in pages:
        acts = sample.neurons[:, one.neuron].double().numpy()
        assert one.auc == np.nanmax([study.scan.naked.auc[one.token]])
        held = candidates(model.rules, sample.states.boards)[:, one.token // 4].sum(1)
        for count in range(5):
            chosen = [a for a, h in zip(acts, held, strict=True) if h == count]
            if len(chosen) < 30:
                assert np.isnan(one.by_count[count]).all()
            else:
                assert one.by_count[count][2] == pytest.approx(np.median(chosen))
        told = [t for t in range(64) if 10 <= single[:, t].sum() <= len(acts) - 10]
        assert np.isfinite(one.where.reshape(-1)).nonzero()[0].tolist() == told
        for token in told[:5]:
            on, off = acts[single[:, token]], acts[~single[:, token]]
            assert one.where.reshape(-1)[token] == pytest.approx((on.mean() - off.mean()) / acts.std())


# the page


def test_the_page_says_what_was_measured(page: Path):
    text = plain(page)
    solving, study = samples.value("solving"), samples.value("probes")
    assert f"{solving.solved} of {solving.puzzles}" in text and number(solving.interval.low, ".4f") in text
    for layer in samples.value("interventions").layers:
        assert interval(layer.excess, "+.2f") in text
    for met in study.crossings:
        assert re.sub(r"\s+", " ", met.statement) in text
    for row in study.verdicts:
        assert interval(row.position, ".2f") in text
    assert "Only the cell-state curve can tell the hypotheses apart" in text
    assert "read off its published plots" in text and "cannot be compared with them level by level" in text
    assert "paper, 9 × 9 0.518 0.511 0.642 0.797 0.809 0.804 0.791 0.769" in text


def test_sections_follow_from_what_there_is(tmp_path: Path):
    for one in samples.results():
        text = plain(write_report(tmp_path / f"{one.part}.html", [one]))
        titles = {
            "solving": "Training and solving",
            "interventions": "Interventions",
            "circuit": "Naked-single neurons",
        }
        titles["probes"] = "What can be read"
        assert [part for part, title in titles.items() if f" {title} " in text.replace("Summary", "")] == [one.part]
    with pytest.raises(InputError, match="there is nothing to report"):
        write_report(tmp_path / "none.html", [])
    with pytest.raises(InputError, match="two results of solving are both of planted"):
        write_report(tmp_path / "two.html", [*samples.results(), samples.results()[0]])


@pytest.mark.parametrize(
    ("targets", "probes", "absent", "titles"),
    [
        (("filled",), ("ridge",), "no probes of cell state, no probes of substructure", ["Filled or empty"]),
        (("cell state", "substructure"), ("logistic",), "no probes of candidates", ["Cell states", "Units, all"]),
        (("candidates",), ("ridge", "logistic"), "no probes of cell state", ["Candidates, all"]),
    ],
)
def test_a_study_of_some_targets_is_drawn_and_the_page_says_what_it_lacks(
    tmp_path: Path, targets: tuple[str, ...], probes: tuple[str, ...], absent: str, titles: list[str]
):
    config = ProbeConfig(puzzles=100, targets=targets, probes=probes, draws=5, tol=0.1)
    study = probe_study({"tiny0": samples.tiny_model(0), "tiny1": samples.tiny_model(1)}, config, show=False)
    path = write_report(tmp_path / "report.html", [Result("probes", "tiny", {}, study)])
    text, html = plain(path), path.read_text()
    assert f"This study has {absent}" in text and "the crossing" in text
    assert f"({'logistic' if 'logistic' in probes else 'ridge'}) of the residual stream" in text
    drawn = re.findall(r"<figcaption><h3>(.*?)</h3>", html)
    known = ("Filled or empty", "Cell states", "Units, all digits right", "Candidates, all digits right")
    assert {one for one in drawn if one in known} == {one for one in known if one.startswith(tuple(titles))}
    assert ('id="the-crossing"' in html, 'id="cells-or-units"' in html) == (False, "substructure" in targets)


def test_a_whole_study_lacks_nothing(page: Path):
    assert "This study has no" not in plain(page)


def test_numbers_and_names():
    assert (number(-0.5), number(None), number(float("nan")), number(2, ".1f")) == ("−0.500", "−", "−", "2.0")
    assert (number(-0.0001), number(-0.0, ".1f"), number(-0.001, "+.2f")) == ("0.000", "0.0", "0.00")
    assert interval((0.5, -0.25, 0.75), "+.2f") == "+0.50 [−0.25, +0.75]" and interval((float("nan"),) * 3) == "−"
    rules = Rules.of(6)
    assert [unit_name(rules, u) for u in (0, 7, 17)] == ["row 1", "column 2", "box 6"]
    assert [short_unit(rules, u) for u in (5, 6, 12)] == ["R6", "C1", "B1"]


def test_boards_replay_the_models_moves():
    """Each board is the one before with the marked move made; the last is where the model ended."""
    solving, rules = samples.value("solving"), Rules.of(4)
    for example in solving.examples:
        boards = moves_of(rules, example)
        assert (boards[0].grid == example.puzzle).all()
        for board, after in itertools.pairwise(boards):
            assert board.move is not None
            cell, digit = board.move
            made = board.grid.copy()
            made[cell] = digit
            assert (made == after.grid).all() or len(boards) == 12
            assert board.title.startswith(f"R{cell // 4 + 1}C{cell % 4 + 1}={digit}")
        assert boards[-1].move is None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_offline_without_a_complaint(browser: Any, tmp_path: Path, scheme: str):
    path = write_report(tmp_path / "report.html", samples.renamed(HOSTILE))
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme, offline=True)
    tab = context.new_page()
    tab.set_default_timeout(120_000)
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector(".plot .main-svg")
    assert tab.locator(".plot .main-svg").count() >= 20
    assert not said and asked == [path.as_uri()]
    assert tab.evaluate("document.images.length") == 0 and tab.evaluate("window.hacked") is None
    assert HOSTILE in tab.locator(".subtitle").inner_text()
    for width in (1440, 700, 360):
        tab.set_viewport_size({"width": width, "height": 900})
        for _ in range(100):  # Plotly fits its figures behind a timer
            if tab.evaluate("document.documentElement.scrollWidth") <= width:
                break
            tab.wait_for_timeout(200)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    context.close()

"""The survey's page: what it says, of which model, and how it behaves in a real browser with every request refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.attention.survey_result import ModelSurvey
from interp.attention_report.report import number, write_report
from interp.errors import InputError
from tests.attention import survey_samples as samples
from tests.browser_tab import chromium, needs_chromium


def plain(path: Path) -> str:
    """The page's text without scripts, styles and tags."""
    html = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", path.read_text())
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


@pytest.fixture(scope="module")
def surveys(tmp_path_factory: pytest.TempPathFactory) -> list[ModelSurvey]:
    """Of a model that has everything, one without a kernel, and one that is not run."""
    base = tmp_path_factory.mktemp("surveys")
    folders = [
        samples.folder(base / "a", "whole"),
        samples.folder(base / "b", "queries-normed", kernel=False, rope=False, seed=1),
        samples.folder(base / "c", "weights-only", run=False, rope=False, seed=2),
    ]
    return [ModelSurvey.load(folder) for folder in folders]


@pytest.fixture(scope="module")
def page(surveys: list[ModelSurvey], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("page") / "survey.html", surveys)


def titles(path: Path) -> list[str]:
    return re.findall(r"<figcaption><h3>(.*?)</h3>", path.read_text())


def test_every_model_has_its_figures_and_no_others(page: Path):
    shown = titles(page)
    for title, models in {
        "Rank at 90 % of the energy": 3,
        "Effective rank, exp H(σ)": 3,
        "Routing fraction": 3,
        "Against the matched null": 2,
        "What rank means": 3,
        "Four sectors": 1,
        "Routing fraction of M(Δ)": 1,
    }.items():
        assert len([one for one in shown if one.startswith(f"{title} · ")]) == models, title
    assert sum("· layer" in one for one in shown) == 8  # four clouds of each model with a kernel
    assert len([one for one in shown if one.startswith("Induction · ")]) == 3  # two structures, and one in their place
    assert not [one for one in shown if "weights-only" in one and one.startswith(("Induction", "Sink"))]


def test_missing_cells_have_their_reasons(page: Path):
    text = plain(page)
    assert "queries-normed: no weight kernel, because queries-normed has no kernel &lt;script&gt;." in text
    assert "weights-only: no operating interaction, because" in text
    row = re.search(r"<tr><td>queries-normed</td>(.*?)</tr>", page.read_text())
    assert row and re.findall(r">([^<]*)</td>", row[1])[:3] == ["72", "−", "−"]


def test_medians_are_those_of_the_table(page: Path, surveys: list[ModelSurvey]):
    row = re.search(r"<tr><td>whole</td>(.*?)</tr>", page.read_text())
    assert row
    cells = re.findall(r">([^<]*)</td>", row[1])
    values = sorted(one["routing_fraction"] for one in surveys[0].rows)
    assert cells[:2] == ["72", f"{(values[35] + values[36]) / 2:.3f}"] and cells[-1] == "100 %"


def test_the_caveats_stand_on_the_page_in_plain_words(page: Path):
    text = plain(page)
    for said in (
        "attention and perplexity stay as they are, but routing and filtering become different",
        "A causal model never uses the score of a later position",
        "A rank is a matter of definition",
        "random matrices with the same singular values have one too",
        "whole: 72 of 72 heads, and 72 of 72 of their nulls, on average",
        "no reproduction of its tables",
    ):
        assert said in text, said


def test_chosen_heads_are_drawn(surveys: list[ModelSurvey], tmp_path: Path):
    path = write_report(tmp_path / "a.html", surveys[:1], heads=["3.1", "7.5"])
    assert {"whole · head 3.1", "whole · head 7.5"} <= set(titles(path))
    with pytest.raises(InputError, match=r"head 3\.6 was not measured in whole: layers 0 to 11, heads 0 to 5 were"):
        write_report(tmp_path / "b.html", surveys[:1], heads=["3.6"])
    assert not (tmp_path / "b.html").exists()


def test_surgery_joins_the_page_or_has_one_of_its_own(surveys: list[ModelSurvey], tmp_path: Path):
    path = tmp_path / "surgery.json"
    path.write_text(json.dumps(samples.surgery()))
    alone = write_report(tmp_path / "alone.html", [], results=[path])
    assert titles(alone) == ["Perplexity by planes kept", "Perplexity by modes kept"]
    text = plain(alone)
    assert "toy, all heads operated on; 1,000 predicted tokens of 10 documents" in text
    assert "which of the two parts looks more important is a statement about the gauge" in text.replace(
        "Which", "which"
    )
    assert "routing alone position, key-centred 900.0" in text
    assert "3.1 position, raw routing +0.5000" in text
    both = write_report(tmp_path / "both.html", surveys[:1], results=[path])
    assert set(titles(alone)) < set(titles(both))


def test_twins_of_several_seeds_are_put_together(tmp_path: Path):
    path = tmp_path / "cascade.json"
    path.write_text(json.dumps(samples.twins()))
    page = write_report(tmp_path / "twins.html", [], results=[path])
    assert titles(page)[:3] == ["Cascade, operating", "Cascade, weights", "Cascade over training"]
    assert "Attention&#x27;s size against perplexity" in titles(page)
    drawn = [
        json.loads(block) for block in re.findall(r'type="application/json"[^>]*>(.*?)</script>', page.read_text())
    ]
    cascade, linearised = drawn[0], drawn[3]
    lines = {trace["name"]: trace["y"] for trace in cascade["data"] if trace.get("name")}
    assert lines["sd"] == [2.5, 3.5, 4.5, 5.5] and lines["std"] == [2.0, 3.0, 4.0, 5.0]
    (band,) = [trace["y"] for trace in cascade["data"] if trace.get("fill") == "toself"]
    assert band == [2.0, 3.0, 4.0, 5.0, 6.0, 5.0, 4.0, 3.0]
    costs = {trace["name"]: trace["y"] for trace in linearised["data"] if trace.get("name")}
    assert costs["std"] == pytest.approx([1, 2, 3, 4])
    assert "sd 1 1,000 900 7.000 6.900 7.100 3.0 6.0" in plain(page)


def test_what_is_no_result_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="there is nothing to report"):
        write_report(tmp_path / "a.html", [])
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(InputError, match=r"other\.json is no result that a page can show"):
        write_report(tmp_path / "a.html", [], results=[tmp_path / "other.json"])
    with pytest.raises(InputError, match=r"holds no none\.json"):
        write_report(tmp_path / "a.html", [], results=[tmp_path / "none.json"])


def test_numbers_are_spelled_with_a_true_minus():
    assert [number(x) for x in (-0.5, None, float("nan"))] == ["−0.500", "−", "−"]


# ---- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def opened(browser: Any, path: Path, **context: Any) -> tuple[Any, list[str]]:
    """A tab in which everything is drawn, and what it asked for or complained of."""
    complaints: list[str] = []
    tab = browser.new_context(**context).new_page()
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: complaints.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_function(
        "[...document.querySelectorAll('.plot')].every(e => e.querySelector('.main-svg'))", timeout=120_000
    )
    return tab, [one for one in complaints if one != path.as_uri()]


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_offline_without_a_complaint(browser: Any, page: Path, scheme: str):
    tab, complaints = opened(browser, page, color_scheme=scheme, offline=True)
    assert not complaints
    assert tab.locator(".plot .main-svg").count() >= len(titles(page))
    assert not tab.evaluate("[...document.querySelectorAll('.plot')].filter(e => !e.querySelector('.trace')).length")
    tab.context.close()


@needs_chromium
def test_nothing_sticks_out_on_any_screen(browser: Any, page: Path):
    tab, _ = opened(browser, page)
    for width in (1440, 700, 360):
        tab.set_viewport_size({"width": width, "height": 900})
        # Plots take a while to follow; that they do is what is waited for (or the wait ends in an error).
        tab.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width, timeout=60_000)
    tab.context.close()

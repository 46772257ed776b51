"""The page of the literary primitives: every count beside its control, every text escaped, nothing drawn of nothing."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.errors import InputError
from interp.stats import paired_permutation, wilson
from saes.primitives.catalogue import Catalogue
from saes.primitives.results import Coverage
from saes.primitives_report import write_primitives_report
from saes.primitives_report.candidates import counts
from saes.primitives_report.judging import pairwise
from tests.browser_tab import chromium, needs_chromium
from tests.primitives import report_cases as cases

PROVENANCE = {"model": "tiny <i>model</i>", "site": "blocks.3.hook_resid_post", "SAE": {"k": 32}}


@pytest.fixture(scope="module")
def found() -> Coverage:
    return cases.coverage(6)


@pytest.fixture(scope="module")
def path(found: Coverage, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("page") / "page.html", found)


def write(path: Path, coverage: Coverage, **fields: Any) -> Path:
    catalogue = cases.catalogue()
    settings: dict[str, Any] = {
        "catalogue": catalogue, "untrained": cases.catalogue(strong=False), "provenance": PROVENANCE,
        "promoted": cases.promoted(catalogue), "known": {"lexicon": (20, 27)},
    }  # fmt: skip
    return write_primitives_report(path, coverage=coverage, **settings | fields)


def said(path: Path) -> str:
    html = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", path.read_text())
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def table(path: Path, title: str) -> list[list[str]]:
    """The cells of the table whose caption starts so."""
    (body,) = re.findall(rf"<caption>{re.escape(title)}.*?<tbody>(.*?)</tbody>", path.read_text(), re.S)
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    return [[unescape(cell).replace("\u00a0", " ") for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


def test_every_count_of_candidates_stands_beside_that_of_an_untrained_sae(path: Path):
    trained, untrained = cases.catalogue(), cases.catalogue(strong=False)
    found = counts(trained, untrained)
    assert list(found) == ["Naming-gates", "Selves", *(f"Register: {n}" for n in list(trained.facts["contrasts"])[1:])]
    assert found["Naming-gates"] == (len(trained.of("naming")), len(untrained.of("naming")))
    assert found["Register: deep-pov"] == (60, 0)
    text = said(path)
    for kind, title in (("naming", "Naming-gates"), ("self", "Selves"), ("register", "Register modulators")):
        assert f"{title}: {len(trained.of(kind))} (untrained SAE: {len(untrained.of(kind))})" in text


def test_without_an_untrained_sae_the_page_says_that_counts_cannot_be_read(found: Coverage, path: Path, tmp_path: Path):
    bare = write(tmp_path / "page.html", found, untrained=None)
    warning = "the counts cannot be read as discoveries"
    assert warning in said(bare) and "untrained SAE: not searched" in said(bare)
    assert warning not in said(path)
    other = Catalogue((), cases.catalogue().facts | {"features": 7})
    with pytest.raises(InputError, match="the untrained SAE has 7 features, the SAE 4096; expected the same shape"):
        write(tmp_path / "page.html", found, untrained=other)


def test_totals_of_every_condition_and_their_difference_to_the_steered_texts(found: Coverage, path: Path):
    rows = {row[0]: row for row in table(path, "Totals over 6 emotions")}
    assert set(rows) == set(cases.CONDITIONS)
    rates = {}
    for name in cases.CONDITIONS:
        held = [cell.condition(name) for cell in found.cells]
        strict = sum(one.strict for one in held)
        low, high = wilson(strict, 6)
        assert rows[name][2] == f"{strict} of 6 [{low:.2f}, {high:.2f}]"
        rates[name] = np.array([one.hits / one.answers for one in held])
    for name in cases.CONDITIONS[1:]:
        gap = rates["steered"] - rates[name]
        assert rows[name][6].replace("−", "-") == f"{gap.mean():+.2f}"
        assert float(rows[name][7].replace("−", "-")) == pytest.approx(paired_permutation(gap), rel=0.06)
    assert rows["steered"][6:] == ["−", "−"]


def test_steered_texts_stand_beside_those_of_every_control(found: Coverage, path: Path):
    for cell in found.cells:
        rows = table(path, f"{cell.emotion}: #")
        assert [(row[0], row[1]) for row in rows] == [(name, seed) for name in cases.CONDITIONS for seed in "01"]
        first = next(one for one in cell.samples if one.condition == "steered" and one.prompt == cases.PROMPTS[0])
        assert rows[0][3] == first.text
        hits = sum(vote == cell.emotion for vote in first.votes.values())
        assert rows[0][2].startswith(f"{hits} of 5")


def test_agreement_of_two_judges_against_counting(found: Coverage):
    samples = [one for cell in found.cells for one in cell.samples]
    same, kappa = pairwise(samples, cases.JUDGES)
    a, b = ([one.votes[judge] for one in samples] for judge in cases.JUDGES[:2])
    assert same[0, 1] == same[1, 0] == pytest.approx(sum(x == y for x, y in zip(a, b, strict=True)) / len(a))
    pooled = [*a, *b]
    chance = sum((pooled.count(option) / len(pooled)) ** 2 for option in set(pooled))
    assert kappa[0, 1] == pytest.approx((same[0, 1] - chance) / (1 - chance))
    assert np.isnan(np.diag(same)).all()
    assert pairwise([replace(one, votes=dict.fromkeys(cases.JUDGES, one.prompt)) for one in samples], cases.JUDGES)[1][
        0, 1
    ] == pytest.approx(1)


def test_unusable_answers_and_known_texts_of_every_judge(found: Coverage, path: Path, tmp_path: Path):
    rows = {row[0].replace("&lt;", "<"): row for row in table(path, "Each judge")}
    samples = [one for cell in found.cells for one in cell.samples]
    for judge in cases.JUDGES:
        lost = [sum(answers[judge] is None for answers in some) for some in (
            [one.votes for one in samples], [one.yes for one in samples])]  # fmt: skip
        assert rows[judge][1:4] == [str(len(samples)), *map(str, lost)]
        assert found.unusable[judge] == (sum(lost), 2 * len(samples)) and sum(lost)
    assert f"of {2 * len(samples) * len(cases.JUDGES):,} under all conditions, forced choices and yes or no" in said(
        path
    )
    assert rows["lexicon"][5].startswith("20 of 27 [") and rows["probe"][5] == "not tried"
    assert "nothing here says which of them is right" in said(write(tmp_path / "p.html", found, known=None))


def test_the_search_and_the_fresh_seeds(found: Coverage, path: Path):
    for cell, row in zip(found.cells, table(path, "Searches"), strict=True):
        steered = cell.condition("steered")
        assert row[:2] == [cell.emotion, str(len(cell.search))]
        assert row[3:] == [f"{max(one.score for one in cell.search):.3f}", f"{steered.hits / steered.answers:.2f}"]


def test_every_text_is_escaped_wherever_it_comes_from(path: Path):
    html = path.read_text()
    outside = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", html)
    for evil in ("<img", "<svg", "<h1>Broken", "<b>", "<i>", "alert(1)</"):
        assert evil not in outside.replace("alert(1)&lt;/", ""), evil
    assert html.count("<h1>") == 1
    for block in re.findall(r'(?s)<script type="application/json"[^>]*>(.*?)</script>', html):
        assert "<" not in block
        json.loads(block)


def test_no_emotion_passes_and_no_emotion_tried_and_no_candidate(tmp_path: Path):
    weak = said(write(tmp_path / "weak.html", cases.coverage(4, strength=0.05)))
    assert "No emotion passes strictly" in weak and "0 of 4" in weak
    assert "No emotion passes strictly" not in said(write(tmp_path / "strong.html", cases.coverage(4, strength=1.0)))
    none = cases.coverage(0)
    assert math.isnan(none.kappa)
    bare = cases.catalogue(empty=True)
    text = said(write(tmp_path / "none.html", none, catalogue=bare, untrained=None, promoted=None))
    assert "None of 27 emotions was tried" in text and text.count("No feature passes the rule of this class") == 3
    assert not re.search(r"\b(nan|None)\b", text.replace("None of 27", ""))


def test_a_page_without_a_model_is_refused(found: Coverage, tmp_path: Path):
    with pytest.raises(InputError, match=r"name the model under 'model'.*got keys \['site'\]"):
        write(tmp_path / "page.html", found, provenance={"site": "x"})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 420])
def test_the_page_draws_without_a_complaint_or_a_request(browser, path: Path, scheme: str, width: int):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if "page.html" not in request.url else None)
    page.goto(path.as_uri())
    page.wait_for_selector(".js-plotly-plot .main-svg")
    page.wait_for_function(
        "document.querySelectorAll('.plot').length == document.querySelectorAll('.main-svg').length / 3"
    )
    assert complaints == []
    assert page.title() == "Literary primitives"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("main svg[onload], main img").count() == 0
    context.close()

"""The SAE's report: what it says, and how it behaves in a real browser with every request recorded and refused."""

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from interp.errors import InputError
from saes import examples
from saes.report import number, write_report
from tests import report_samples as samples
from tests.browser_tab import Tab, chromium, needs_chromium

HOSTILE = '</script><img src="http://example.org/x.png" onerror="window.hacked = 1">'


def report(path: Path, features: list[samples.Feature], **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "evaluation": samples.evaluation(features),
        "features": iter(features),
        "training_log": samples.training_log(),
        "provenance": samples.PROVENANCE,
        "timings": samples.TIMINGS,
        "norms": samples.norms(),
    }
    return write_report(path, **settings | changes)


def plain(path: Path) -> str:
    """The page's text without scripts, styles and tags."""
    html = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", path.read_text())
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_samples_have_the_shape_of_the_real_records():
    for ours, real in ((samples.Feature, examples.Feature), (samples.Example, examples.Example)):
        assert [field.name for field in fields(ours)] == [field.name for field in fields(real)]


def test_the_headline_is_the_honest_explained_variance(tmp_path):
    features = samples.features(20)
    path = report(tmp_path / "report.html", features)
    html, text = path.read_text(), plain(path)
    headline = re.search(r'<div class="tile headline">.*?</div>', html)
    assert headline and "0.847" in headline[0] and "0.971 with massive rows" in headline[0]
    assert "17 massive rows" in headline[0]
    assert "norm over 10 × the median (here 603)" in text
    for said in ("+0.229", "3.211 clean → 3.440 spliced", "0.207", "96.6 %", "32.0", "0.925", "143 documents"):
        assert said in text, said
    dead = sum(feature.density == 0 for feature in features)
    assert f"{dead} of 20 never fired on 30,123 held-out tokens" in text


def test_the_model_is_named_wherever_its_numbers_are(tmp_path):
    html = report(tmp_path / "report.html", samples.features(5)).read_text()
    for section in ("quality", "distributions", "features", "training", "provenance"):
        body = re.search(rf'<section id="{section}".*?</section>', html, re.S)
        assert body and samples.MODEL in body[0], section


@pytest.mark.parametrize("provenance", [{}, {"model": ""}, {"model": 3, "site": "resid_post.15"}])
def test_a_report_without_a_model_is_refused(tmp_path, provenance):
    with pytest.raises(InputError, match="provenance has to name the model under 'model'"):
        report(tmp_path / "report.html", samples.features(2), provenance=provenance)
    assert not list(tmp_path.iterdir())


def test_provenance_timings_and_figures_without_a_value_are_shown(tmp_path):
    features = samples.features(5)
    hollow = replace(samples.evaluation(features), loss_recovered=float("nan"))
    changes = {"provenance": samples.PROVENANCE | {"host": {"cores": 2}}, "evaluation": hollow, "norms": None}
    text = plain(report(tmp_path / "report.html", features, training_log=[], **changes))
    assert "train tokens 200,448" in text and "host cores 2" in text
    assert "total 344.1 100%" in text
    assert "Loss recovered – of what" in text
    assert "Training curves" not in text and "Norms of activation rows" not in text


def test_numbers_are_spelled_with_a_true_minus():
    assert (number(-0.5), number(0.25, "+.2f"), number(float("inf"))) == ("−0.500", "+0.25", "–")


# ---- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def listed() -> list[samples.Feature]:
    made = samples.features(300, seed=1)
    first = replace(made[7].examples[0], tokens=(HOSTILE, *made[7].examples[0].tokens[1:]), doc_id=HOSTILE)
    made[7] = replace(made[7], promoted=((HOSTILE, 9.0), *made[7].promoted), examples=(first, *made[7].examples[1:]))
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory, listed) -> Path:
    provenance = samples.PROVENANCE | {"note": HOSTILE}
    return report(tmp_path_factory.mktemp("report") / "report.html", listed, provenance=provenance)


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_offline_without_a_complaint(browser, path, scheme):
    with Tab(browser, path, color_scheme=scheme, offline=True) as tab:
        tab.page.wait_for_function("[...document.querySelectorAll('.plot')].every(e => e.querySelector('.main-svg'))")
        assert tab.page.locator(".plot .main-svg").count() >= 8
        tab.page.mouse.wheel(0, 4000)
        assert tab.quiet, (tab.complaints, tab.requests)


@needs_chromium
def test_a_request_would_be_seen_and_an_injected_script_stopped(browser, path):
    """The converse of the test above: the recorder records, and the page's own policy refuses."""
    with Tab(browser, path) as tab:
        tab.page.evaluate("""() => {
            const image = new Image(); image.src = "http://example.org/x.png"; document.body.append(image);
            const script = document.createElement("script"); script.textContent = "window.injected = 1";
            document.body.append(script);
        }""")
        tab.page.wait_for_timeout(200)
        assert not tab.quiet
        assert tab.requests[1:] == ["http://example.org/x.png"]
        refused = " ".join(complaint for complaint in tab.complaints if "Content Security Policy" in complaint)
        assert "img-src" in refused and "script-src" in refused
        assert tab.page.evaluate("window.injected") is None


@needs_chromium
def test_hostile_tokens_stay_inert_and_legible(browser, path):
    with Tab(browser, path, fragment="#feature-7") as tab:
        assert tab.page.evaluate("document.images.length") == 0
        assert tab.page.evaluate("window.hacked") is None
        assert tab.page.locator(".chips bdi").first.inner_text() == HOSTILE
        assert tab.page.locator(".window .token").first.text_content() == HOSTILE
        assert tab.page.locator(".source bdi").first.inner_text() == HOSTILE
        assert tab.quiet, (tab.complaints, tab.requests)


@needs_chromium
def test_nothing_sticks_out_on_any_screen(browser, path):
    with Tab(browser, path) as tab:
        for width in (1440, 1000, 700, 360):
            tab.page.set_viewport_size({"width": width, "height": 800})
            tab.page.wait_for_timeout(300)  # Plotly fits its figures behind a timer
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width


CONTRAST = """(selector) => {
    const pixel = (...colours) => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d");
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(c => c / 255);
    };
    const luminance = rgb => rgb.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    return Math.min(...[...document.querySelectorAll(selector)].map(element => {
        const layers = [];
        for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
        const style = getComputedStyle(element);
        const ink = element.closest("svg") ? style.fill : style.color;
        const pair = [luminance(pixel("white", ...layers)), luminance(pixel("white", ...layers, ink))];
        const [low, high] = pair.sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    }));
}"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_on_every_ground(browser, path, scheme):
    """At least 4.5:1 (WCAG 1.4.3), on the strongest highlight too."""
    with Tab(browser, path, color_scheme=scheme) as tab:
        tab.page.wait_for_selector(".plot .xtick text")
        for selector in (
            "h1", ".subtitle", "nav a", ".lead", ".tile dt", ".tile .note", ".unit", "figcaption p", ".count", "footer",
            ".facts dt", "td", ".columns button", ".option .value", ".preview .left span", ".choice button", ".mark",
            ".chips bdi", ".chips small", ".token .ink", ".source", "svg.histogram text", ".plot .xtick text",
            ".plot .legend text",
        ):  # fmt: skip
            assert tab.page.evaluate(CONTRAST, selector) >= 4.5, selector

"""The page of an evaluation: what it says, that nothing of a text is markup, and how it does in a real browser."""

import json
import re
from pathlib import Path

import pytest

from interp.errors import InputError
from interp.figures.steering_effects import effect_bars, layer_plot
from interp.figures.steering_fronts import change_plot, front_plot
from interp.steering.evaluation import UNSTEERED, Estimate, SteeringEvaluation
from interp.steering_report.report import best_within, write_report
from tests import steering_samples as samples
from tests.browser_tab import chromium, needs_chromium


@pytest.fixture(scope="module")
def found() -> SteeringEvaluation:
    return samples.evaluation()


def plain(path: Path) -> str:
    html = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", path.read_text())
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_an_evaluation_survives_its_file(found: SteeringEvaluation, tmp_path: Path):
    assert SteeringEvaluation.load(found.save(tmp_path / "evaluation.json")) == found
    value = json.loads((tmp_path / "evaluation.json").read_text())
    with pytest.raises(InputError, match="version 9, expected midlens-steering-evaluation version 1"):
        SteeringEvaluation.from_json({**value, "version": 9})


def test_no_point_of_the_front_is_dominated_and_every_other_is(found: SteeringEvaluation):
    def pair(point):
        return point.kl.value, point.sets["source"].mean["lexicon"].value

    front = found.front("lexicon")
    for point in found.points:
        kl, score = pair(point)
        better = [a for a in front if a is not point and pair(a)[0] <= kl and pair(a)[1] >= score]
        assert (point in front) == (not better)


def test_the_best_strength_within_a_budget(found: SteeringEvaluation):
    budget = 0.1
    best = best_within(found, "lexicon", budget)
    assert set(best) == set(found.methods)
    for method, point in best.items():
        within = [one for one in found.of(method) if one.kl.value <= budget]
        assert point.sets["source"].mean["lexicon"].value == max(o.sets["source"].mean["lexicon"].value for o in within)
    least = best_within(found, "lexicon", 0.0)["midsteer"]
    assert least.beta == 0.5  # none is within: the one of least KL


def test_wrong_way_p_and_interval_of_a_change(found: SteeringEvaluation):
    flip, random = (found.of(name)[-1].sets["target"].change["lexicon"] for name in ("flip", "random"))
    assert flip.wrong_way.value == 1 and flip.p < 0.001 and flip.mean.high < 0
    assert random.p > 0.01 and random.mean.low < 0 < random.mean.high


def test_figures_hold_every_method_and_interval(found: SteeringEvaluation):
    figure = front_plot(found, "lexicon")
    names = {trace.name for trace in figure.data}
    assert {"midsteer", "flip", "vanilla", "random", "instruction in the prompt"} <= names
    (trace,) = [trace for trace in figure.data if trace.name == "flip"]
    points = found.of("flip")
    assert list(trace.y) == [point.sets["source"].mean["lexicon"].value for point in points]
    assert trace.error_y.array[0] == pytest.approx(
        points[0].sets["source"].mean["lexicon"].high - points[0].sets["source"].mean["lexicon"].value
    )
    assert "flip" in {trace.name for trace in change_plot(found, "embedding").data}
    with pytest.raises(InputError, match="no scores of a judge 'x'; there are lexicon, embedding"):
        front_plot(found, "x")
    with pytest.raises(InputError, match="no prompts 'y'; there are source, target, unrelated"):
        change_plot(found, "lexicon", unwanted="y")


def test_bars_and_layers_refuse_to_draw_nothing():
    assert effect_bars({"a": Estimate(1, 0.5, 2)}, x_title="KL", level=(0.7, "unsteered")).data[0].x == (1,)
    with pytest.raises(InputError, match="no side effects"):
        effect_bars({}, x_title="KL")
    rows = [{"point": "attn_out", "layer": 3, "rho": 0.2}, {"point": "attn_out", "layer": 1, "rho": float("nan")}]
    assert list(layer_plot(rows, "rho", y_title="ρ").data[0].x) == [3]
    with pytest.raises(InputError, match="no site has a finite 'eta'"):
        layer_plot(rows, "eta", y_title="η")


def test_the_page_says_what_was_measured_and_escapes_every_text(found: SteeringEvaluation, tmp_path: Path):
    path = write_report(tmp_path / "page.html", found)
    html, text = path.read_text(), plain(path)
    for said in ("Best strength within the budget", "AxBench", "wrong way", "horse-motorcycle", "lexicon", "embedding"):
        assert said in text, said
    assert "<img" not in html and "<b>bold" not in html
    assert "once upon a time" in text and "Change of accuracy on 50 questions" in text
    only = SteeringEvaluation(found.facts, found.of(UNSTEERED))
    with pytest.raises(InputError, match="no steered point"):
        write_report(tmp_path / "none.html", only)


@needs_chromium
@pytest.mark.slow
def test_the_page_draws_in_light_and_dark_without_a_complaint(found: SteeringEvaluation, tmp_path: Path):
    path = write_report(tmp_path / "page.html", found)
    with chromium() as browser:
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
            page, said = context.new_page(), []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on(
                "request",
                lambda request, said=said: said.append(request.url) if "page.html" not in request.url else None,
            )
            page.goto(path.as_uri())
            page.wait_for_selector(".js-plotly-plot .main-svg")
            assert said == [], said
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            context.close()

"""The Pareto plot: its front against brute force, its numbers, its labels, and how it looks in a browser."""

import json
import math
import random
import re
from pathlib import Path

import pytest

from interp.errors import InputError
from interp.figures.pareto import pareto_front, pareto_plot
from saes.sweep import pareto
from saes.sweep_summary import write_page
from tests.browser_tab import chromium, needs_chromium
from tests.sweep_samples import summary


@pytest.mark.parametrize("lower", [False, True])
def test_the_front_is_what_nothing_dominates(lower: bool):
    """All pairs compared, on small integers so that ties abound."""
    draw = random.Random(0)
    for _ in range(200):
        points = [(draw.randint(1, 6), draw.randint(1, 6)) for _ in range(draw.randint(1, 12))]
        x, y = zip(*points, strict=True)
        sign = -1 if lower else 1

        def beats(a: tuple[int, int], b: tuple[int, int], sign: int = sign) -> bool:
            return a != b and a[0] <= b[0] and sign * a[1] >= sign * b[1]

        best = {p for p in points if not any(beats(q, p) for q in points)}
        front = pareto_front(x, y, lower=lower)
        assert {points[i] for i in front} == best and len(front) == len(best)  # of equal points, one
        assert [x[i] for i in front] == sorted(x[i] for i in front)


def test_one_trace_a_series_and_every_number_in_it(tmp_path: Path):
    found = summary(tmp_path)
    for y, title, lower in (("explained_variance", "higher is better", False), ("delta_ce", "nats per token", True)):
        figure = pareto(found, y)
        front, *others = figure.data
        traces = {trace.name: trace for trace in others if trace.mode == "markers"}
        assert len(traces) == 12 and "batchtopk, width 4,608" in traces
        shown = {
            name: (10**x, y) for t in traces.values() for (name, _), x, y in zip(t.customdata, t.x, t.y, strict=True)
        }
        expected = {name: (f["l0"], f[y]) for name, f in found.figures().items() if f["l0"] > 0}
        assert len(expected) == 47 and shown == {name: pytest.approx(point) for name, point in expected.items()}
        assert figure.layout.yaxis.title.text.endswith(f"({title})") or title in figure.layout.yaxis.title.text
        assert figure.layout.xaxis.title.text == "L0, active features per token (log scale)"
        assert front.name == "Pareto front" and front.line.dash == "dash"
        points = list(expected.values())
        best = pareto_front([p[0] for p in points], [p[1] for p in points], lower=lower)
        assert list(zip(front.x, front.y, strict=True)) == [
            (pytest.approx(math.log10(points[i][0])), points[i][1]) for i in best
        ]


def test_no_two_series_look_alike(tmp_path: Path):
    traces = [trace for trace in pareto(summary(tmp_path)).data if trace.mode == "markers"]
    looks = {(t.marker.symbol, t.marker.color) for t in traces}
    assert len(looks) == len(traces) == 12
    assert len({t.marker.symbol for t in traces}) == 12  # without colours too


def test_training_figures_are_never_mixed_with_held_out_ones(tmp_path: Path):
    assert summary(tmp_path).held_out
    for found in (summary(tmp_path, held_out=False), summary(tmp_path, unlike=True)):
        assert not found.held_out
        assert (
            found.figures()["topk-w2304-k16"]["explained_variance"]
            == found.records["topk-w2304-k16"]["training"]["explained_variance"]
        )
        text = write_page(found).read_text()
        assert (
            "the last rows of training, which the SAEs were trained on" in text and "Sparsity against loss" not in text
        )


def test_the_page_is_offline_and_holds_the_table(tmp_path: Path):
    text = write_page(summary(tmp_path)).read_text()
    assert "SmolLM2-135M · blocks.15.hook_resid_post · 198,938 rows" in text
    assert "Measured on held-out rows; 47 of 49 SAEs" in text
    assert '<th scope="col" class="number">L0</th>' in text
    assert "jumprelu-w4608-k32" in text and "lost: loss became NaN &lt;b&gt;" in text
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.S)
    titles = [json.loads(block)["layout"]["yaxis"]["title"]["text"] for block in blocks if '"layout"' in block]
    assert titles == ["explained variance (higher is better)", "ΔCE, nats per token (lower is better)"]


def test_the_text_of_a_summary(tmp_path: Path):
    head, *lines = summary(tmp_path).text().splitlines()
    assert head.split() == ["SAE", "status", "L0", "explained", "variance", "dead", "ΔCE", "KL"]
    assert lines[1].split() == ["topk-w2304-k16", "finished", "16.3", "0.5631", "1.0%", "+0.6369", "0.3000"]
    assert lines[-2].split() == ["lost", "diverged", "–", "–", "–", "–", "–"]
    assert lines[-1] == "lost: loss became NaN <b>"


def test_what_cannot_be_drawn_is_refused(tmp_path: Path):
    point = {"name": "a", "series": "s", "colour": "c", "dash": 1, "x": 1.0, "y": 1.0}
    for points in ([], [point | {"x": 0.0}], [point, point | {"y": float("nan")}]):
        with pytest.raises(InputError, match="points, with x positive and x and y finite"):
            pareto_plot(points, x_title="x", y_title="y")
    (tmp_path / "sweep.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="is no summary of version 1"):
        pareto(tmp_path)
    assert pareto_plot([point], x_title="x", y_title="y").data[0].x == (0.0,)


def test_ticks_name_the_sparsities_of_a_narrow_range():
    base = {"series": "s", "colour": "c", "dash": 1, "y": 1.0}
    for ks, names in (((16, 32, 64), ["16", "32", "64"]), ((8, 300), ["10", "20", "50", "100", "200"])):
        figure = pareto_plot([base | {"name": str(k), "x": k} for k in ks], x_title="x", y_title="y")
        assert list(figure.layout.xaxis.ticktext) == names
        assert [10**place for place in figure.layout.xaxis.tickvals] == pytest.approx([float(name) for name in names])


@needs_chromium
def test_the_page_in_a_browser(tmp_path: Path):
    """Both plots are drawn, nothing is requested, nothing complains, no legend lies over the points."""
    path = write_page(summary(tmp_path))
    with chromium() as browser:
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        requests, complaints = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.plot .scatterlayer .trace').length >= 50")
        assert requests == [path.as_uri()] and not complaints
        for plot in page.query_selector_all(".plot"):
            legend, area = (plot.query_selector(mark).bounding_box() for mark in (".legend", ".gridlayer"))
            assert legend["y"] + legend["height"] <= area["y"] + 1
            whole = plot.bounding_box()
            assert legend["x"] + legend["width"] <= whole["x"] + whole["width"] + 1
            assert area["height"] > 150
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000

"""Figures hold the numbers they are given, with units on their axes, in colours that can be told from the page."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from interp.errors import InputError
from interp.figures.densities import density_histogram
from interp.figures.losses import loss_bars
from interp.figures.norms import norm_distribution
from interp.figures.style import GREY, PALETTE, blank, decades
from interp.figures.throughput import throughput_bars
from interp.figures.training import MOST_POINTS, curve_names, training_curves
from tests import report_samples as samples

ROOT = Path(__file__).resolve().parents[1]


def test_importing_figures_and_pages_loads_no_plotly():
    code = (
        "import sys, interp.figures.densities, interp.figures.losses, interp.figures.norms, interp.figures.training\n"
        "import interp.page; sys.exit('plotly' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#ffffff", "#1a1e22"])
@pytest.mark.parametrize("colour", PALETTE)
def test_every_colour_can_be_told_from_light_and_dark(colour: str, background: str):
    low, high = sorted((luminance(colour), luminance(background)))
    assert (high + 0.05) / (low + 0.05) >= 3.0  # WCAG 1.4.11 for graphics


@pytest.mark.parametrize(("background", "least"), [("#ffffff", 4.5), ("#111111", 4.0)])
def test_text_can_be_read_on_light_and_dark(background: str, least: float):
    low, high = sorted((luminance(blank().layout.template.layout.font.color), luminance(background)))
    assert (high + 0.05) / (low + 0.05) >= least


def test_training_curves_hold_the_log():
    log = samples.training_log(50)
    figure = training_curves(log)
    assert [trace.name for trace in figure.data] == curve_names(log)
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["loss"].y) == [entry["loss"] for entry in log]
    assert list(by_name["loss"].x) == [entry["tokens"] for entry in log]
    assert figure.layout.xaxis.title.text == "training tokens"
    assert "active features per token" in figure.layout.yaxis3.title.text


def test_a_curve_logged_now_and_then_and_a_log_without_tokens():
    log = [{"step": i, "loss": 1.0 / (i + 1)} | ({"dead_fraction": 0.1} if i % 10 == 0 else {}) for i in range(30)]
    figure = training_curves(log)
    loss, dead = figure.data
    assert len(loss.x) == 30 and list(dead.x) == [0, 10, 20]
    assert figure.layout.xaxis.title.text == "step"


@pytest.mark.parametrize("length", [MOST_POINTS, MOST_POINTS + 1, 2 * MOST_POINTS + 1, 12_345])
def test_long_logs_are_thinned_and_keep_their_end(length: int):
    (trace,) = training_curves([{"step": i, "loss": float(i)} for i in range(length)]).data
    assert len(trace.x) <= MOST_POINTS
    assert (trace.x[0], trace.x[-1]) == (0, length - 1)
    assert set(np.diff(trace.x)[:-1]) == {trace.x[1] - trace.x[0]}


def test_training_curves_refuse_what_they_cannot_draw():
    with pytest.raises(InputError, match="training log is empty"):
        training_curves([])
    with pytest.raises(InputError, match=r"needs 'step' or 'tokens'; the first has \['loss'\]"):
        training_curves([{"loss": 1.0}])
    with pytest.raises(InputError, match=r"none of the curves asked for .* it holds \['step', 'temperature'\]"):
        training_curves([{"step": 1, "temperature": 2.0}])


def test_the_density_histogram_counts_every_feature_that_fired():
    density = np.array([0.0, 0.0, 1e-4, 2e-4, 0.01, 0.5, 1.0])
    figure = density_histogram(density, n_tokens=10_000)
    (bars,) = figure.data
    assert sum(bars.y) == 5
    low, high = bars.customdata[:, 0], bars.customdata[:, 1]
    for value in density[density > 0]:
        inside = (low <= value * (1 + 1e-9)) & (value <= high * (1 + 1e-9))
        assert bars.y[inside].sum() >= 1
    assert figure.layout.shapes[0].x0 == pytest.approx(-4)  # one firing in 10,000 tokens
    assert "share of tokens" in figure.layout.xaxis.title.text


@pytest.mark.parametrize("bad", [[], [1.5], [-0.1], [float("nan")]])
def test_densities_have_to_be_shares(bad: list[float]):
    with pytest.raises(InputError, match="densities have to be shares between 0 and 1"):
        density_histogram(bad, n_tokens=10)


def test_all_features_dead_is_still_a_figure():
    assert sum(density_histogram([0.0, 0.0], n_tokens=100).data[0].y) == 0


def test_massive_rows_are_those_above_the_threshold():
    norms = samples.norms()
    threshold = 10 * float(np.median(norms))
    ordinary, massive = norm_distribution(norms, threshold=threshold).data
    assert sum(massive.y) == 17 and sum(ordinary.y) == 30_000
    assert massive.name == "massive rows (17)"
    with pytest.raises(InputError, match="finite and positive"):
        norm_distribution([1.0, float("inf")], threshold=2.0)


def test_loss_bars_show_three_losses_in_nats_from_zero():
    figure = loss_bars(clean=3.0, spliced=3.5, zero=9.0)
    (bars,) = figure.data
    assert dict(zip(bars.y, bars.x, strict=True)) == {"clean model": 3.0, "SAE spliced in": 3.5, "zero-ablated": 9.0}
    assert figure.layout.xaxis.range[0] == 0
    assert "nats per token" in figure.layout.xaxis.title.text


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (-4.5, 0.0, ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"]),
        (1.2, 2.8, ["20", "50", "100", "200", "500"]),
        (-0.1, 1.0, ["1", "2", "5", "10"]),
    ],
)
def test_ticks_of_logarithmic_axes(low: float, high: float, names: list[str]):
    ticks = decades(low, high)
    assert ticks["ticktext"] == names
    plain = [float(name) for name in names if name.isascii()]
    np.testing.assert_allclose(10 ** np.array(ticks["tickvals"][len(names) - len(plain) :]), plain)


def test_throughput_bars_show_medians_with_their_spread_fastest_on_top():
    results = json.loads((ROOT / "benchmarks/results/extraction.json").read_text())["workloads"]["equal"]["results"]
    figure = throughput_bars(results)
    bars = figure.data[0]
    speeds = {r["name"]: r["tokens_per_second"] for r in results}
    assert len(bars.x) == len(results) and list(bars.x) == sorted(bars.x)
    for name, x, more, less in zip(bars.customdata, bars.x, bars.error_x.array, bars.error_x.arrayminus, strict=True):
        spread = speeds[name[0]]
        assert (x, x + more, x - less) == pytest.approx((spread["median"], spread["max"], spread["min"]))
    assert "tokens per second" in figure.layout.xaxis.title.text and figure.layout.xaxis.range[0] == 0
    ceilings = {r["name"] for r in results if r.get("is_ceiling")}
    assert {n[0] for n, c in zip(bars.customdata, bars.marker.color, strict=True) if c == GREY} == ceilings
    with pytest.raises(InputError, match="no 'seconds' with median, min and max"):
        throughput_bars(results, measure="seconds")
    with pytest.raises(InputError, match="no results to draw"):
        throughput_bars([])


def test_every_figure_is_made_in_the_house_template():
    """No module of figures makes a bare figure: each goes through `blank` or `dress`, which set the template."""
    folder = ROOT / "interp/figures"
    for path in sorted(folder.glob("*.py")):
        text = path.read_text()
        if path.name != "style.py":
            assert "go.Figure(" not in text and "graph_objects.Figure(" not in text, path.name
            assert "make_subplots(" not in text or "dress(" in text, path.name

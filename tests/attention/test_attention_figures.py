"""Figures of attention hold the numbers of the table they are given, and refuse what they could not draw truthfully."""

import math
import subprocess
import sys

import numpy as np
import pytest

from interp.errors import InputError
from interp.figures.attention_curves import curves, share_bars
from interp.figures.attention_depth import depth_plot
from interp.figures.attention_nulls import rank_definitions, z_plot
from interp.figures.attention_scatter import head_scatter, spearman
from interp.figures.attention_spectra import MOST_POINTS, eigenvalue_cloud, head_spectrum
from interp.figures.attention_style import by_layer, log_axis, looks, quartiles, soft
from tests.attention import survey_samples as samples


def test_importing_them_loads_neither_plotly_nor_scipy_stats():
    names = "curves depth nulls scatter spectra style".split()
    code = "import sys\n" + "".join(f"import interp.figures.attention_{name}\n" for name in names)
    code += "sys.exit('plotly' in sys.modules or 'scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_quartiles_leave_out_what_is_missing():
    assert quartiles([5.0, 1.0, math.nan, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)
    assert all(map(math.isnan, quartiles([math.nan])))
    rows = [{"layer": 0, "x": 1.0}, {"layer": 0, "x": None}, {"layer": 2, "x": 3.0}, {"layer": 1}]
    assert by_layer(rows, "x") == {0: (1.0, 1.0, 1.0), 2: (3.0, 3.0, 3.0)}


def test_depth_draws_the_median_of_each_layer_in_its_quartiles():
    rows = samples.rows(layers=6, heads=5)
    columns = {"kernel": "routing_r90", "raw": "op_raw_routing_r90", "absent": "no_such"}
    figure = depth_plot(rows, columns, y_title="rank", log=True, level=(128.0, "capacity"))
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert set(lines) == {"kernel", "raw", "capacity"}
    assert list(lines["capacity"].y) == [128.0, 128.0]
    for layer in range(6):
        held = sorted(row["routing_r90"] for row in rows if row["layer"] == layer)
        assert lines["kernel"].y[layer] == held[2]  # of five heads the third
        assert tuple(lines["kernel"].customdata[layer]) == (held[1], held[3])
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 2 and len(bands[0].x) == 12
    low, high = figure.layout.yaxis.range
    assert 10**low < min(min(b.y) for b in bands) and 10**high > 128
    with pytest.raises(InputError, match="none of the columns no_such holds a number"):
        depth_plot(rows, {"absent": "no_such"}, y_title="rank")


def test_no_two_series_of_a_figure_look_alike():
    """Also where a name with a look of its own stands behind others: `kernel` is what the first would be drawn as."""
    names = ["position, raw", "position, key-centred", "kernel", *map(str, range(7))]
    drawn = looks(names)
    assert set(drawn) == set(names) and len(set(drawn.values())) == len(names)
    assert drawn["kernel"] == looks(["kernel", "other"])["kernel"] == looks(["other", "kernel"])["kernel"]


def test_series_differ_in_more_than_colour():
    rows = samples.rows(layers=3, heads=3)
    columns = {f"series {i}": name for i, name in enumerate(samples.METRICS[:5])}
    lines = [trace for trace in depth_plot(rows, columns, y_title="y").data if trace.name]
    for what in ([t.line.dash for t in lines], [t.marker.symbol for t in lines], [t.line.color for t in lines]):
        assert len(set(what)) == 5


@pytest.mark.parametrize(("low", "high"), [(2.0, 128.0), (1e-6, 1.0), (3.0, 3.2), (7.0, 7.0), (38.0, 13_800.0)])
def test_logarithmic_ticks_lie_in_the_range(low: float, high: float):
    axis = log_axis(low, high)
    first, last = axis["range"]
    assert first <= math.log10(low) <= math.log10(high) <= last
    ticks = axis.get("tickvals")
    assert ticks is None or (len(ticks) >= 2 and all(first <= math.log10(tick) <= last for tick in ticks))
    assert ticks is None or [float(name.replace(",", "")) for name in axis["ticktext"]] == pytest.approx(ticks)


def test_the_cloud_marks_the_rightmost_of_each_head_and_thins_the_rest():
    values = samples.eigenvalues(layers=1, heads=40, e=64)[0]
    figure = eigenvalue_cloud(values)
    cloud, right = figure.data
    assert len(cloud.x) <= MOST_POINTS < values.size
    np.testing.assert_array_equal(right.x, values.real.max(axis=1))
    assert list(right.text[:2]) == ["head 0", "head 1"]
    assert set(np.round(np.array(cloud.x) + 1j * np.array(cloud.y), 12)) <= set(np.round(values.ravel(), 12))
    assert figure.layout.yaxis.scaleanchor == "x"
    low, high = figure.layout.xaxis.range
    assert low == -high and high > np.abs(values.real).max()
    with pytest.raises(InputError, match=r"expected finite eigenvalues of heads, .* got shape \(3,\)"):
        eigenvalue_cloud([1.0, 2.0, 3.0])


def test_a_spectrum_shows_planes_twice_and_signs_apart():
    figure = head_spectrum([0.5, 2.0, 1e-9], [1.0, -3.0, 0.25, 0.0])
    planes, positive, negative = figure.data
    assert list(planes.y) == [2.0, 2.0, 0.5, 0.5] and "2 planes" in planes.name
    assert list(zip(positive.x, positive.y, strict=True)) == [(2, 1.0), (3, 0.25)]
    assert list(zip(negative.x, negative.y, strict=True)) == [(1, 3.0)]
    assert len({positive.marker.symbol, negative.marker.symbol}) == 2
    with pytest.raises(InputError, match="not all of them zero"):
        head_spectrum([0.0], [0.0])


def test_z_scores_keep_their_order_on_the_bent_axis():
    figure = z_plot({"routing fraction": [-1000.0, -2.0, 0.0, math.nan, 5.0], "nothing": [math.nan]})
    (box,) = [trace for trace in figure.data if trace.type == "box"]
    assert box.lowerfence[0] < box.q1[0] < box.median[0] < box.q3[0] < box.upperfence[0]
    (dot,) = [trace for trace in figure.data if trace.type == "scatter"]
    assert dot.customdata[0][0] == -1.0 and dot.customdata[0][3] == 4  # the median itself, not its logarithm
    places = dict(zip(figure.layout.xaxis.ticktext, figure.layout.xaxis.tickvals, strict=True))
    assert places["0"] == 0 and places["3"] == pytest.approx(math.log10(4)) and places["−3"] == -places["3"]
    with pytest.raises(InputError, match="no finite z-scores"):
        z_plot({"nothing": [math.nan]})


def test_rank_definitions_stand_on_their_own_lines():
    ranks = {"kernel": {"a": [60.0, 62.0, 64.0], "b": [90.0]}, "raw": {"a": [3.0], "b": [math.nan]}}
    figure = rank_definitions(ranks)
    kernel, raw = figure.data
    assert list(kernel.x) == [62.0, 90.0] and list(raw.x) == [3.0]
    assert list(kernel.error_x.array) == [1.0, 0.0] and list(kernel.error_x.arrayminus) == [1.0, 0.0]
    ticks = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    assert [round(y) for y in kernel.y] == [ticks["a"], ticks["b"]] and round(raw.y[0]) == ticks["a"]
    assert kernel.y[0] != raw.y[0]
    with pytest.raises(InputError, match="no finite ranks"):
        rank_definitions({"kernel": {"a": [math.nan]}})


def test_a_scatter_places_every_head_once_and_says_which():
    rows = samples.rows(layers=7, heads=3)
    rows[4]["induction"] = None
    figure = head_scatter(rows, "routing_fraction", "induction", x_title="x", y_title="y")
    named = {text: (x, y) for t in figure.data for text, x, y in zip(t.text, t.x, t.y, strict=True)}
    assert len(named) == 20 and "head 1.1" not in named
    assert named["head 6.2"] == (rows[-1]["routing_fraction"], rows[-1]["induction"])
    thirds = {trace.name: {int(text.split()[1].split(".")[0]) for text in trace.text} for trace in figure.data}
    assert thirds == {"early": {0, 1, 2}, "middle": {3, 4}, "late": {5, 6}}
    with pytest.raises(InputError, match="no head has both"):
        head_scatter(rows, "routing_fraction", "no_such", x_title="x", y_title="y")


def test_rank_correlation_against_scipy():
    from scipy.stats import spearmanr

    rows = samples.rows(layers=8, heads=6)
    rows[3]["sink_share"] = None
    kept = [row for row in rows if row["sink_share"] is not None]
    found, n = spearman(rows, "rotation_share", "sink_share")
    expected = spearmanr([r["rotation_share"] for r in kept], [r["sink_share"] for r in kept]).statistic
    assert n == 47 and found == pytest.approx(expected, abs=1e-12)
    assert math.isnan(spearman([{"x": 1.0, "y": float(i)} for i in range(5)], "x", "y")[0])


def test_shares_are_means_over_the_heads_of_a_layer():
    rows = [{"layer": 0, "a": 0.2, "b": 0.8}, {"layer": 0, "a": 0.4, "b": 0.6}, {"layer": 1, "a": 1.0, "b": 0.0}]
    figure = share_bars(rows, {"first": "a", "second": "b", "absent": "c"}, y_title="share")
    assert {bar.name: list(np.round(bar.y, 12)) for bar in figure.data} == {"first": [0.3, 1.0], "second": [0.7, 0.0]}
    with pytest.raises(InputError, match="none of the columns c holds a number"):
        share_bars(rows, {"absent": "c"}, y_title="share")


def test_curves_hold_their_points_and_leave_out_what_a_logarithm_cannot_show():
    figure = curves(
        {"one": [(0, 10.0), (1, math.nan), (2, 30.0)], "two": [(0, 0.0), (1, 5.0)]},
        x_title="x",
        y_title="y",
        log_y=True,
        level=(8.0, "unchanged"),
        bands={"one": [(0, 9.0, 11.0), (2, 25.0, 40.0)]},
    )
    named = {trace.name: trace for trace in figure.data if trace.name}
    assert list(named["one"].x) == [0, 2] and list(named["two"].y) == [5.0]
    assert list(named["unchanged"].y) == [8.0, 8.0]
    (band,) = [trace for trace in figure.data if trace.fill == "toself"]
    assert list(band.y) == [9.0, 25.0, 40.0, 11.0]
    low, high = figure.layout.yaxis.range
    assert 10**low < 5 and 10**high > 40
    with pytest.raises(InputError, match="no finite points"):
        curves({"one": [(0, math.nan)]}, x_title="x", y_title="y")


def test_soft_is_the_same_colour_with_an_opacity():
    assert soft("#2a7fc0", 0.5) == "rgba(42,127,192,0.5)"

"""Figures of the literary primitives: what is drawn is what was given, and markup in names stays text."""

import json
import math

import pytest

from interp.errors import InputError
from interp.figures.attention_style import LOOKS
from interp.figures.dots import Dots
from interp.figures.literary_cells import Trial, count_pairs, row_dots, search_path

ROWS = ["joy", "<b>fear</b>", "awe"]


def test_every_row_has_its_dots_and_only_the_first_series_has_bars():
    first = Dots("steered", [(0.5, 0.2, 0.9), (math.nan, math.nan, math.nan), (1.0, 0.7, 1.0)])
    other = Dots("zero", [(0.1, 0.0, 0.3)] * 3, LOOKS[4])
    figure = row_dots(ROWS, [first, other], x_title="hits", level=(1 / 27, "chance"))
    drawn = {trace.name: trace for trace in figure.data}
    assert set(drawn) == {"steered", "zero", "chance"}
    assert list(drawn["steered"].x) == [0.5, None, 1.0] and list(drawn["steered"].y) == [0, 1, 2]
    assert drawn["steered"].error_x.array == pytest.approx((0.4, 0, 0))
    assert drawn["steered"].error_x.arrayminus == pytest.approx((0.3, 0, 0.3))
    assert drawn["zero"].error_x.array is None and drawn["zero"].marker.color == LOOKS[4].colour
    assert drawn["zero"].marker.symbol.endswith("-open") and not drawn["steered"].marker.symbol.endswith("-open")
    assert set(drawn["chance"].x) == {1 / 27}
    low, high = figure.layout.yaxis.range
    assert low > high  # the first row stands on top
    assert figure.layout.yaxis.ticktext == ("joy", "&lt;b&gt;fear&lt;/b&gt;", "awe")
    assert "<b>fear" not in figure.to_json()


def test_series_of_another_length_or_no_rows_are_refused():
    with pytest.raises(InputError, match=r"3 rows, series of \[2\]; expected a value each"):
        row_dots(ROWS, [Dots("a", [(0, 0, 0)] * 2)], x_title="x")
    with pytest.raises(InputError, match="0 rows"):
        row_dots([], [Dots("a", [])], x_title="x")


def test_counts_stand_beside_their_control_with_lengths_of_square_roots():
    figure = count_pairs({"naming": (400, 4), "selves": (0, 9)}, names=("this SAE", "untrained"))
    drawn = {trace.name: trace for trace in figure.data}
    assert list(drawn["this SAE"].y) == ["selves", "naming"] and list(drawn["this SAE"].text) == ["0", "400"]
    assert list(drawn["this SAE"].x) == [0, 20] and list(drawn["untrained"].x) == [3, 2]
    assert drawn["this SAE"].marker.pattern.shape != drawn["untrained"].marker.pattern.shape
    with pytest.raises(InputError, match="no counts"):
        count_pairs({}, names=("a", "b"))


def test_the_path_of_a_search_holds_its_trials_the_best_so_far_and_the_choice():
    trials = [Trial("a", 0.2), Trial("b", math.nan), Trial("<i>c</i>", -1.0), Trial("d", 0.5)]
    figure = search_path(trials, y_title="score", chosen=3)
    drawn = {trace.name: trace for trace in figure.data}
    assert list(drawn["trial"].y) == [0.2, None, -1.0, 0.5] and list(drawn["best so far"].y) == [0.2, 0.2, 0.2, 0.5]
    assert (list(drawn["chosen"].x), list(drawn["chosen"].y)) == ([4], [0.5])
    assert "<i>" not in json.dumps(list(drawn["trial"].text))
    assert "chosen" not in {trace.name for trace in search_path(trials, y_title="score").data}
    assert list(search_path([Trial("a", math.nan)], y_title="s").data[0].y) == [None]
    with pytest.raises(InputError, match="without trials"):
        search_path([], y_title="score")

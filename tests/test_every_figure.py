"""Every figure function: titles on its axes, text that is legible on light and dark, colours told apart by all eyes."""

import importlib
import inspect
import itertools
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import interp.figures
from interp.figures import (
    attention_curves,
    attention_depth,
    attention_nulls,
    attention_patterns,
    attention_scatter,
    attention_spectra,
    densities,
    lens_grid,
    literary_cells,
    losses,
    norms,
    pareto,
    steering_effects,
    steering_fronts,
    sudoku_boards,
    sudoku_curves,
    sudoku_grids,
    sudoku_groups,
    throughput,
    token_highlights,
    training,
    trends,
)
from interp.figures.dots import Dots
from interp.figures.style import CELL_PALE, CELL_TEXT, PALETTE, cell_colour, decades, whole
from interp.steering.evaluation import Estimate
from interp.sudoku.board import Rules, candidates
from tests import report_samples, steering_samples
from tests.attention import survey_samples

RNG = np.random.default_rng(0)
ROWS = survey_samples.rows(layers=6, heads=4)
RULES = Rules.of(4)
TOKENS = ["The", " capital", " of", "\n"]


def lens() -> Any:
    names = type("Names", (), {"convert_ids_to_tokens": lambda _, ids: [str(i) for i in ids]})()
    names.decode = lambda ids, **_: " ".join(map(str, ids))
    logits = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    return lens_grid.lens_grid(lens_grid.lens_cells(logits, names), TOKENS)


def board() -> Any:
    grid = np.zeros(16, np.int8)
    grid[0], grid[6] = 1, 3
    one = sudoku_boards.Board(grid, "R1C4=2", grid == 1, candidates(RULES, grid[None])[0], (3, 2))
    return sudoku_boards.boards_figure(RULES, [one])


def drawn_curves() -> Any:
    return attention_curves.curves(
        {"a": [(1, 2.0), (10, 3.0)]}, x_title="tokens", y_title="loss, nats per token", level=(2.5, "level")
    )


def speed(name: str) -> dict[str, Any]:
    return {"name": name, "tokens_per_second": {"median": 10, "min": 9, "max": 11}}


DOTS = [Dots("trained", [(0.5, 0.4, 0.7), (0.2, 0.1, 0.3)])]
POINTS = [{"name": str(k), "x": k, "y": 0.1 * k, "series": "s", "colour": "c", "dash": 1} for k in (500, 700)]
TITLED: dict[str, Any] = {"x_title": "layer", "y_title": "share"}

# What draws, and the words that its axes have to say: quantities, and units where they have one.
CASES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "attention_curves.share_bars": (
        lambda: attention_curves.share_bars(ROWS, {"a": "routing_fraction"}, y_title="share of energy"),
        {"layer", "share of energy"},
    ),
    "attention_curves.curves": (drawn_curves, {"tokens", "loss, nats per token"}),
    "attention_depth.depth_plot": (
        lambda: attention_depth.depth_plot(ROWS, {"a": "routing_fraction"}, y_title="share"),
        {"layer", "share"},
    ),
    "attention_nulls.z_plot": (
        lambda: attention_nulls.z_plot({"a": RNG.normal(size=20)}),
        {"z-score against the matched null (bent axis)"},
    ),
    "attention_nulls.rank_definitions": (
        lambda: attention_nulls.rank_definitions({"weights": {"stable": [2.0, 3.0, 9.0]}}),
        {"rank of the routing part (log scale)"},
    ),
    "attention_patterns.attention_patterns": (
        lambda: attention_patterns.attention_patterns(np.tril(np.full((2, 4, 4), 0.25)), TOKENS),
        {"source", "destination", "weight, √ scale (blank: masked)"},
    ),
    "attention_scatter.head_scatter": (
        lambda: attention_scatter.head_scatter(ROWS, "routing_fraction", "routing_r90", **TITLED),
        {"layer", "share"},
    ),
    "attention_spectra.eigenvalue_cloud": (
        lambda: attention_spectra.eigenvalue_cloud(survey_samples.eigenvalues(1, 2, 8)[0]),
        {"Re λ / ‖M‖", "Im λ / ‖M‖"},
    ),
    "attention_spectra.head_spectrum": (
        lambda: attention_spectra.head_spectrum([2.0, 1.0], [1.0, -0.5]),
        {"place among the values, largest first", "size of the value / ‖M‖ (log scale)"},
    ),
    "densities.density_histogram": (
        lambda: densities.density_histogram([0.0, 0.01, 0.5], n_tokens=1000),
        {"density, share of tokens (log scale)", "features"},
    ),
    "lens_grid.lens_grid": (
        lens,
        {"token read at the position", "residual stream after layer", "probability of the top token"},
    ),
    "literary_cells.row_dots": (
        lambda: literary_cells.row_dots(["joy", "awe"], DOTS, x_title="share of answers"),
        {"share of answers"},
    ),
    "literary_cells.count_pairs": (
        lambda: literary_cells.count_pairs({"gates": (4, 1)}, names=("a", "b")),
        {"features (length: square root of the count)"},
    ),
    "literary_cells.search_path": (
        lambda: literary_cells.search_path([literary_cells.Trial("a", 0.2)], y_title="score"),
        {"trial", "score"},
    ),
    "losses.loss_bars": (
        lambda: losses.loss_bars(clean=3.0, spliced=3.5, zero=9.0),
        {"loss, nats per token (lower is better)"},
    ),
    "norms.norm_distribution": (
        lambda: norms.norm_distribution(report_samples.norms(), threshold=500.0),
        {"norm of a row (log scale)", "rows (log scale)"},
    ),
    "pareto.pareto_plot": (
        lambda: pareto.pareto_plot(POINTS, x_title="L0", y_title="ΔCE, nats per token"),
        {"L0", "ΔCE, nats per token"},
    ),
    "steering_effects.effect_bars": (
        lambda: steering_effects.effect_bars({"a": Estimate(1, 0.5, 2)}, x_title="KL, nats per token"),
        {"KL, nats per token"},
    ),
    "steering_effects.layer_plot": (
        lambda: steering_effects.layer_plot([{"layer": 3, "point": "resid_post", "rho": 0.2}], "rho", y_title="ρ"),
        {"layer", "ρ"},
    ),
    "steering_fronts.front_plot": (
        lambda: steering_fronts.front_plot(steering_samples.evaluation(), "lexicon"),
        {"KL(unsteered ‖ steered) on neutral text, nats per token (log scale)"},
    ),
    "steering_fronts.change_plot": (
        lambda: steering_fronts.change_plot(steering_samples.evaluation(), "lexicon"),
        {"change of the score on source prompts", "change on target prompts"},
    ),
    "sudoku_boards.boards_figure": (board, set()),
    "sudoku_curves.interval_curves": (
        lambda: sudoku_curves.interval_curves([sudoku_curves.Line("a", [(0, 0.5, 0.4, 0.6)])], **TITLED),
        {"layer", "share"},
    ),
    "sudoku_curves.margin_histogram": (
        lambda: sudoku_curves.margin_histogram(np.array([0, 1, 2]), np.array([3, 4]), x_title="logits", y_title="n"),
        {"logits", "n"},
    ),
    "sudoku_grids.number_grid": (
        lambda: sudoku_grids.number_grid(np.eye(2), rows="ab", columns="xy", signed=True, **TITLED),
        {"layer", "share"},
    ),
    "sudoku_grids.firing_board": (
        lambda: sudoku_grids.firing_board(RULES, np.ones((16, 4)), token=3, title="deviations"),
        {"deviations"},
    ),
    "sudoku_groups.group_dots": (
        lambda: sudoku_groups.group_dots(["row", "box"], DOTS, y_title="cosine"),
        {"cosine"},
    ),
    "sudoku_groups.count_boxes": (
        lambda: sudoku_groups.count_boxes(["1", "2"], np.sort(RNG.normal(size=(2, 5))), **TITLED),
        {"layer", "share"},
    ),
    "throughput.throughput_bars": (
        lambda: throughput.throughput_bars([speed("a"), speed("b")]),
        {"tokens per second (higher is better)"},
    ),
    "token_highlights.token_grid": (
        lambda: token_highlights.token_grid(TOKENS, [0.0, 1.0, 2.0, 0.5]),
        {"token", "feature", "share of row's scale"},
    ),
    "trends.trend_panels": (
        lambda: trends.trend_panels([0.0, 1.0], {"memory, MiB": [5.0, 6.0]}, x_title="minutes"),
        {"minutes", "memory, MiB"},
    ),
    "training.training_curves": (
        lambda: training.training_curves(report_samples.training_log(20)),
        {"training tokens", "loss", "L0 (active features per token)", "dead features, share"},
    ),
}
HEADED = {"trends.trend_panels"}
"""What stands above a panel says what its y axis is."""


def test_no_figure_is_left_out():
    found = set()
    for module in pkgutil.iter_modules(interp.figures.__path__):
        held = importlib.import_module(f"interp.figures.{module.name}")
        for name, value in vars(held).items():
            own = inspect.isfunction(value) and value.__module__ == held.__name__ and not name.startswith("_")
            if own and "Figure" in str(value.__annotations__.get("return", "")):
                found.add(f"{module.name}.{name}")
    assert found - {"style.blank", "style.dress"} == set(CASES)


def axes(figure: Any) -> list[Any]:
    return [figure.layout[name] for name in figure.layout.to_plotly_json() if name[:5] in ("xaxis", "yaxis")]


def titles(figure: Any) -> list[str]:
    bars = [trace.colorbar for trace in figure.data if "colorbar" in trace] + [figure.layout.coloraxis.colorbar]
    found = [held.title.text for held in (*axes(figure), *bars) if held and held.title.text]
    return [text.replace("<br>", " ") for text in (*found, *(note.text for note in figure.layout.annotations))]


@pytest.mark.parametrize("name", CASES)
def test_axes_say_what_they_are(name: str):
    draw, words = CASES[name]
    figure = draw()
    assert words <= set(titles(figure))
    for axis in axes(figure):
        short = axis.plotly_name.replace("axis", "")
        own = [trace for trace in figure.data if short in (trace.xaxis or "x", trace.yaxis or "y")]
        named = axis.ticktext is not None or axis.type == "category" or axis.visible is False
        named |= axis.showticklabels is False and axis.matches is not None  # a panel's that shares another's
        named |= short[0] == "y" and name in HEADED
        named |= any(isinstance(value, str) for trace in own for value in np.ravel(trace[short[0]]).tolist())
        assert axis.title.text or named or not own, f"{name}: {axis.plotly_name} has neither title nor names"


# ---- text


def channels(colour: str, ground: tuple[float, ...]) -> tuple[float, ...]:
    """`#rrggbb` or `rgba(...)` over an opaque ground, each channel from 0 to 1."""
    if colour.startswith("#"):
        return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    *rgb, alpha = (float(part) for part in colour.removeprefix("rgba(").rstrip(")").split(","))
    return tuple(alpha * c / 255 + (1 - alpha) * g for c, g in zip(rgb, ground, strict=True))


def luminance(colour: tuple[float, ...]) -> float:
    r, g, b = ((c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("ground", "least"), [("#ffffff", 4.5), ("#111111", 4.0)])
@pytest.mark.parametrize("name", CASES)
def test_every_text_is_legible_where_it_stands(name: str, ground: str, least: float):
    """On the ground of a light or dark notebook (a page sets text colours of its own); large text needs 3:1."""
    figure = CASES[name][0]()
    page, ink = channels(ground, (0, 0, 0)), channels(figure.layout.template.layout.font.color, (0, 0, 0))
    assert contrast(ink, page) >= least
    for trace in figure.data:
        if trace.type == "heatmap" and trace.texttemplate:
            for _, cell in trace.colorscale:
                assert cell.startswith("#"), "a cell with words in it has to be opaque"
                assert contrast(channels(trace.textfont.color, page), channels(cell, page)) >= 7
        elif trace.type == "scatter" and "text" in (trace.mode or "") and not trace.textfont.color:
            for x, y in zip(trace.x, trace.y, strict=True):
                under = [s for s in figure.layout.shapes if s.fillcolor and s.x0 <= x <= s.x1 and s.y0 <= y <= s.y1]
                for shape in under:
                    large = (trace.textfont.size or 12) >= 18.66
                    assert contrast(ink, channels(shape.fillcolor, page)) >= (3.0 if large else least)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("colour", PALETTE)
def test_words_are_legible_in_cells_of_every_colour(colour: str, share: float):
    assert contrast(channels(CELL_TEXT, (0, 0, 0)), channels(cell_colour(colour, share), (0, 0, 0))) >= 6
    assert cell_colour(colour, 0.0) == CELL_PALE and cell_colour(colour, 1.0) == colour


# ---- colours

# Machado, Oliveira and Fernandes (2009), full severity, on linear RGB.
SIGHT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colour: str, sight: list[list[float]]) -> np.ndarray:
    """CIE L*a*b* (D65) of `#rrggbb` as it is seen."""
    c = np.array(channels(colour, (0, 0, 0)))
    seen = np.clip(np.array(sight) @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.cbrt(xyz / np.array([0.95047, 1.0, 1.08883]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("pair", list(itertools.combinations(PALETTE, 2)))
def test_colours_are_told_apart_by_all_eyes(pair: tuple[str, str], sight: str):
    one, other = (lab(colour, SIGHT[sight]) for colour in pair)
    assert np.linalg.norm(one - other) >= 10  # a just noticeable difference is about 2.3


# ---- ticks


@pytest.mark.parametrize(("high", "step"), [(0, 1), (3, 1), (10, 1), (11, 2), (30, 5), (79, 10), (2500, 500)])
def test_axes_of_whole_numbers_have_no_tick_between_two(high: int, step: int):
    assert whole(0, high)["dtick"] == step


@pytest.mark.parametrize(("low", "high"), [(500, 700), (1.1, 1.4), (0.031, 0.049), (6, 9)])
def test_a_narrow_logarithmic_axis_still_has_ticks(low: float, high: float):
    ticks = decades(np.log10(low), np.log10(high))
    places = 10 ** np.array(ticks["tickvals"])
    assert 3 <= len(places) <= 10 and low * (1 - 1e-9) <= places.min() and places.max() <= high * (1 + 1e-9)
    np.testing.assert_allclose(places, [float(name.replace(",", "")) for name in ticks["ticktext"]])

"""Figures about tokens hold the numbers given, keep the mask apart from zero, and render no token as markup."""

import math
import re

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.figures.attention_patterns import attention_patterns
from interp.figures.lens_grid import lens_cells, lens_grid
from interp.figures.token_highlights import highlight_tokens, token_grid
from interp.figures.token_labels import plotly_text, token_ticks, visible

HOSTILE = '<img src=x onerror="alert(1)">'
TOKENS = ["<|im_start|>", " the", "\n", HOSTILE, " cost $5"]


def causal(heads: int, t: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(heads, t, t))
    scores[:, np.triu(np.ones((t, t), bool), 1)] = -np.inf
    weights = np.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


# ---- labels


def test_what_cannot_be_seen_is_marked():
    assert [visible(token) for token in ("", " ", " a", "a b ", "\n\n", "\u200b", "\ud800", "é")] == [
        "∅", "␣", "␣a", "a b␣", "↵↵", "⟨200B⟩", "⟨D800⟩", "é",
    ]  # fmt: skip
    assert visible(" word", spaces=False) == " word" and visible("  ", spaces=False) == "␣␣"
    assert visible("abcdefgh", most=5) == "abcd…" and visible("abcde", most=5) == "abcde"


def test_no_token_is_markup_for_plotly():
    assert plotly_text("<br>") == "&lt;br&gt;" and plotly_text("&lt;") == "&amp;lt;"
    assert not re.search(r"\$[^\u200d]", plotly_text("$x$") + " ")


def test_ticks_name_every_token_until_there_are_too_many():
    assert token_ticks(list("abc"))["tickvals"] == [0, 1, 2]
    ticks = token_ticks([str(i) for i in range(100)], most=40)
    assert ticks["tickvals"] == list(range(0, 100, 3)) and ticks["ticktext"][1] == "3"


# ---- attention patterns


@pytest.mark.parametrize("colour", ["root", "linear"])
def test_patterns_hold_every_weight_and_leave_the_mask_empty(colour):
    weights = causal(3, 5)
    weights[1, 4] = [1, 0, 0, 0, 0]  # true zeros, below the diagonal
    figure = attention_patterns(torch.tensor(weights), TOKENS, colour=colour)
    assert len(figure.data) == 3
    for head, trace in enumerate(figure.data):
        drawn = np.asarray(trace.z, dtype=float)
        allowed = np.tril(np.ones((5, 5), bool))
        assert np.isnan(drawn[~allowed]).all() and np.isfinite(drawn[allowed]).all()
        np.testing.assert_allclose((drawn**2 if colour == "root" else drawn)[allowed], weights[head][allowed])
        assert not trace.hoverongaps
    assert f"reads ␣the (1): {weights[2, 3, 1]:.3f}" in figure.data[2].customdata[3][1]
    lowest = figure.layout.coloraxis.colorscale[0][1]
    assert float(lowest.rstrip(")").split(",")[-1]) > 0.1  # a zero is a visible cell, a masked one is none


def test_patterns_run_downwards_with_tokens_on_both_axes():
    figure = attention_patterns(causal(2, 5), TOKENS, names=["4.1", "4.2"])
    assert [note.text for note in figure.layout.annotations] == ["4.1", "4.2"]
    low, high = figure.layout.yaxis.range
    assert low > high  # position 0 on top
    assert list(figure.layout.xaxis.ticktext)[1] == "␣the"
    assert "masked" in figure.layout.coloraxis.colorbar.title.text
    titles = {figure.layout[name].title.text for name in ("xaxis", "xaxis2")}
    assert titles == {"source"} and figure.layout.yaxis.title.text == "destination"
    assert "<img" not in figure.to_json()


def test_without_a_mask_every_cell_is_drawn():
    weights = np.full((1, 4, 4), 0.25)
    figure = attention_patterns(weights, list("abcd"), causal=False, colour="linear")
    np.testing.assert_allclose(np.asarray(figure.data[0].z, dtype=float), weights[0])
    with pytest.raises(InputError, match=r"later one with weight 0\.25: these patterns are not causal"):
        attention_patterns(weights, list("abcd"))


def test_patterns_refuse_scores_and_shapes_that_do_not_fit():
    with pytest.raises(InputError, match=r"shape \(3, 5, 5\) for 4 tokens; expected \(heads, 4, 4\)"):
        attention_patterns(causal(3, 5), TOKENS[:4])
    with pytest.raises(InputError, match="scores from before the softmax"):
        attention_patterns(np.tril(np.full((1, 3, 3), -2.0)), list("abc"))
    with pytest.raises(InputError, match="2 names for 3 heads"):
        attention_patterns(causal(3, 5), TOKENS, names=["a", "b"])


# ---- the lens


class Letters:
    """A tokenizer whose token i is the i-th letter."""

    def convert_ids_to_tokens(self, ids):
        return [chr(97 + i) for i in ids]

    def decode(self, ids, **_):
        return "".join(chr(97 + i) for i in ids)


def test_lens_cells_agree_with_probabilities_computed_by_hand():
    p = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], [[1 / 3] * 3, [1.0, 0.0, 0.0]]], dtype=torch.float64)
    cells = lens_cells(p.log() + 3.0, Letters(), k=2, targets=torch.tensor([1, 0]))
    assert cells.top[0][1][0][0] == "c" and cells.top[1][1][0] == ("a", pytest.approx(1.0))
    assert [probability for _, probability in cells.top[0][1]] == pytest.approx([0.7, 0.2])
    by_hand = -(0.1 * math.log2(0.1) + 0.2 * math.log2(0.2) + 0.7 * math.log2(0.7))
    np.testing.assert_allclose(cells.entropy, [[1.5, by_hand], [math.log2(3), 0.0]], atol=1e-6)
    assert cells.rank is not None and cells.rank.tolist() == [[2, 3], [1, 1]]  # of ties, none stands before


def test_the_grid_shows_what_the_cells_hold():
    logits = torch.randn(4, 5, 20, generator=torch.Generator().manual_seed(0))
    cells = lens_cells(logits, Letters(), targets=torch.arange(5))
    figure = lens_grid(cells, TOKENS, layers=[0, 2, 4, 6])
    (grid,) = figure.data
    np.testing.assert_allclose(grid.z, logits.softmax(-1).amax(-1), rtol=1e-5)
    assert [list(row) for row in grid.text] == [[chr(97 + i) for i in row] for row in logits.argmax(-1).tolist()]
    assert list(figure.layout.yaxis.ticktext) == ["0", "2", "4", "6"]
    entropy = lens_grid(cells, TOKENS, show="entropy").data[0]
    np.testing.assert_array_equal(entropy.z, cells.entropy)
    assert "bits" in entropy.colorbar.title.text
    rank = lens_grid(cells, TOKENS, show="rank").data[0]
    np.testing.assert_allclose(10 ** np.asarray(rank.z), cells.rank)
    assert "<img" not in figure.to_json()


def test_the_lens_of_a_model_ends_in_its_own_prediction(smollm2):
    from interp.lens import logit_lens
    from interp.sites import Site

    tokens = torch.tensor([[504, 3575, 282, 4649, 314]])
    sites = [Site.parse(f"resid_post.{layer}") for layer in (0, 29)]
    found = smollm2.capture(tokens, sites)
    cells = lens_cells(torch.stack([logit_lens(smollm2, found[site][0]) for site in sites]), smollm2.tokenizer)
    last = smollm2(tokens)[0].argmax(-1).tolist()
    assert [cell[0][0] for cell in cells.top[1]] == [smollm2.tokenizer.decode([i]) for i in last]


def test_the_lens_refuses_what_does_not_fit():
    cells = lens_cells(torch.zeros(2, 3, 4), Letters(), k=1)
    with pytest.raises(InputError, match="2 tokens and 2 layers for a lens of 2 layers and 3 positions"):
        lens_grid(cells, ["a", "b"])
    with pytest.raises(InputError, match="needs `targets`"):
        lens_grid(cells, list("abc"), show="rank")
    with pytest.raises(InputError, match="k=5; expected"):
        lens_cells(torch.zeros(2, 3, 4), Letters(), k=5)


# ---- highlights

ACTS = np.array([[0.0, 1.0, 4.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 3.0]])


def alphas(page: str) -> list[float]:
    return [float(found) for found in re.findall(r"background:rgba\(\d+,\d+,\d+,([\d.]+)\)", page)]


def test_highlights_shade_by_activation_and_escape_everything():
    shown = highlight_tokens(TOKENS, ACTS, names=["<b>", "f9"])
    page = shown._repr_html_()
    assert (
        "<img" not in page and "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;" in page and "<b>&lt;b&gt;</b>" in page
    )
    np.testing.assert_allclose(np.array(alphas(page)) / 0.5, [0.25, 1.0, 0.5, 1.0])
    assert [float(found) for found in re.findall(r'title="([\d.]+)"', page)] == [1, 4, 2, 3]
    assert page.count("<script") == 0 and "↵\n" in page
    assert repr(shown) == "Highlights: 2 features over 5 tokens"


def test_a_scale_makes_two_texts_comparable_and_negatives_are_told_apart():
    half = highlight_tokens(["a"], [2.0], scales=[4.0]).html
    assert alphas(half) == [0.25]
    assert "underline" in highlight_tokens(["a"], [-1.0]).html and "underline" not in half


def test_the_grid_of_tokens_holds_shares_and_numbers():
    figure = token_grid(TOKENS, torch.tensor(ACTS), names=["a", "b"])
    (grid,) = figure.data
    np.testing.assert_allclose(grid.z, ACTS / np.array([[4.0], [3.0]]))
    assert grid.customdata[0][2] == "↵ (2): 4" and grid.zmin == 0
    assert "<img" not in figure.to_json()
    assert token_grid(["a", "b"], [-2.0, 1.0]).data[0].zmin == -1


def test_highlights_refuse_what_does_not_fit():
    with pytest.raises(InputError, match=r"shape \(1, 2\) for 3 tokens; expected \(features, 3\)"):
        highlight_tokens(list("abc"), [1.0, 2.0])
    with pytest.raises(InputError, match="have to be finite"):
        token_grid(["a"], [math.nan])
    with pytest.raises(InputError, match="scales positive"):
        token_grid(["a"], [1.0], scales=[0.0])


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("show", ["probability", "entropy", "rank"])
def test_the_text_of_a_lens_is_legible_in_every_cell_whatever_the_page(show):
    cells = lens_cells(torch.randn(2, 3, 9), Letters(), targets=torch.arange(3))
    (grid,) = lens_grid(cells, list("abc"), show=show).data
    for _, ground in grid.colorscale:
        low, high = sorted((luminance(grid.textfont.color), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 7

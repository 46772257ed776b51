"""What surgery computes, against dense mathematics: n x n scores and d x d kernels in the plain forward pass."""

import pytest
import torch

from interp.attention.bilinear import Bilinear
from interp.attention.operated import kernel_bases, operated, position_bases
from interp.attention.surgery import Surgery, factor_basis, gram_basis
from interp.model import HookedModel
from tests.attention.dense_surgery import (
    BILINEAR,
    augmented,
    close,
    dense,
    double_model,
    leading,
    plain_logits,
    plain_site,
    settings_of,
    skew_and_symmetric,
    turn,
)
from tests.tiny_models import VARIANTS, random_tokens


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", VARIANTS)
def test_both_parts_kept_is_the_model_itself(name):
    model = double_model(name)
    tokens = random_tokens(model.hf, 2, 12)
    clean = model(tokens)
    for level in ("position", "kernel") if name in BILINEAR else ("position",):
        with operated(model, Surgery(level=level)):
            torch.testing.assert_close(model(tokens), clean, rtol=0, atol=1e-11)
        with operated(model, Surgery(level=level, alpha=0.9)):
            assert (model(tokens) - clean).abs().max() > 1e-3, "the surgery did not reach the model"


@pytest.mark.parametrize("name", VARIANTS)
def test_position_level_is_the_dense_split_of_the_scores(name):
    model, alpha, beta = double_model(name), 0.3, -1.7
    tokens, heads = random_tokens(model.hf, 2, 11), [(1, 0), (1, 3), (2, 1)]

    def scores(q, k, layer):
        B = dense(q, k)
        skew, symmetric = skew_and_symmetric(B)
        for head in (head for at, head in heads if at == layer):
            B[:, head] = alpha * symmetric[:, head] + beta * skew[:, head]
        return B

    with operated(model, Surgery(heads, alpha=alpha, beta=beta)):
        close(model, model(tokens), plain_logits(model, tokens, scores))


@pytest.mark.parametrize("name", BILINEAR)
@pytest.mark.parametrize(("planes", "modes"), [(None, None), (3, 5)])
def test_kernel_level_is_the_dense_split_of_the_kernel_at_every_offset(name, planes, modes):
    """α Π_S sym(M(Δ)) Π_S + β Π_A skew(M(Δ)) Π_A, with Π the leading planes and modes of M(0), d x d."""
    model, alpha, beta, t, layer, head = double_model(name), 1.4, -0.6, 7, 1, 2
    tokens = random_tokens(model.hf, 2, t)
    left, right = (factor[head] for factor in augmented(model, layer))
    pi_skew, pi_symmetric = leading(left @ right.T, planes, modes)
    x = plain_site(model, tokens, f"ln1.{layer}")
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1)

    def scores(q, k, at):
        B = dense(q, k)
        for i in range(t if at == layer else 0):
            for j in range(t):
                skew, symmetric = skew_and_symmetric(left @ turn(model, layer, j - i) @ right.T)
                new = alpha * pi_symmetric @ symmetric @ pi_symmetric + beta * pi_skew @ skew @ pi_skew
                B[:, head, i, j] = torch.einsum("bd,dc,bc->b", x[:, i], new, x[:, j])
        return B

    surgery = Surgery([(layer, head)], alpha=alpha, beta=beta, planes=planes, modes=modes, level="kernel")
    with operated(model, surgery):
        close(model, model(tokens), plain_logits(model, tokens, scores))


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neox", "llama_linear_rope"])
def test_kernel_and_position_level_differ_where_positions_turn(name):
    model = double_model(name)
    at_position, at_kernel = _both_levels(model)
    assert (at_position - at_kernel).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["gpt2", "gpt2_untied"])
def test_kernel_and_position_level_are_one_without_rotary_embedding(name):
    at_position, at_kernel = _both_levels(double_model(name))
    torch.testing.assert_close(at_position, at_kernel, rtol=0, atol=1e-12)


def _both_levels(model: HookedModel) -> list[torch.Tensor]:
    found, tokens = [], random_tokens(model.hf, 1, 9)
    for level in ("position", "kernel"):
        with operated(model, Surgery(alpha=1.3, beta=0.2, level=level)):
            found.append(model(tokens))
    return found


def _rows(model: HookedModel, tokens: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled queries and the keys of every head, `h n e`, as the layer compares them, from the plain pass."""
    settings, rotary = settings_of(model), "rot_" if model.cfg.rotary else ""
    q, k = (plain_site(model, tokens, f"{rotary}{name}.{layer}").flatten(0, 1).transpose(0, 1) for name in "qk")
    return q * settings.score_scales[layer], k.repeat_interleave(settings.h // settings.g, 0)


def _gram(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    z = torch.cat([q, k], -1)
    return z.mT @ z


@pytest.mark.parametrize("t", [41, 12], ids=["n > 2e", "n < 2e: a singular Gram matrix"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3", "mistral"])
def test_position_level_truncates_the_rows_of_its_gram_matrix_as_n_by_n_does(name, centred, t):
    """With the Gram matrix of the very input, the constant projection equals the dense one of α S + β A."""
    model, alpha, beta, layer, head, planes, modes = double_model(name), 0.8, 1.5, 1, 3, 2, 3
    tokens = random_tokens(model.hf, 1, t)
    q, k = _rows(model, tokens, layer)
    mean = k.mean(1) if centred else torch.zeros_like(k[:, 0])
    bases = {layer: gram_basis(_gram(q, k - mean[:, None]), key_mean=mean if centred else None)}

    def scores(q, k, at):
        B = dense(q, k)
        if at == layer:
            split = dense(q, k - mean)[0, head]
            (skew, symmetric), (pi_skew, pi_symmetric) = skew_and_symmetric(split), leading(split, planes, modes)
            B[0, head] = alpha * pi_symmetric @ symmetric @ pi_symmetric + beta * pi_skew @ skew @ pi_skew
        return B

    surgery = Surgery(
        [(layer, head)],
        alpha=alpha,
        beta=beta,
        planes=planes,
        modes=modes,
        bases=bases,
        key_means={layer: mean} if centred else None,
    )
    with operated(model, surgery):
        close(model, model(tokens), plain_logits(model, tokens, scores))


def _random_factors(h: int = 3, d: int = 50, e: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, h, d, e, dtype=torch.float64, generator=generator)
    # Columns of very different lengths, as heads have them.
    return left * 10 ** torch.linspace(-2, 2, e, dtype=torch.float64), right


@pytest.mark.parametrize("d", [50, 9], ids=["d > 2e", "d < 2e"])
def test_projectors_are_projectors_and_nested(d):
    left, right = _random_factors(d=d)
    for basis in (factor_basis(left, right), gram_basis(_gram(left, right))):
        for made, widest in ((basis.routing_projector, 3), (basis.filtering_projector, 6)):
            few, more = made(widest - 2), made(widest)
            for first, second, product in ((few, few, few), (few, more, few), (more, few, few), (more, more, more)):
                torch.testing.assert_close(first @ second, product, rtol=1e-6, atol=1e-6)
            traces = more.diagonal(dim1=-2, dim2=-1).sum(-1)
            size = 2 * widest if made == basis.routing_projector else widest
            torch.testing.assert_close(traces, torch.full_like(traces, size))


def test_all_planes_and_all_modes_project_nothing_away():
    left, right = _random_factors()
    for basis, accuracy in ((factor_basis(left, right), 1e-9), (gram_basis(_gram(left, right)), 1e-6)):
        identity = torch.eye(12, dtype=torch.float64).expand(3, 12, 12)
        torch.testing.assert_close(basis.routing_projector(6), identity, rtol=0, atol=accuracy)
        torch.testing.assert_close(basis.filtering_projector(12), identity, rtol=0, atol=accuracy)


def test_bases_from_factors_and_from_their_gram_matrix_agree():
    left, right = _random_factors()
    one, other = factor_basis(left, right), gram_basis(_gram(left, right))
    torch.testing.assert_close(one.routing, other.routing)
    torch.testing.assert_close(one.filtering, other.filtering)
    torch.testing.assert_close(one.routing_projector(2), other.routing_projector(2), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(one.filtering_projector(5), other.filtering_projector(5), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("d", [50, 9], ids=["d > 2e", "d < 2e"])
def test_projectors_truncate_as_the_bilinear_form_does(d):
    """Rows z = [left right] projected, then α S + β A of them, against planes and modes summed one by one."""
    (left, right), alpha, beta = _random_factors(d=d), 0.7, -1.1
    expected = Bilinear(left, right).truncated(planes=2, modes=3).mixed(alpha, beta).dense()
    z = torch.cat([left, right], -1)
    for basis in (factor_basis(left, right), gram_basis(_gram(left, right))):
        found = torch.zeros_like(expected)
        for projector, straight, swapped in Surgery(alpha=alpha, beta=beta, planes=2, modes=3).parts(
            6, basis, range(3)
        ):
            q, k = (z @ projector.mT).chunk(2, -1)
            found += straight * q @ k.mT + swapped * k @ q.mT
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("level", ["position", "kernel"])
def test_keeping_every_plane_and_mode_is_no_truncation(level):
    model = double_model("llama")
    tokens = random_tokens(model.hf, 1, 40)
    bases = None
    if level == "position":
        bases = position_bases({layer: _gram(*_rows(model, tokens, layer)) for layer in range(3)})
    found = []
    for kept in ({}, {"planes": 16, "modes": 32}, {"planes": 16}, {"modes": 99}):
        with operated(model, Surgery(alpha=0.7, beta=1.2, level=level, bases=bases, **kept)):
            found.append(model(tokens))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("level", ["position", "kernel"])
def test_keeping_no_plane_is_beta_zero_and_no_mode_alpha_zero(level):
    model = double_model("llama")
    tokens = random_tokens(model.hf, 1, 9)

    def run(**options):
        with operated(model, Surgery(level=level, **options)):
            return model(tokens)

    torch.testing.assert_close(run(planes=0), run(beta=0.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(run(modes=0), run(alpha=0.0), rtol=0, atol=1e-12)
    nothing = plain_logits(model, tokens, lambda q, k, layer: torch.zeros_like(dense(q, k)))
    for emptied in (run(planes=0, modes=0), run(alpha=0.0, beta=0.0), run(alpha=0.0, planes=0)):
        close(model, emptied, nothing)


@pytest.mark.parametrize("level", ["position", "kernel"])
def test_a_zero_head_stays_one(level):
    """Its scores are zero whatever is kept of them."""
    model = double_model("llama")
    model.hf.model.layers[1].self_attn.q_proj.weight[16:32] = 0
    tokens = random_tokens(model.hf, 1, 40)
    bases = {1: gram_basis(_gram(*_rows(model, tokens, 1)))} if level == "position" else kernel_bases(model, [1])
    assert bases[1].routing[1].abs().max() == 0
    with operated(model, Surgery([(1, 1)], alpha=3.0, beta=-2.0, planes=2, modes=3, level=level, bases=bases)):
        got = model(tokens)
    torch.testing.assert_close(got, model(tokens), rtol=0, atol=1e-12)


def _future_reach(model: HookedModel, surgery_of, t: int = 40, cut: int = 25) -> float:
    """How far logits before `cut` move when all tokens from `cut` on are others."""
    tokens = random_tokens(model.hf, 1, t)
    other = tokens.clone()
    other[:, cut:] = random_tokens(model.hf, 1, t - cut, seed=7)
    before = []
    for run in (tokens, other):
        with operated(model, surgery_of(run)):
            before.append(model(run)[:, :cut])
    return float((before[0] - before[1]).abs().max())


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt2"])
@pytest.mark.parametrize("level", ["position", "kernel"])
def test_no_logit_depends_on_later_tokens(name, level):
    model = double_model(name)
    corpus = random_tokens(model.hf, 2, 60, seed=5)
    means = None
    if level == "position":
        rows = {layer: _rows(model, corpus, layer) for layer in range(model.loaded_layers)}
        if name != "gemma2":
            means = {layer: k.mean(1) for layer, (_, k) in rows.items()}
        centred = {at: k if means is None else k - means[at][:, None] for at, (_, k) in rows.items()}
        bases = position_bases({at: _gram(rows[at][0], centred[at]) for at in rows}, means)
    else:
        bases = kernel_bases(model)
    surgery = Surgery(alpha=1.2, beta=0.5, planes=2, modes=3, level=level, bases=bases, key_means=means)
    assert _future_reach(model, lambda run: surgery) < 1e-12


def test_planted_decompositions_of_each_input_are_found_to_look_ahead():
    model = double_model("llama")

    def own_basis(run):
        return Surgery([(1, 2)], planes=2, modes=3, bases={1: gram_basis(_gram(*_rows(model, run, 1)))})

    def own_mean(run):
        return Surgery([(1, 2)], beta=0.0, key_means={1: _rows(model, run, 1)[1].mean(1)})

    assert _future_reach(model, own_basis) > 1e-3
    assert _future_reach(model, own_mean) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gpt_neox", "mistral"])
def test_key_means_change_no_attention_but_change_the_split(name):
    model = double_model(name)
    tokens = random_tokens(model.hf, 2, 12)
    means = {layer: _rows(model, tokens, layer)[1].mean(1) for layer in range(3)}
    clean = model(tokens)

    def run(**options):
        with operated(model, Surgery(**options)):
            return model(tokens)

    torch.testing.assert_close(run(key_means=means), clean, rtol=0, atol=1e-11)
    for removed in ({"alpha": 0.0}, {"beta": 0.0}):
        assert (run(key_means=means, **removed) - run(**removed)).abs().max() > 1e-2


def test_under_a_soft_cap_a_number_added_to_a_row_of_scores_changes_attention():
    """Why key means are refused there."""
    model = double_model("gemma2")
    tokens = random_tokens(model.hf, 1, 9)
    shifted = plain_logits(model, tokens, lambda q, k, layer: dense(q, k - k.mean(1, keepdim=True)))
    assert (shifted - model(tokens)).abs().max() > 1e-3

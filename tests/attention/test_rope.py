"""Rotary heads: M(Δ), F(Δ) and the four sectors against dense matrices; scores against the independent forward pass."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from interp.attention.bilinear import Bilinear
from interp.attention.heads import kernel
from interp.attention.rope import Rotation, at_offset, offset_part, offset_spectrum
from interp.attention.sectors import pair_norms, rope_rows, sectors
from interp.errors import InputError
from interp.model import HookedModel
from interp.plain import blocks, plain_run
from interp.plain.settings import read_settings
from interp.sites import Point, Site
from tests.tiny_models import VARIANTS, random_tokens, tiny
from tests.wrapped_models import wrapped

EXACT = {"rtol": 1e-10, "atol": 1e-10}
OFFSETS = [-7, -2, -1, 0, 1, 3, 20]
# h, d, e, pairs, how they pair, attention factor: full and partial, d above and below 2e, one pair, none
CASES = [
    (3, 19, 8, 4, "half", 1.0),
    (2, 19, 8, 3, "half", 1.0),
    (2, 19, 8, 3, "adjacent", 1.3),
    (2, 11, 6, 3, "adjacent", 1.0),
    (1, 7, 5, 2, "half", 0.7),
    (2, 9, 4, 1, "half", 1.0),
    (1, 9, 4, 0, "half", 1.5),
]
BILINEAR = [v for v in VARIANTS if VARIANTS[v][0] not in ("gpt2", "qwen3", "gemma3_text")]
NORMED = [v for v in VARIANTS if VARIANTS[v][0] in ("qwen3", "gemma3_text")]


def case(h, d, e, pairs, how, factor, seed=0) -> tuple[Bilinear, Rotation]:
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(h, d, e, generator=g, dtype=torch.float64) for _ in range(2))
    omega = torch.rand(pairs, generator=g, dtype=torch.float64) + 0.1
    return Bilinear(left, right), Rotation(omega, e, how, factor)


def turn(rotation: Rotation, offset: float) -> Tensor:
    """R_Δ as a dense e x e matrix, entry by entry, with the square of the attention factor."""
    R, pairs = torch.eye(rotation.e, dtype=torch.float64), len(rotation.omega)
    for t, omega in enumerate(rotation.omega):
        i, j = (t, t + pairs) if rotation.pairs == "half" else (2 * t, 2 * t + 1)
        cos, sin = torch.cos(offset * omega), torch.sin(offset * omega)
        R[i, i], R[i, j], R[j, i], R[j, j] = cos, -sin, sin, cos
        R[[i, j]] *= rotation.factor**2
    return R


def dense(m: Bilinear, rotation: Rotation, offset: float) -> Tensor:
    return m.left @ turn(rotation, offset) @ m.right.mT


def product(m: Bilinear) -> Tensor:
    return m.left @ m.right.mT


def skew(M: Tensor) -> Tensor:
    return (M - M.mT) / 2


def sym(M: Tensor) -> Tensor:
    return (M + M.mT) / 2


def energy(M: Tensor) -> Tensor:
    return M.square().sum((-2, -1))


@pytest.mark.parametrize("shape", CASES)
def test_the_kernel_at_an_offset(shape):
    m, rotation = case(*shape)
    for offset in OFFSETS:
        torch.testing.assert_close(product(at_offset(m, rotation, offset)), dense(m, rotation, offset), **EXACT)


@pytest.mark.parametrize("shape", CASES)
def test_the_kernel_is_a_sum_of_cosines_and_sines(shape):
    m, rotation = case(*shape)
    pairs = len(rotation.omega)
    for head, offset in itertools.product(range(shape[0]), OFFSETS):
        P, K = m.left[head], m.right[head]
        M = P[:, 2 * pairs :] @ K[:, 2 * pairs :].mT
        for t in range(pairs):
            i, j = (t, t + pairs) if rotation.pairs == "half" else (2 * t, 2 * t + 1)
            C = torch.outer(P[:, i], K[:, i]) + torch.outer(P[:, j], K[:, j])
            D = torch.outer(P[:, j], K[:, i]) - torch.outer(P[:, i], K[:, j])
            angle = offset * rotation.omega[t]
            M = M + rotation.factor**2 * (torch.cos(angle) * C + torch.sin(angle) * D)
            norms = pair_norms(m, rotation)
            assert float(norms.cos[head, t]) == pytest.approx(float(C.norm()), rel=1e-10)
            assert float(norms.sin[head, t]) == pytest.approx(float(D.norm()), rel=1e-10)
        torch.testing.assert_close(product(at_offset(m, rotation, offset))[head], M, **EXACT)


def test_what_passes_and_the_share_of_sines():
    m, rotation = case(2, 19, 8, 3, "adjacent", 1.3)
    norms = pair_norms(m, rotation)
    torch.testing.assert_close(norms.passing, energy(m.left[..., 6:] @ m.right[..., 6:].mT).sqrt(), **EXACT)
    expected = norms.sin.sum(-1) / (norms.sin.sum(-1) + norms.cos.sum(-1))
    torch.testing.assert_close(norms.sin_fraction, expected, **EXACT)


@pytest.mark.parametrize("shape", CASES)
def test_turned_queries_and_keys_score_what_the_kernel_says(shape):
    m, rotation = case(*shape)
    x = torch.randn(6, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    places = torch.arange(6)
    q, k = rotation.turned(x @ m.left, places), rotation.turned(x @ m.right, places)
    B = q @ k.mT
    for i, j in itertools.product(range(6), repeat=2):
        expected = torch.einsum("d,hde,e->h", x[i], dense(m, rotation, j - i), x[j])
        torch.testing.assert_close(B[:, i, j], expected, **EXACT)
        torch.testing.assert_close((q[:, i] * k[:, j]).sum(-1), expected, **EXACT)
        one = ((x @ m.left)[:, i] * rotation.between((x @ m.right)[:, j], torch.tensor(j - i))).sum(-1)
        torch.testing.assert_close(one, expected, **EXACT)
        # Swapping two positions with their contents: F and G, not the skew part of M(j - i).
        F, G = (product(offset_part(m, rotation, j - i, part)) for part in ("routing", "filtering"))
        torch.testing.assert_close((B[:, i, j] - B[:, j, i]) / 2, torch.einsum("d,hde,e->h", x[i], F, x[j]), **EXACT)
        torch.testing.assert_close((B[:, i, j] + B[:, j, i]) / 2, torch.einsum("d,hde,e->h", x[i], G, x[j]), **EXACT)


@pytest.mark.parametrize("shape", CASES)
def test_routing_is_skew_of_even_and_symmetric_of_odd(shape):
    m, rotation = case(*shape)
    for offset in OFFSETS:
        forth, back = dense(m, rotation, offset), dense(m, rotation, -offset)
        even, odd = (forth + back) / 2, (forth - back) / 2
        F, G = (product(offset_part(m, rotation, offset, part)) for part in ("routing", "filtering"))
        torch.testing.assert_close(F, (forth - back.mT) / 2, **EXACT)
        torch.testing.assert_close(F, skew(even) + sym(odd), **EXACT)
        torch.testing.assert_close(G, sym(even) + skew(odd), **EXACT)
        torch.testing.assert_close(F + G, forth, **EXACT)
        torch.testing.assert_close(product(offset_part(m, rotation, -offset)), -F.mT, **EXACT)


def test_both_notions_of_skew_agree_at_offset_zero_and_differ_elsewhere():
    m, rotation = case(3, 19, 8, 4, "half", 1.0)
    torch.testing.assert_close(product(offset_part(m, rotation, 0)), skew(product(m)), **EXACT)
    torch.testing.assert_close(product(offset_part(m, rotation, 0, "filtering")), sym(product(m)), **EXACT)
    F = product(offset_part(m, rotation, 1))
    assert (energy(F - skew(dense(m, rotation, 1))) > 1).all() and (energy(sym(F)) > 1).all()
    # Their energies differ as well, so no summary can take the one for the other.
    assert ((energy(F) - energy(skew(dense(m, rotation, 1)))).abs() > 1).all()


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("part", ["routing", "filtering"])
def test_spectra_equal_dense_ones(shape, part):
    m, rotation = case(*shape)
    found = offset_spectrum(m, rotation, OFFSETS, part)
    assert found.shape == (shape[0], len(OFFSETS), min(shape[1], 2 * shape[2]))
    for index, offset in enumerate(OFFSETS):
        expected = torch.linalg.svdvals(product(offset_part(m, rotation, offset, part)))
        torch.testing.assert_close(found[:, index], expected[:, : found.shape[-1]], **EXACT)
        assert (expected[:, found.shape[-1] :] < 1e-10).all()
    torch.testing.assert_close(offset_spectrum(m, rotation, [-5], part), offset_spectrum(m, rotation, [5], part))


def test_spectrum_at_zero_is_that_of_the_static_kernel_and_comes_in_pairs_only_there():
    m, rotation = case(3, 19, 8, 4, "half", 1.0)
    at_zero, at_one = offset_spectrum(m, rotation, torch.tensor([0, 1])).unbind(1)
    torch.testing.assert_close(at_zero, torch.linalg.svdvals(skew(product(m)))[:, :16], **EXACT)
    torch.testing.assert_close(at_zero[:, ::2], at_zero[:, 1::2], **EXACT)
    assert ((at_one[:, 0] - at_one[:, 1]).abs() > 0.1).all()
    assert offset_spectrum(m, rotation, []).shape == (3, 0, 16)


@pytest.mark.parametrize("shape", CASES)
def test_sectors_equal_dense_energies_and_add_up(shape):
    m, rotation = case(*shape)
    found = sectors(m, rotation, OFFSETS)
    for index, offset in enumerate(OFFSETS):
        forth, back = dense(m, rotation, offset), dense(m, rotation, -offset)
        even, odd = (forth + back) / 2, (forth - back) / 2
        expected = [energy(part) for part in (sym(even), skew(even), sym(odd), skew(odd))]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[:, index], other, **EXACT)
        torch.testing.assert_close(sum(expected), (energy(forth) + energy(back)) / 2, **EXACT)
        torch.testing.assert_close(found.routing[:, index], energy((forth - back.mT) / 2), **EXACT)
        torch.testing.assert_close(found.filtering[:, index], energy((forth + back.mT) / 2), **EXACT)
    over = found.summed()
    torch.testing.assert_close(over.odd_symmetric, found.odd_symmetric.sum(-1), **EXACT)
    torch.testing.assert_close(over.routing_fraction, over.routing / sum(over), **EXACT)


def test_half_and_adjacent_pairs_are_one_thing_with_columns_moved():
    m, half = case(2, 19, 8, 3, "half", 1.2)
    order = [0, 3, 1, 4, 2, 5, 6, 7]  # pair t's columns side by side
    moved = Bilinear(m.left[..., order], m.right[..., order])
    adjacent = dataclasses.replace(half, pairs="adjacent")
    for offset in OFFSETS:
        a, b = product(at_offset(m, half, offset)), product(at_offset(moved, adjacent, offset))
        torch.testing.assert_close(a, b, **EXACT)
    for one, other in zip(sectors(m, half, OFFSETS), sectors(moved, adjacent, OFFSETS), strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    assert not torch.allclose(product(at_offset(m, adjacent, 1)), product(at_offset(m, half, 1)))


def test_a_symmetric_static_kernel_routes_through_the_phase():
    m, rotation = case(2, 19, 8, 4, "half", 1.0)
    signs = torch.tensor([1.0] * 4 + [-1.0] * 4, dtype=torch.float64)  # a mirror in every pair
    mirrored = Bilinear(m.left, m.left * signs)
    torch.testing.assert_close(product(mirrored), product(mirrored).mT, **EXACT)
    found = sectors(mirrored, rotation, [0, 1, 2])
    assert (found.routing[:, 0] < 1e-9).all() and (found.even_skew < 1e-9).all()
    assert (found.routing_fraction[:, 1:] > 0.05).all() and (found.phase_fraction[:, 1:] > 1 - 1e-9).all()
    # Equal factors, P = K, commute with every turn: such a head routes at no offset.
    equal = sectors(Bilinear(m.left, m.left), rotation, [0, 1, 2])
    assert (equal.routing < 1e-9).all() and (equal.odd_skew[:, 1:] > 1).all()


def test_a_zero_head_has_no_fractions():
    m, rotation = case(2, 19, 8, 4, "half", 1.0)
    zero = Bilinear(m.left * torch.tensor([0.0, 1.0])[:, None, None], m.right)
    found = sectors(zero, rotation, [0, 3])
    assert all((value[0] == 0).all() for value in found)
    assert found.routing_fraction[0].isnan().all() and found.routing_fraction[1].isfinite().all()
    assert pair_norms(zero, rotation).sin_fraction.isnan().tolist() == [True, False]


def exact(model: HookedModel, layer: int) -> Rotation:
    """The rotation with the plain forward pass's own float64 frequencies."""
    rope = read_settings(model.hf.config.to_dict()).ropes[layer]
    assert rope is not None
    omega = blocks.frequencies(rope, dtype=torch.float64, device=torch.device("cpu"))
    return dataclasses.replace(Rotation.of(model, layer), omega=omega)


@pytest.mark.parametrize("name", [v for v in VARIANTS if VARIANTS[v][0] != "gpt2"])
def test_frequencies_are_those_of_the_independent_forward(name):
    model = wrapped(name)
    for layer in range(model.cfg.n_layers):
        rotation = Rotation.of(model, layer)
        torch.testing.assert_close(rotation.omega, exact(model, layer).omega, rtol=1e-6, atol=0)
        assert rotation.e == model.cfg.d_head and rotation.factor == 1.0 and rotation.pairs == "half"


def test_frequencies_are_read_as_the_model_holds_them():
    model = HookedModel.wrap(tiny("llama_plain_rope").to(torch.bfloat16))
    held = model.hf.model.rotary_emb.inv_freq
    omega = Rotation.of(model, 0).omega
    assert held.dtype == torch.bfloat16 and omega.dtype == torch.float64  # the cast rounded them; so they are used
    assert torch.equal(omega, held.double()) and not torch.allclose(omega, exact(model, 0).omega, rtol=1e-5)


def test_variants_really_turn_differently():
    def of(name, layer=0):
        return Rotation.of(wrapped(name), layer).omega

    assert len(of("gpt_neox")) == 3 and len(of("llama")) == 8  # 6 of 12 dimensions, 16 of 16
    torch.testing.assert_close(of("llama_linear_rope"), of("llama_plain_rope") / 4)
    assert not torch.allclose(of("llama"), of("llama_plain_rope"))
    assert float(of("gemma3_text", 0)[1]) > float(of("gemma3_text", 1)[1])  # local base 50, global 5000


def rebuilt(model: HookedModel, layer: int, rotation: Rotation, x: Tensor) -> Tensor:
    """Scores before mask and soft-cap, b h t s, from dense M(j - i) alone."""
    m = kernel(model, layer, biases=True).bilinear
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    t = x.shape[1]
    scores = torch.empty(len(x), len(m.left), t, t, dtype=torch.float64)
    for offset in range(1 - t, t):
        M = product(at_offset(m, rotation, offset))
        i = torch.arange(max(0, -offset), min(t, t - offset))
        scores[:, :, i, i + offset] = torch.einsum("bnd,hdf,bnf->bhn", x[:, i], M, x[:, i + offset])
    return scores


@pytest.mark.parametrize("name", BILINEAR)
def test_scores_rebuilt_from_the_kernel_equal_the_independent_forward(name):
    model = wrapped(name)
    config = model.hf.config.to_dict()
    settings = read_settings(config)
    run = plain_run(config, model.hf.state_dict(), random_tokens(model.hf, 2, 11))
    for layer in range(model.cfg.n_layers):
        q, k = (run.sites[Site(point, layer)] for point in (Point.ROT_Q, Point.ROT_K))
        k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
        truth = torch.einsum("bthe,bshe->bhts", q, k) * settings.score_scales[layer]
        x = run.sites[Site(Point.LN1, layer)]
        own = rebuilt(model, layer, Rotation.of(model, layer), x)
        assert float((own - truth).abs().max()) < 1e-5 and float(truth.abs().max()) > 1
        torch.testing.assert_close(rebuilt(model, layer, exact(model, layer), x), truth, **EXACT)
        masked = run.sites[Site(Point.ATTN_SCORES, layer)]
        seen = masked > -torch.inf
        torch.testing.assert_close(blocks.soft_cap(own, settings.attn_cap)[seen], masked[seen], rtol=0, atol=1e-5)


def test_scores_of_the_real_model(smollm2):
    layer, t = 5, 12
    tokens = random_tokens(smollm2.hf, 1, t)
    wanted = [Site(point, layer) for point in (Point.LN1, Point.ATTN_SCORES)]
    config, weights = smollm2.hf.config.to_dict(), smollm2.hf.state_dict()
    run = plain_run(config, weights, tokens, sites=wanted, layers=layer + 1)
    x, truth = (run.sites[site][0] for site in wanted)
    m, rotation = kernel(smollm2, layer).bilinear, Rotation.of(smollm2, layer)
    for offset in range(1 - t, 1):
        at, i = at_offset(m, rotation, offset), torch.arange(-offset, t)
        scores = ((x[i] @ at.left) * (x[i + offset] @ at.right)).sum(-1)
        assert float((scores - truth[:, i, i + offset]).abs().max()) < 1e-5
    assert float(truth[truth > -torch.inf].abs().max()) > 3


def test_wrong_rotations_do_not_give_those_scores():
    model = wrapped("gpt_neox")
    run = plain_run(model.hf.config.to_dict(), model.hf.state_dict(), random_tokens(model.hf, 2, 11))
    q, k, x = (run.sites[Site(point, 1)] for point in (Point.ROT_Q, Point.ROT_K, Point.LN1))
    truth = torch.einsum("bthe,bshe->bhts", q, k) * model.cfg.scale(1)
    right = exact(model, 1)
    faults = [
        dataclasses.replace(right, pairs="adjacent"),
        dataclasses.replace(right, omega=-right.omega),
        dataclasses.replace(right, factor=1.1),
        dataclasses.replace(right, omega=right.omega.repeat(2)[:6]),  # all 12 dimensions turn
    ]
    assert float((rebuilt(model, 1, right, x) - truth).abs().max()) < 1e-10
    for fault in faults:
        assert float((rebuilt(model, 1, fault, x) - truth).abs().max()) > 0.01


@pytest.mark.parametrize("name", NORMED)
def test_families_with_query_key_norm_turn_but_have_no_kernel(name):
    model = wrapped(name)
    tokens = random_tokens(model.hf, 2, 11)
    run = plain_run(model.hf.config.to_dict(), model.hf.state_dict(), tokens)
    settings = read_settings(model.hf.config.to_dict())
    for layer in range(model.cfg.n_layers):
        q = run.sites[Site(Point.Q, layer)]
        gain = model.hf.state_dict()[f"model.layers.{layer}.self_attn.q_norm.weight"].double()
        q = blocks.gained(blocks.normalized(q, settings.norm, settings.eps), settings.norm, gain, None)
        found = Rotation.of(model, layer).turned(q, torch.arange(11)[:, None])
        torch.testing.assert_close(found, run.sites[Site(Point.ROT_Q, layer)], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="norm"):
        rope_rows(model, progress=False)


@pytest.mark.parametrize(("family", "pairs"), [("llama", 8), ("gpt_neox", 3)])
def test_the_attention_factor_of_yarn(family, pairs):
    rope = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
    partial = {"partial_rotary_factor": 0.5} if family == "gpt_neox" else {}
    model = HookedModel.wrap(tiny(family, rope_parameters=rope | partial))
    rotation = Rotation.of(model, 1)
    assert rotation.factor == pytest.approx(1.1386, abs=1e-4) and len(rotation.omega) == pairs
    captured = model.capture(random_tokens(model.hf, 2, 11), ["ln1.1", "rot_q.1", "rot_k.1"])
    found = {site.point: x.detach().double() for site, x in captured.items()}
    q, k = found[Point.ROT_Q], found[Point.ROT_K]
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    truth = torch.einsum("bthe,bshe->bhts", q, k) * model.cfg.scale(1)
    assert float((rebuilt(model, 1, rotation, found[Point.LN1]) - truth).abs().max()) < 1e-5
    unscaled = dataclasses.replace(rotation, factor=1.0)
    assert float((rebuilt(model, 1, unscaled, found[Point.LN1]) - truth).abs().max()) > 0.1


def test_rows_hold_shares_of_the_sectors_summed_over_offsets():
    model = wrapped("gpt_neox")
    rows = rope_rows(model, offsets=range(5), layers=[2], progress=False)
    assert [(row["layer"], row["head"]) for row in rows] == [(2, h) for h in range(4)]
    m, rotation = kernel(model, 2).bilinear, Rotation.of(model, 2)
    for row in rows:
        names = ("even_symmetric", "even_skew", "odd_symmetric", "odd_skew")
        assert sum(row[f"rope_{name}"] for name in names) == pytest.approx(1)
        F = sum(energy(product(offset_part(m, rotation, o)))[row["head"]] for o in range(5))
        G = sum(energy(product(offset_part(m, rotation, o, "filtering")))[row["head"]] for o in range(5))
        assert row["rope_routing_fraction"] == pytest.approx(float(F / (F + G)))
        assert row["rope_phase_fraction"] == pytest.approx(row["rope_odd_symmetric"] / row["rope_routing_fraction"])
        assert 0 < row["rope_sin_fraction"] < 1 and 0 < row["rope_passing_share"] < 1
    assert len(rope_rows(wrapped("llama"), progress=False)) == 12


def test_bad_input_is_named():
    with pytest.raises(InputError, match="gpt2 has no rotary embedding"):
        Rotation.of(wrapped("gpt2"), 0)
    with pytest.raises(InputError, match="layer 3: the model has 3 layers"):
        Rotation.of(wrapped("llama"), 3)
    rope = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}
    with pytest.raises(InputError, match="'dynamic' changes its frequencies with the length"):
        Rotation.of(HookedModel.wrap(tiny("llama", rope_parameters=rope)), 0)
    own = wrapped("llama")
    strange = dataclasses.replace(own.anatomy, spec=dataclasses.replace(own.cfg, family="own"))
    with pytest.raises(InputError, match="how own turns its queries is not known"):
        Rotation.of(HookedModel.wrap(own.hf, anatomy=strange), 0)
    with pytest.raises(InputError, match="5 pairs turn 10 dimensions, but a head has e=8"):
        Rotation(torch.ones(5), 8)
    with pytest.raises(InputError, match="pairs must be 'half' or 'adjacent', got 'other'"):
        odd = Rotation(torch.ones(2), 8)
        object.__setattr__(odd, "pairs", "other")  # past the type checker of the tests
        odd.__post_init__()
    m, _ = case(2, 19, 8, 4, "half", 1.0)
    narrow = Rotation(torch.ones(2), 4)
    for attempt in (at_offset, offset_part):
        with pytest.raises(InputError, match="factors of width 8 were given with the rotation of heads of width 4"):
            attempt(m, narrow, 1)
    with pytest.raises(InputError, match="the last axis must be a head's width, 4"):
        narrow.turned(torch.ones(3, 8), torch.arange(3))

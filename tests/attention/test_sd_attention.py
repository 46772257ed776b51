"""S-D attention: the stability theorem and its converse, the causal triangle, linear form, gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interp.attention.sd_attention import (
    ATTENTION,
    Attention,
    EluAttention,
    KernelSD,
    TokenSD,
    attention_class,
    causal_linear,
    sd_kernel,
    sd_operator,
)
from interp.errors import InputError


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(kind: str, *, rotary: bool = True, n_ctx: int = 24) -> Attention:
    module = ATTENTION[kind](20, 2, 6, n_ctx, rotary=rotary).double()
    module.start(torch.Generator().manual_seed(1), 0.5)
    for number, p in enumerate(module.parameters()):  # nothing stands at zero, where a fault could hide
        p.data += drawn(*p.shape, seed=100 + number, scale=0.1)
    return module


def inputs(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random, and what should be hardest: huge, nearly parallel, one position repeated, zero."""
    n, e = 24, 6
    q, k, delta = drawn(3, n, e, seed=2), drawn(3, n, e, seed=3), drawn(3, n, seed=4)
    match kind:
        case "random":
            return q, k, delta
        case "huge":
            return 1e3 * q, 1e3 * k, delta
        case "parallel":
            return q[:, :1] + 1e-6 * q, q[:, :1] - 1e-6 * k, delta - 20
        case "repeated":
            return q[:, :1].expand_as(q), k[:, :1].expand_as(k), delta
        case _:
            return 0 * q, k, delta


@pytest.mark.parametrize("kind", ["random", "huge", "parallel", "repeated", "zero"])
def test_operator_is_in_the_left_half_plane(kind: str) -> None:
    """x^T A x = -x^T D x: eigenvalues and field of values have Re <= -min D, whatever q and k are."""
    q, k, delta = inputs(kind)
    operator = sd_operator(q, k, delta)
    least = F.softplus(delta).amin(-1)
    size = operator.abs().amax((-1, -2))
    assert (torch.linalg.eigvals(operator).real.amax(-1) <= -least + 1e-10 * size).all()
    numerical_abscissa = torch.linalg.eigvalsh((operator + operator.mT) / 2).amax(-1)
    torch.testing.assert_close(numerical_abscissa, -least, rtol=1e-12, atol=1e-12 * float(size.max()))
    x = drawn(3, 24, 7, seed=5)
    values = torch.einsum("bnx,bnm,bmx->bx", x, operator, x)
    expected = -torch.einsum("bnx,bn->bx", x.square(), F.softplus(delta))
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-10 * float(size.max()))


def test_standard_operator_is_not() -> None:
    """The converse: q k^T has eigenvalues to the right, and so has S once D is taken away with its sign turned."""
    q, k, delta = inputs("random")
    assert (torch.linalg.eigvals(q @ k.mT).real.amax(-1) > 0.1).all()
    assert (torch.linalg.eigvals(sd_operator(q, k, delta) + 2 * torch.diag_embed(F.softplus(delta))).real > 0).all()


@pytest.mark.parametrize(("kind", "power"), [("sd_token", 3), ("sd_unit", 1)])
def test_growth_with_the_stream(kind: str, power: int) -> None:
    """The guarantee is about eigenvalues: the plain form is cubic in its input all the same, the unit form linear."""
    module, x = built(kind), drawn(1, 24, 20, seed=21)
    small, large = module(1e3 * x, torch.float64), module(1e6 * x, torch.float64)
    growth = (large.norm() / small.norm()).log10().item()
    assert abs(growth - 3 * power) < 0.05


@pytest.mark.parametrize("kind", ["sd_token", "sd_unit"])
def test_modules_operator_without_its_mask(kind: str) -> None:
    """The same of a module, with rotary positions and the constant c: exactly skew minus diagonal."""
    module = built(kind)
    x = drawn(2, 24, 20, seed=6, scale=3.0)
    whole = module.scores(x)
    symmetric = (whole + whole.mT) / 2
    torch.testing.assert_close(symmetric, torch.diag_embed(whole.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-14)
    assert isinstance(module, TokenSD)
    if kind == "sd_unit":
        x = x / x.norm(dim=-1, keepdim=True) * math.sqrt(20)
    expected = -F.softplus(x @ module.w_delta.T + module.b_delta).mT * (1 / 24 if kind == "sd_token" else 24**-0.5)
    torch.testing.assert_close(whole.diagonal(dim1=-2, dim2=-1), expected)
    assert (torch.linalg.eigvals(whole).real < 0).all()


def test_causal_triangle_has_its_diagonal_as_eigenvalues() -> None:
    """Under the mask the guarantee is trivial, and does not bound growth: the symmetric part has positive values."""
    q, k, delta = inputs("random")
    operator = sd_operator(q, k, delta).tril()
    found = torch.linalg.eigvals(operator[:, :8, :8])
    found = found.real.sort(-1).values + 0 * found.imag
    torch.testing.assert_close(found, -F.softplus(delta)[:, :8].sort(-1, descending=True).values, rtol=1e-6, atol=1e-6)
    assert (torch.linalg.eigvalsh((operator + operator.mT) / 2).amax(-1) > 0.1).all()


def test_kernel_space_form_is_in_the_left_half_plane() -> None:
    w_q, w_k, delta = drawn(4, 20, 6, seed=7, scale=5.0), drawn(4, 20, 6, seed=8), drawn(4, 20, seed=9)
    kernel = sd_kernel(w_q, w_k, delta)
    assert (torch.linalg.eigvals(kernel).real.amax(-1) < 0).all()
    abscissa = torch.linalg.eigvalsh((kernel + kernel.mT) / 2).amax(-1)
    torch.testing.assert_close(abscissa, -F.softplus(delta).amin(-1), rtol=1e-10, atol=1e-12)
    assert (torch.linalg.eigvals(w_q @ w_k.mT).real.amax(-1) > 0).all()


def test_kernel_space_scores_are_those_of_the_kernel() -> None:
    """Without rotary positions scores are x M x^T / sqrt e, with M formed densely."""
    module = built("sd_kernel", rotary=False)
    assert isinstance(module, KernelSD)
    w_q, w_k, _ = module.w_qkv.unflatten(1, (2, 6)).mT
    x = drawn(2, 24, 20, seed=10)
    dense = sd_kernel(w_q, w_k, module.delta)
    torch.testing.assert_close(module.scores(x), torch.einsum("btd,hdc,bsc->bhts", x, dense, x) / math.sqrt(6))


@pytest.mark.parametrize("n", [1, 5, 8, 23, 24])
@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_chunks_are_exact(n: int, chunk: int) -> None:
    f, g, v = drawn(2, n, 5, seed=11), drawn(2, n, 5, seed=12), drawn(2, n, 3, seed=13)
    expected = torch.zeros(2, n, 3, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            expected[:, i] += (f[:, i] * g[:, j]).sum(-1)[:, None] * v[:, j]
    torch.testing.assert_close(causal_linear(f, g, v, chunk=chunk), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", list(ATTENTION))
@pytest.mark.parametrize("n", [1, 24, 100])
def test_forward_is_the_operator_applied(kind: str, n: int) -> None:
    """The fast path (states, fused softmax) and the definition agree, in value and in every gradient."""
    module = built(kind, n_ctx=100)
    x = drawn(2, n, 20, seed=14).requires_grad_()
    weights = drawn(2, n, 20, seed=15)
    fast, plain = module(x, torch.float64), module.applied(module.operator(x), x)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)
    wanted = [x, *module.parameters()]
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), wanted),
        torch.autograd.grad((plain * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rotary", [True, False])
def test_token_space_against_sums_over_pairs(rotary: bool) -> None:
    """Output and gradients against the definition written out pair by pair, positions turned as complex numbers."""
    module = built("sd_token", rotary=rotary)
    assert isinstance(module, TokenSD)
    x = drawn(1, 7, 20, seed=16).requires_grad_()
    both = torch.einsum("zad,btd->zbta", module.w_qkv, x).unflatten(-1, (2, 6))
    angles = torch.outer(torch.arange(7).double(), 10_000.0 ** (-torch.arange(3).double() / 3)) * rotary
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    q, k = (torch.view_as_complex(torch.stack(y.chunk(2, -1), -1).contiguous()) * turn for y in both[:2])
    rows = []
    for i in range(7):
        row = torch.zeros(1, 2, 6, dtype=torch.float64)
        for j in range(i + 1):
            skew = ((q[:, i] * k[:, j].conj()).real.sum(-1) - (q[:, j] * k[:, i].conj()).real.sum(-1)) / (
                2 * math.sqrt(6)
            )
            row = (
                row
                + (skew - (i == j) * F.softplus(module.w_delta @ x[0, i] + module.b_delta))[..., None] * both[2, :, j]
            )
        rows.append(row.flatten(1) @ module.w_o.T / 24)
    expected = torch.stack(rows, 1)
    torch.testing.assert_close(module(x, torch.float64), expected, rtol=1e-10, atol=1e-12)
    weights, wanted = drawn(1, 7, 20, seed=17), [x, *module.parameters()]
    for a, b in zip(
        torch.autograd.grad((module(x, torch.float64) * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_no_position_sees_a_later_one() -> None:
    for kind in ATTENTION:
        module = built(kind, n_ctx=100)
        x = drawn(1, 100, 20, seed=18)
        changed = x.clone()
        changed[:, 70:] += 1
        torch.testing.assert_close(module(x, torch.float64)[:, :70], module(changed, torch.float64)[:, :70])


def test_elu_rows_sum_to_one_and_softmax_does_not_flip_sign() -> None:
    module = built("elu")
    assert isinstance(module, EluAttention)
    operator = module.operator(drawn(2, 24, 20, seed=19))
    torch.testing.assert_close(operator.sum(-1), torch.ones(2, 2, 24, dtype=torch.float64))
    assert (operator >= 0).all() and (built("sd_token").operator(drawn(2, 24, 20, seed=19)) < 0).any()


def test_bfloat16_is_close() -> None:
    """The compute dtype of training: the same function to the 8 bits it has."""
    for kind in ATTENTION:
        module = built(kind).float()
        x = drawn(2, 24, 20, seed=20).float()
        exact, rough = module(x), module(x, torch.bfloat16).float()
        assert (rough - exact).norm() < 0.03 * exact.norm()


def test_unknown_kind() -> None:
    with pytest.raises(
        InputError, match=r"attention must be one of standard, sd_token, sd_unit, sd_kernel, elu, got 'sd'"
    ):
        attention_class("sd")

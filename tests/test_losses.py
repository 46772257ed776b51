"""The losses against dense formulas; above all, AuxK's gradient is plain autograd's, dead encoder rows included."""

import pytest
import torch
from torch import Tensor

from saes.losses import auxiliary, reconstruction


def problem(n: int = 12, f: int = 15, d: int = 6, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"centred": (n, d), "error": (n, d), "encoder": (f, d), "b_enc": (f,), "W_dec": (f, d)}
    return {name: torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True) for name, s in shapes.items()}


def plain(p: dict[str, Tensor], dead: Tensor, k_aux: int) -> Tensor:
    """The definition over the whole width: masked pre-activations, top k, ReLU, decode, compare with the residual."""
    pre = p["centred"].detach() @ p["encoder"].T + p["b_enc"]
    mask = torch.zeros(pre.shape[1], dtype=torch.bool).index_fill(0, dead, True)
    pre = pre.masked_fill(~mask, -torch.inf)
    top = pre.topk(min(k_aux, len(dead)))
    code = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    e = p["error"].detach()
    return (e - code @ p["W_dec"]).square().sum() / e.square().sum() * min(len(dead) / k_aux, 1)


@pytest.mark.parametrize("k_aux", [3, 5, 40])
@pytest.mark.parametrize("dead", [[2], [1, 4, 7, 8, 14]])
def test_auxiliary_value_and_gradients(dead, k_aux):
    """More dead than k_aux (top-k among them), as many, fewer."""
    p, dead = problem(), torch.tensor(dead)
    ours = auxiliary(p["centred"], p["error"], dead, p["encoder"], p["b_enc"], p["W_dec"], k_aux=k_aux)
    torch.testing.assert_close(ours, plain(p, dead, k_aux))
    wanted = [p["encoder"], p["b_enc"], p["W_dec"]]
    gradients = torch.autograd.grad(ours, wanted, retain_graph=True)
    for a, b in zip(gradients, torch.autograd.grad(plain(p, dead, k_aux), wanted), strict=True):
        torch.testing.assert_close(a, b)
    alive = torch.ones(15, dtype=torch.bool).index_fill(0, dead, False)
    for gradient in gradients:
        rows = gradient.flatten(1).norm(dim=1) if gradient.ndim == 2 else gradient.abs()
        assert (rows[dead] > 0).all(), "a dead feature got no gradient"
        assert (rows[alive] == 0).all(), "a living feature got one"
    nothing = torch.autograd.grad(ours, [p["centred"], p["error"]], allow_unused=True)
    assert nothing == (None, None), "the target and the input are constants here"


def test_auxiliary_leaves_out_tokens_without_error():
    p, dead = problem(), torch.tensor([2, 5])
    with torch.no_grad():
        p["error"][3] = 0
    rest = {name: t[torch.arange(12) != 3] if name in ("centred", "error") else t for name, t in p.items()}
    of = [auxiliary(q["centred"], q["error"], dead, q["encoder"], q["b_enc"], q["W_dec"], k_aux=3) for q in (p, rest)]
    torch.testing.assert_close(*of)


def test_reconstruction_is_a_fraction_of_the_variance():
    g = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(500, 4, generator=g, dtype=torch.float64)
    centred = x - x.mean(0)
    variance = centred.square().sum(1).mean().item()
    everyone = torch.ones(500, dtype=torch.float64)
    torch.testing.assert_close(reconstruction(centred, everyone, variance).item(), 1.0)
    kept = (torch.arange(500) % 3 == 0).double()
    expected = centred[::3].square().sum(1).mean() / variance
    torch.testing.assert_close(reconstruction(centred, kept, variance), expected)
    assert reconstruction(centred, torch.zeros(500).double(), variance) == 0

"""Every training loss once more, as plainly as it can be said: dense, float64 if given float64, PyTorch's own autograd.

This file is written from the equations and shares no code with `saes`; the battery compares the two.

    p           dict of weights: encoder (f, d_in), b_enc (f), W_dec (f, d_out), b_dec (d_out); with them W_skip
                (d_out, d_in), log_threshold (f), r_mag (f), b_mag (f), as the architecture has them
    x, y        inputs and targets in training units (n, d_in), (n, d_out); y is x for an SAE
    kept        (n,) of 0 and 1; tokens with 0 are cut out at the start: they are simply not there
    V           variance of y, one number

Every loss returns a dict: `loss`, its parts, and the dense codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What the equations need to know beside the weights."""

    centred: float = 1.0
    """The encoder reads x - centred b_dec (0 for transcoders)."""
    blocks: tuple[int, ...] = ()
    """Widths of a crosscoder's outputs; () is one."""
    weighted: bool = False
    """Entries are ranked by z * w."""
    k: int = 1
    aux_weight: float = 0.0
    k_aux: int = 1
    sizes: tuple[int, ...] = ()
    """Ends of the nested prefixes."""
    sparsity: float = 0.0
    p: float = 1.0
    bandwidth: float = 0.1
    every: bool = False
    """The straight-through estimator reaches z as well as the threshold."""
    target_l0: float = 1.0
    tanh_scale: float = 1.0
    pre_act: float = 0.0


def cut(x: Tensor, y: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    return x[kept > 0], y[kept > 0]


def pre_activations(p: Weights, x: Tensor, s: Setting) -> Tensor:
    z = x - s.centred * p["b_dec"] if s.centred else x
    return z @ p["encoder"].T + p["b_enc"]


def row_norms(p: Weights, s: Setting) -> Tensor:
    """w: norm of each decoder row; of a crosscoder the sum of the norms of its blocks."""
    blocks = p["W_dec"].split(s.blocks or p["W_dec"].shape[1], dim=1)
    return torch.stack([block.norm(dim=1) for block in blocks]).sum(0)


def rebuilt(p: Weights, codes: Tensor, x: Tensor) -> Tensor:
    out = codes @ p["W_dec"] + p["b_dec"]
    return out + x @ p["W_skip"].T if "W_skip" in p else out


def fraction(y: Tensor, guess: Tensor, V: float) -> Tensor:
    """R = sum |e|^2 / (n' V)."""
    return (y - guess).square().sum() / (max(len(y), 1) * V)


def dead_residual(p: Weights, x: Tensor, error: Tensor, dead: Tensor, s: Setting) -> Tensor:
    """AuxK: the dead features' top k_aux against the error, with the error's own size as the unit."""
    if not s.aux_weight or not len(dead) or not len(x):
        return x.new_zeros(())
    e, b_dec = error.detach(), p["b_dec"].detach()
    z = (x - s.centred * b_dec if s.centred else x) @ p["encoder"].T + p["b_enc"]
    alive = torch.ones(z.shape[1], dtype=torch.bool)
    alive[dead] = False
    rank = (z * row_norms(p, s) if s.weighted else z).detach().masked_fill(alive, -torch.inf)
    chosen = torch.zeros_like(z).scatter(1, rank.topk(min(s.k_aux, len(dead))).indices, 1.0)
    guess = (z.relu() * chosen) @ p["W_dec"]
    return (e - guess).square().sum() / e.square().sum() * min(len(dead) / s.k_aux, 1)


def largest(rank: Tensor, count: int, flat: bool) -> Tensor:
    """1 where an entry is among the `count` largest of its token, or of the whole batch, and positive."""
    if flat:
        count = min(count, rank.numel())
        one = torch.zeros(rank.numel(), dtype=rank.dtype)
        one[rank.flatten().topk(count).indices] = 1
        return one.view_as(rank) * (rank > 0)
    return torch.zeros_like(rank).scatter(1, rank.topk(count).indices, 1.0) * (rank > 0)


def topk(p: Weights, x: Tensor, y: Tensor, kept: Tensor, V: float, s: Setting, dead: Tensor, *, batch=False) -> dict:
    """TopK and BatchTopK with AuxK; Matryoshka where `s.sizes` holds more than one prefix."""
    count = len(x) * s.k if batch else s.k  # massive tokens keep their share of the batch's budget
    x, y = cut(x, y, kept)
    z = pre_activations(p, x, s)
    rank = (z * row_norms(p, s) if s.weighted else z).detach()
    chosen = largest(rank, count, batch)
    codes = z * chosen
    errors = [y - rebuilt(p, codes * (torch.arange(z.shape[1]) < size), x) for size in s.sizes or (z.shape[1],)]
    nested = [error.square().sum() / (max(len(y), 1) * V) for error in errors]
    aux = dead_residual(p, x, errors[-1], dead, s)
    smallest = rank[chosen > 0].min() if chosen.any() else rank.new_tensor(torch.nan)
    loss = sum(nested) / len(nested) + s.aux_weight * aux
    return {"loss": loss, "reconstruction": nested[-1], "aux": aux, "codes": codes, "smallest": smallest}


def standard(p: Weights, x: Tensor, y: Tensor, kept: Tensor, V: float, s: Setting) -> dict:
    """ReLU with an L_p penalty on the length each feature adds to the reconstruction, in units of sqrt(V)."""
    x, y = cut(x, y, kept)
    codes = pre_activations(p, x, s).relu()
    length = codes * row_norms(p, s) / V**0.5
    on = length > 0
    penalty = (torch.where(on, length, 1.0) ** s.p * on).sum() / max(len(x), 1)
    R = fraction(y, rebuilt(p, codes, x), V)
    return {"loss": R + s.sparsity * penalty, "reconstruction": R, "penalty": penalty, "codes": codes}


def gated(p: Weights, x: Tensor, y: Tensor, kept: Tensor, V: float, s: Setting) -> dict:
    """The gate decides, the magnitude path measures; the gate alone has to reconstruct through a frozen decoder."""
    x, y = cut(x, y, kept)
    a = (x - s.centred * p["b_dec"] if s.centred else x) @ p["encoder"].T
    gate = a + p["b_enc"]
    codes = (p["r_mag"].exp() * a + p["b_mag"]).relu() * (gate > 0)
    penalty = (gate.relu() * row_norms(p, s)).sum() / V**0.5 / max(len(x), 1)
    R = fraction(y, rebuilt(p, codes, x), V)
    frozen = {name: p[name].detach() for name in ("W_dec", "b_dec", "W_skip") if name in p}
    through = fraction(y, rebuilt(frozen, gate.relu(), x), V)
    loss = R + s.sparsity * penalty + through
    return {"loss": loss, "reconstruction": R, "penalty": penalty, "gate": through, "codes": codes}


def surrogate(value: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """`value`, a constant, with slope[i] as its derivative by variable[i]."""
    for slope, variable in terms:
        term = slope.detach() * variable
        value = value + term - term.detach()
    return value


def jump(z: Tensor, theta: Tensor, s: Setting) -> tuple[Tensor, Tensor]:
    """f = z H(z - theta) and H itself, with the pseudo-derivatives of the rectangle kernel."""
    on = (z > theta).to(z.dtype)
    near = ((z - theta).abs() / s.bandwidth < 0.5).to(z.dtype) / s.bandwidth
    wide = near * float(s.every)
    codes = surrogate((z * on).detach(), (-theta * near, theta), (on + theta * wide, z))
    gate = surrogate(on, (-near, theta), (wide, z))
    return codes, gate


def jumprelu(
    p: Weights, x: Tensor, y: Tensor, kept: Tensor, V: float, s: Setting, dead: Tensor, *, mode: str = "step"
) -> dict:
    """JumpReLU with one of its three penalties."""
    x, y = cut(x, y, kept)
    n = max(len(x), 1)
    theta = p["log_threshold"].exp() + torch.zeros_like(p["b_enc"])
    z = pre_activations(p, x, s)
    codes, gate = jump(z, theta, s)
    w = row_norms(p, s)
    R = fraction(y, rebuilt(p, codes, x), V)
    l0 = gate.sum() / n
    silent = torch.zeros(len(w), dtype=z.dtype)
    silent[dead] = 1
    low = ((theta - z).relu() * w * silent).sum() / V**0.5 / n
    if mode == "step":
        penalty = s.sparsity * l0
    elif mode == "target":
        penalty = s.sparsity * (l0 / s.target_l0 - 1) ** 2
    else:
        penalty = s.sparsity * (s.tanh_scale * codes * w).tanh().sum() / n + s.pre_act * low
    return {"loss": R + penalty, "reconstruction": R, "penalty": penalty, "codes": codes, "l0": l0, "low": low}


def optimised(p: Weights, unit: bool, clip: float) -> None:
    """The gradients as Adam should see them: without the part along a unit row, then no longer than `clip`."""
    with torch.no_grad():
        if unit:
            W, G = p["W_dec"], p["W_dec"].grad
            along = W / W.norm(dim=1, keepdim=True)
            G -= (G * along).sum(1, keepdim=True) * along
        total = torch.stack([t.grad.square().sum() for t in p.values()]).sum().sqrt()
        for t in p.values():
            t.grad *= min(1.0, clip / float(total))

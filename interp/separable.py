"""Many smooth convex problems at once: L-BFGS with a history, a step and an end of its own for each.

    min over v_q of f_q(v_q)  for every problem q,        d_q = -H_q g_q  from the last `memory` pairs (s, y)

One evaluation gives the values and gradients of all problems that are left (for linear probes on shared activations:
two matrix products), the recursion of Nocedal (1980) runs over all of them in lockstep, and each backtracks until
Armijo's condition holds. A problem that has met `tol` leaves; what it costs stops with it. Against one L-BFGS over the
concatenated variables, no problem waits for the step of the worst conditioned one.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ARMIJO, _HALVINGS = 1e-4, 25


@runtime_checkable
class Objective(Protocol):
    """Values and gradients of the problems named by `left`, and how far from a minimum each is."""

    def __call__(self, v: Float[Tensor, "q p"], left: Int[Tensor, " q"]) -> tuple[Tensor, Tensor]:
        """Values `[q]` and gradients `[q p]`."""
        ...

    def distance(self, gradient: Float[Tensor, "q p"], left: Int[Tensor, " q"]) -> Tensor:
        """What is compared with `tol`, `[q]`."""
        ...


class Minimum(NamedTuple):
    """Where the problems ended, and their distance there."""

    v: Float[Tensor, "q p"]
    distance: Float[Tensor, " q"]
    iterations: int


def minimise(
    objective: Objective, start: Float[Tensor, "q p"], *, tol: float, max_iter: int, memory: int = 10
) -> Minimum:
    """Minimise all problems from `start`; those that do not meet `tol` in `max_iter` iterations end where they are."""
    best, distance = start.clone(), start.new_full((len(start),), torch.inf)
    left = torch.arange(len(start), device=start.device)
    v = start.clone()
    f, g = objective(v, left)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    for done in range(max_iter + 1):
        far = objective.distance(g, left)
        best[left], distance[left] = v, far
        keep = far > tol
        if done == max_iter or not keep.any():
            break
        if keep.sum() <= 0.8 * len(left):
            left, v, f, g = left[keep], v[keep], f[keep], g[keep]
            history = [(s[keep], y[keep], rho[keep]) for s, y, rho in history]
        step = _direction(g, history)
        slope = (step * g).sum(1)
        uphill = slope >= 0
        if uphill.any():  # rounding has spoilt the history of this problem
            step[uphill], slope[uphill] = -g[uphill], -(g[uphill] ** 2).sum(1)
        new_v, new_f, new_g, moved = _search(objective, left, v, f, g, step, slope)
        if not moved.any():
            break  # no problem can be bettered at this precision
        s, y = new_v - v, new_g - g
        curvature = (s * y).sum(1)
        usable = curvature > torch.finfo(v.dtype).eps * (y * y).sum(1)
        history = [*history[-memory + 1 :], (s, y, torch.where(usable, 1 / curvature, 0.0))]
        v, f, g = new_v, new_f, new_g
    return Minimum(best, distance, done)


def _direction(g: Float[Tensor, "q p"], history: list[tuple[Tensor, Tensor, Tensor]]) -> Float[Tensor, "q p"]:
    """-H g by the two loops; a pair with rho = 0 changes nothing."""
    d, alphas = -g, []
    for s, y, rho in reversed(history):
        alphas.append(rho * (s * d).sum(1))
        d = d - alphas[-1][:, None] * y
    if history:
        s, y, rho = history[-1]
        scale = torch.where(rho > 0, (s * y).sum(1) / (y * y).sum(1).clamp_min(torch.finfo(g.dtype).tiny), 1.0)
        d = d * scale[:, None]
    for (s, y, rho), alpha in zip(history, reversed(alphas), strict=True):
        d = d + (alpha - rho * (y * d).sum(1))[:, None] * s
    return d


def _search(
    objective: Objective, left: Tensor, v: Tensor, f: Tensor, g: Tensor, step: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve each problem's step until its value falls enough; one that never falls stays where it is."""
    size = torch.ones_like(f)
    slack = 4 * torch.finfo(f.dtype).eps * f.abs()  # values differ by rounding alone near a minimum
    new_v = v + step
    new_f, new_g = objective(new_v, left)
    for _ in range(_HALVINGS):
        wrong = ~(new_f <= f + _ARMIJO * size * slope + slack)
        if not wrong.any():
            break
        size = torch.where(wrong, size / 2, size)
        new_v = v + size[:, None] * step
        new_f, new_g = objective(new_v, left)
    moved = new_f <= f + _ARMIJO * size * slope + slack
    stay = ~moved[:, None]
    return torch.where(stay, v, new_v), torch.where(moved, new_f, f), torch.where(stay, g, new_g), moved

"""The objectives of `interp.probes.fit_logistic`: q penalised logistic regressions on shared activations.

    f_q = (1 / n_q) sum_{i in mask_q} loss(W x_i + b, y_iq) + ||W||^2 / (2 C n_q)        W: c x d, n_q = |mask_q|

Coordinates: x -> (x - mean) L^-T and W = V L^-1, so that the logits, and with G = L^-1 L^-T (the penalty is
tr(V G V^T)) the values, are the same.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.errors import InputError


def prepared(
    x: Float[Tensor, "n d"],
    y: Shaped[Tensor, "n q"],
    mask: Bool[Tensor, "n q"] | None,
    classes: int | None,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n q c"], Bool[Tensor, "n q"]]:
    """Activations in `dtype`, labels as 0 and 1 for each class (one column for binary ones), and the whole mask."""
    if len(x) != len(y) or not y.numel() or (mask is not None and mask.shape != y.shape):
        shapes = f"{tuple(x.shape)}, {tuple(y.shape)} and {None if mask is None else tuple(mask.shape)}"
        raise InputError(f"activations, labels and mask have shapes {shapes}; expected n d, n q (some rows), n q")
    if not x.isfinite().all():
        raise InputError("activations hold values that are not finite; leave out those rows")
    whole = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
    if not whole.any(0).all():
        raise InputError(
            f"output {int((~whole.any(0)).nonzero()[0, 0])} has no row at all under its mask; leave it out"
        )
    x = x.detach().to(dtype)
    if classes is None:
        if y.dtype != torch.bool:
            raise InputError(f"labels are {y.dtype}; expected booleans, or integers with `classes`")
        return x, y.to(dtype)[:, :, None], whole
    inside = torch.where(whole, y, 0)
    if y.dtype == torch.bool or classes < 3 or not (0 <= int(inside.min()) and int(inside.max()) < classes):
        raise InputError(
            f"labels are {y.dtype} from {inside.min().item()} to {inside.max().item()} with classes={classes}; "
            f"expected integers from 0 to classes - 1 where the mask is set, and 3 classes or more (booleans for 2)"
        )
    return x, torch.nn.functional.one_hot(inside.long(), classes).to(dtype), whole


class Problems:
    """All outputs' objectives in preconditioned coordinates: variables `[q, c (d + 1)]`, the intercepts last."""

    def __init__(
        self, x: Float[Tensor, "n d"], hot: Float[Tensor, "n q c"], mask: Bool[Tensor, "n q"], C: float
    ) -> None:
        self.q, self.c, self.d = hot.shape[1], hot.shape[2], x.shape[1]
        self.counts = mask.sum(0).to(x.dtype)
        self.mean = x.mean(0)
        centred = (x - self.mean).double()
        bound = centred.T @ centred / (4 * len(x))
        bound.diagonal().add_(1 / (C * len(x)))
        lower = torch.linalg.cholesky(bound)
        self.lower = lower.to(x.dtype)
        white = torch.linalg.solve_triangular(lower, centred.T, upper=False).T
        self.x = torch.cat([white.to(x.dtype), torch.ones_like(x[:, :1])], dim=1)
        inverse = torch.linalg.solve_triangular(
            lower, torch.eye(self.d, dtype=lower.dtype, device=x.device), upper=False
        )
        self.inverse, self.penalty = inverse.to(x.dtype), (inverse @ inverse.T).to(x.dtype) / C
        self.hot, self.mask = hot, mask.to(x.dtype)
        # A class without rows has no finite intercept: it is left out, and with it an output that has one class.
        seen = torch.einsum("nqc,nq->qc", hot, self.mask)
        self.absent = (seen == 0) if self.c > 1 else torch.zeros_like(seen, dtype=torch.bool)
        ones = seen[:, 0] == self.counts if self.c == 1 else (~self.absent).sum(1) == 1
        self.constant = ones | (seen[:, 0] == 0) if self.c == 1 else ones
        self.level = torch.where(seen > 0, torch.inf, -torch.inf) if self.c == 1 else torch.zeros_like(seen)
        self._held: tuple[Tensor, Tensor, Tensor] | None = None

    def start(self) -> Float[Tensor, "q p"]:
        """Weights of 0."""
        return self.x.new_zeros(self.q, self.c * (self.d + 1))

    def _of(self, left: Int[Tensor, " k"]) -> tuple[Tensor, Tensor]:
        """Labels and masks of the problems that are left."""
        if self._held is None or not torch.equal(self._held[0], left):
            whole = len(left) == self.q
            self._held = (left, self.hot, self.mask) if whole else (left, self.hot[:, left], self.mask[:, left])
        return self._held[1], self._held[2]

    def __call__(self, v: Float[Tensor, "k p"], left: Int[Tensor, " k"]) -> tuple[Tensor, Tensor]:
        """Values `[k]` and gradients `[k p]`."""
        hot, mask = self._of(left)
        k, n = len(left), len(self.x)
        parameters = v.reshape(k * self.c, self.d + 1)
        z = (self.x @ parameters.T).reshape(n, k, self.c)
        if self.c == 1:
            sign = 1 - 2 * hot
            z = z * sign
            loss, residual = torch.nn.functional.softplus(z)[:, :, 0], z.sigmoid() * sign
        else:
            z = z.masked_fill(self.absent[left], -torch.inf)
            loss = z.logsumexp(2) - torch.where(hot > 0, z, 0.0).sum(2)
            residual = z.softmax(2) - hot
        residual = residual * mask[:, :, None]
        weights = parameters[:, : self.d].reshape(k, self.c, self.d)
        pull = weights @ self.penalty
        value = (loss * mask).sum(0) + (pull * weights).sum((1, 2)) / 2
        gradient = (residual.reshape(n, -1).T @ self.x).reshape(k, self.c, self.d + 1)
        gradient[:, :, : self.d] += pull
        active = (~self.constant[left]).to(v.dtype) / self.counts[left]
        return value * active, gradient.reshape(k, -1) * active[:, None]

    def distance(self, gradient: Float[Tensor, "k p"], left: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Largest entry of the gradient with respect to W and b themselves."""
        g = gradient.reshape(len(left), self.c, self.d + 1)
        own = g[:, :, : self.d] @ self.lower.T + g[:, :, self.d :] * self.mean
        return torch.cat([own, g[:, :, self.d :]], dim=2).abs().amax((1, 2))

    def original(self, v: Float[Tensor, "q p"]) -> tuple[Float[Tensor, "q c d"], Float[Tensor, "q c"]]:
        """W and b of the activations as they came."""
        v = v.reshape(self.q, self.c, self.d + 1)
        weight = v[:, :, : self.d] @ self.inverse
        bias = v[:, :, self.d] - weight @ self.mean
        bias = torch.where(self.constant[:, None], self.level, bias)
        return weight, bias.masked_fill(self.absent, -torch.inf)

"""Operations with inputs, and what makes an outcome right: the cases that `gpu.py` checks.

Rule of tolerance, for the values and each gradient, with the plain expression in the same precision and in float64:

    max|ours - truth| <= 2 max|plain - truth| + 8 eps max(1, max|truth|)

Which entries an encoder selects may differ between precisions. So its selection is checked first (no entry left out
ranks above one taken, beyond what the product's own error explains), and values and gradients are then compared with
those of plain autograd *on the entries it took*.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import midlens_kernels as kernels
import torch
from midlens_kernels.bilinear_spectrum.reference import bilinear_spectrum_reference
from midlens_kernels.topk_decode.reference import topk_decode_reference
from torch import Tensor

CALLS: dict[str, Callable[..., Any]] = {
    "topk_encode": kernels.topk_encode,
    "topk_decode": kernels.topk_decode,
    "threshold_select": kernels.threshold_select,
    "bilinear_spectrum": kernels.bilinear_spectrum,
}
"""What is checked; a test plants faults here."""


class Judged(NamedTuple):
    """The largest error as a share of what is allowed, and where; `problem` if it is too large, or worse."""

    share: float
    where: str
    problem: str | None


class Case(Protocol):
    """One operation on given inputs."""

    op: str

    def outcome(self, backend: str) -> dict[str, Tensor]: ...

    def judge(self, found: Mapping[str, Tensor]) -> Judged: ...


def compared(ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Judged:
    """By the rule of tolerance; all that `truth` names."""
    worst = Judged(0.0, "", None)
    for name, exact in truth.items():
        mine, low = ours[name], plain[name]
        if mine.dtype != low.dtype or mine.shape != exact.shape:
            odd = f"{name} is {mine.dtype} {tuple(mine.shape)}, not {low.dtype} {tuple(exact.shape)}"
            return Judged(float("inf"), name, odd)
        if not exact.numel():
            continue
        error, allowed = ((t.double() - exact).abs().max().item() for t in (mine, low))
        limit = 2 * allowed + 8 * torch.finfo(low.dtype).eps * max(1.0, exact.abs().max().item())
        share = error / limit if error == error else float("inf")  # NaN differs from itself
        if share > worst.share:
            problem = f"{name} is off by {error:.3g}, allowed {limit:.3g}" if share > 1 else None
            worst = Judged(share, name, problem)
    return worst


@dataclass
class Encode:
    """topk_encode, or threshold_select of n k entries: x, W_enc, b_enc to the entries taken, and back."""

    op: str
    n: int
    k: int
    f: int
    d: int
    number: torch.dtype
    device: torch.device
    compute: torch.dtype | None = None
    weighted: bool = False
    bias: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        made = torch.Generator(self.device).manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=made, device=self.device, dtype=torch.float32)

        self.leaves = [(random(self.n, self.d) / self.d**0.5), random(self.f, self.d), random(self.f) / 8 + self.bias]
        self.leaves = [leaf.to(self.number).requires_grad_() for leaf in self.leaves]
        self.weight = random(self.f).abs().add(0.1).to(self.number) if self.weighted else None
        self.kept = None
        if self.weighted and self.ragged:
            self.kept = (random(self.n) > -0.6).to(self.number)
        self.by_feature, self.by_token = random(self.f).to(self.number), random(self.n).to(self.number)

    @property
    def ragged(self) -> bool:
        return self.op == "threshold_select"

    def outcome(self, backend: str) -> dict[str, Tensor]:
        """Values, entries, gradients."""
        x, encoder, b = self.leaves
        tokens = torch.arange(self.n, device=self.device)
        with kernels.use_backend(backend):
            if self.ragged:
                options = {"weight": self.weight, "kept": self.kept, "compute": self.compute}
                acts, idx, offsets = CALLS[self.op](x, encoder.T, b, self.n * self.k, **options)
                rows = torch.repeat_interleave(tokens, offsets.diff(), output_size=len(idx))
            else:
                acts, idx = CALLS[self.op](x, encoder.T, b, self.k, weight=self.weight, compute=self.compute)
                rows = tokens[:, None].expand_as(idx)
            g = self.by_feature[idx.clamp(0, self.f - 1)] * self.by_token[rows]
            gradients = torch.autograd.grad(acts, self.leaves, g)
        found = {"acts": acts.detach().flatten(), "idx": idx.flatten().long(), "rows": rows.flatten(), "g": g.flatten()}
        return found | dict(zip(("d x", "d W_enc", "d b_enc"), gradients, strict=True))

    def judge(self, found: Mapping[str, Tensor]) -> Judged:
        rows, idx, acts = found["rows"], found["idx"], found["acts"]
        if len(idx) != self.n * self.k:
            return Judged(float("inf"), "entries", f"{len(idx)} entries instead of {self.n * self.k}")
        if len(idx) and not bool(((idx >= 0) & (idx < self.f)).all()):
            return Judged(float("inf"), "entries", "features out of range")
        places = rows * self.f + idx
        if bool((places.sort().values.diff() == 0).any()):
            return Judged(float("inf"), "entries", "an entry was taken twice")
        with torch.no_grad():
            exact, low = self._dense(torch.float64), self._dense(self.compute or self.number).to(self.number)
            if problem := self._wrongly_left(exact, low, places):
                return Judged(float("inf"), "entries", problem)
            values = [(pre.flatten()[places] * self._counts(rows)).relu() for pre in (low, exact)]
            del exact, low
        gate = (acts > 0) & (self._counts(rows) > 0)
        plain, truth = ({"acts": v, **self._gradients(v.dtype, found, gate)} for v in values)
        return compared(found, plain, truth)

    def _dense(self, precision: torch.dtype) -> Tensor:
        x, encoder, b = (leaf.detach().to(precision) for leaf in self.leaves)
        return x @ encoder.T + b

    def _counts(self, rows: Tensor) -> Tensor:
        return torch.ones_like(rows) if self.kept is None else (self.kept > 0).long()[rows]

    def _wrongly_left(self, exact: Tensor, low: Tensor, places: Tensor) -> str | None:
        """What ranks too low to have been taken, by more than twice the product's error on either side."""
        if not len(places) or len(places) == exact.numel():
            return None
        weight = 1.0 if self.weight is None else self.weight.double()
        scores, plain = exact * weight, low.double() * weight
        slack = 4 * (plain - scores).abs().max()
        if self.kept is not None:
            scores[self.kept == 0] = -torch.inf
        scores = scores if not self.ragged else scores.view(1, -1)
        taken = torch.zeros_like(scores, dtype=torch.bool).view(-1).index_fill_(0, places, True).view_as(scores)
        least = scores.masked_fill(~taken, torch.inf).amin(1)
        best = scores.masked_fill(taken, -torch.inf).amax(1)
        over = (best - least - slack).nan_to_num(nan=0.0).max().item()  # both at minus infinity: nothing counts there
        return f"an entry left out ranks {over:.3g} above one taken, beyond the product's error" if over > 0 else None

    def _gradients(self, precision: torch.dtype, found: Mapping[str, Tensor], gate: Tensor) -> dict[str, Tensor]:
        """Plain autograd of the taken entries; ReLU's gate is that of `found`, whose values are checked."""
        x, encoder, b = (leaf.detach().to(precision).requires_grad_() for leaf in self.leaves)
        taken = (x @ encoder.T + b).flatten()[found["rows"] * self.f + found["idx"]]
        gradients = torch.autograd.grad(taken, (x, encoder, b), found["g"].to(precision) * gate)
        return dict(zip(("d x", "d W_enc", "d b_enc"), gradients, strict=True))


@dataclass
class Decode:
    """topk_decode of ragged codes (k entries a token on average), or with exactly k each: y and both gradients."""

    n: int
    k: int
    f: int
    d: int
    number: torch.dtype
    device: torch.device
    ragged: bool = False
    seed: int = 0
    op: str = "topk_decode"

    def __post_init__(self) -> None:
        made = torch.Generator().manual_seed(self.seed)
        counts = torch.full((self.n,), self.k)
        if self.ragged:
            counts = torch.randint(0, 2 * self.k + 1, (self.n,), generator=made)
            counts[::3] = 0
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(self.device)
        m = int(counts.sum())
        # a few features own most entries, as they do in practice, and indices repeat
        self.idx = (self.f * torch.rand(m, generator=made) ** 3).long().clamp(max=self.f - 1).to(self.device)
        acts = torch.randn(m, generator=made) * (torch.rand(m, generator=made) > 0.2)
        placed = torch.Generator(self.device).manual_seed(self.seed)
        W, g = (torch.randn(r, self.d, generator=placed, device=self.device) for r in (self.f, self.n))
        self.leaves = [t.to(self.device, self.number).requires_grad_() for t in (acts, W)]
        self.g = g.to(self.number)

    def outcome(self, backend: str) -> dict[str, Tensor]:
        """y and the gradients."""
        acts, W = self.leaves
        with kernels.use_backend(backend):
            if self.ragged:
                y = CALLS[self.op](acts, self.idx, W, offsets=self.offsets)
            else:
                y = CALLS[self.op](acts.view(self.n, self.k), self.idx.view(self.n, self.k), W)
            return self._named(y, (acts, W), self.g)

    def judge(self, found: Mapping[str, Tensor]) -> Judged:
        return compared(found, *(self._plainly(precision) for precision in (self.number, torch.float64)))

    def _plainly(self, precision: torch.dtype) -> dict[str, Tensor]:
        acts, W = (leaf.detach().to(precision).requires_grad_() for leaf in self.leaves)
        y = topk_decode_reference(acts, self.idx, self.offsets, W)
        return self._named(y, (acts, W), self.g.to(precision))

    @staticmethod
    def _named(y: Tensor, leaves: tuple[Tensor, Tensor], g: Tensor) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(y, leaves, g)
        return {"y": y.detach(), "d acts": gradients[0], "d W_dec": gradients[1]}


@dataclass
class Spectrum:
    """bilinear_spectrum of h matrices: both spectra, float64 whatever the factors are, and both gradients.

    The plain expression computes in float64 too, so its own error says nothing about what a Gram matrix of narrower
    factors may lose: the spectra are allowed 8 eps of float32. Gradients go by the rule.
    """

    h: int
    d: int
    e: int
    number: torch.dtype
    device: torch.device
    seed: int = 0
    op: str = "bilinear_spectrum"

    def __post_init__(self) -> None:
        made = torch.Generator(self.device).manual_seed(self.seed)
        sizes = (2, self.h, self.d, self.e)
        factors = torch.randn(*sizes, generator=made, device=self.device) / self.d**0.5
        self.leaves = [factor.to(self.number).requires_grad_() for factor in factors]
        p = min(self.d, 2 * self.e)
        self.g = [torch.randn(self.h, c, generator=made, device=self.device).double() for c in (p // 2, p)]

    def outcome(self, backend: str) -> dict[str, Tensor]:
        """Spectra and gradients."""
        with kernels.use_backend(backend):
            return self._named(CALLS[self.op](*self.leaves), self.leaves)

    def judge(self, found: Mapping[str, Tensor]) -> Judged:
        plain, truth = (self._plainly(precision) for precision in (self.number, torch.float64))
        gradients = compared(found, plain, {name: t for name, t in truth.items() if name.startswith("d ")})
        worst = gradients
        for name in ("routing", "filtering"):
            error = (found[name] - truth[name]).abs().max().item()
            limit = 8 * torch.finfo(torch.float32).eps * max(1.0, truth[name].abs().max().item())
            share = error / limit if error == error else float("inf")
            if share > worst.share:
                worst = Judged(share, name, f"{name} is off by {error:.3g}, allowed {limit:.3g}" if share > 1 else None)
        return worst

    def _plainly(self, precision: torch.dtype) -> dict[str, Tensor]:
        leaves = [leaf.detach().to(precision).requires_grad_() for leaf in self.leaves]
        return self._named(bilinear_spectrum_reference(*leaves), leaves)

    def _named(self, spectrum: Any, leaves: list[Tensor]) -> dict[str, Tensor]:
        g_left, g_right = torch.autograd.grad((spectrum.routing, spectrum.filtering), leaves, self.g)
        values = {"routing": spectrum.routing.detach(), "filtering": spectrum.filtering.detach()}
        return values | {"d left": g_left, "d right": g_right}

"""Who computes what: each operation's kernel beside the plain expression, its compiled form, and plain PyTorch.

plain        the definition in plain PyTorch, with autograd's own backward pass
gathered     decoding by rows gathered into an n k d temporary, the other plain way
compiled     torch.compile of the first (and of the second)
torch        the production path in plain PyTorch, no dense temporaries
triton       the kernel
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import midlens_kernels as kernels
import torch
from midlens_kernels.bilinear_spectrum.reference import bilinear_spectrum_reference
from midlens_kernels.threshold_select.reference import threshold_select_reference
from midlens_kernels.topk_encode.reference import topk_encode_reference
from torch import Tensor

Call = Callable[..., Sequence[Tensor]]


@dataclass
class Contest:
    """One operation at one shape: leaves that gradients reach, and who computes it, as functions of them."""

    op: str
    shape: str
    dtype: str
    leaves: list[Tensor]
    entrants: dict[str, Call]

    def forward(self, name: str) -> None:
        """Values alone."""
        with torch.no_grad():
            self.entrants[name](*self.leaves)

    def both(self, name: str, gradients: Sequence[Tensor]) -> None:
        """Values and gradients of all leaves."""
        torch.autograd.grad(self.entrants[name](*self.leaves), self.leaves, gradients)

    def gradients(self, name: str) -> list[Tensor]:
        """What to send back through the outputs of an entrant."""
        with torch.no_grad():
            return [torch.ones_like(t) for t in self.entrants[name](*self.leaves)]


def by(backend: str, call: Call) -> Call:
    """`call` on a backend."""

    def on(*leaves: Tensor) -> Sequence[Tensor]:
        with kernels.use_backend(backend):
            return call(*leaves)

    return on


def compiled(call: Call, *, small: bool) -> Call:
    """torch.compile of `call`; on a machine without a GPU only traced, since no C++ compiler is asked for."""
    torch.compiler.reset()  # else the eighth shape of one function is silently not compiled any more
    return torch.compile(call, backend="eager" if small else "inductor", dynamic=False)


@dataclass(frozen=True)
class Sizes:
    """A named shape of the SAE operations: n tokens, k active, f features, d wide."""

    n: int
    k: int
    f: int
    d: int

    def __str__(self) -> str:
        return f"n {self.n} k {self.k} f {self.f} d {self.d}"


NAMED = (Sizes(4096, 64, 131_072, 4096), Sizes(4096, 64, 16_384, 2304), Sizes(16_384, 64, 131_072, 4096))
TINY = (Sizes(6, 3, 32, 16),)
FACTORS = ((2, 1024, 128), (32, 4096, 128))  # h, d, e: the last without the plain expression, which would take minutes
OURS = ("torch", "triton")
DENSE_UP_TO = 2**22  # numbers of a d x d matrix times heads


class Entry(NamedTuple):
    """A contest that can be made: what its rows are called, who takes part, and how to make it."""

    of: dict[str, str]
    names: tuple[str, ...]
    make: Callable[[], Contest]


def contests(device: torch.device, *, small: bool) -> Iterator[Entry]:
    """All of them, the most telling shapes and dtypes first."""
    for sizes in TINY if small else NAMED:
        for op in ("topk_decode", "topk_encode", "threshold_select"):
            for number, compute in _dtypes(op):
                label = _name(number) + (f", product in {_name(compute)}" if compute else "")
                of = {"name": op, "shape": str(sizes), "dtype": label}
                if op == "topk_decode":
                    plain = ("plain", "gathered", "plain, compiled", "gathered, compiled")
                    yield Entry(of, (*plain, *OURS), partial(decode, of, sizes, number, device, small=small))
                else:
                    make = partial(encode, of, sizes, number, compute, device, small=small)
                    yield Entry(of, ("plain", "compiled", *OURS), make)
    for h, d, e in ((2, 9, 3),) if small else FACTORS:
        of = {"name": "bilinear_spectrum", "shape": f"h {h} d {d} e {e}", "dtype": "float32"}
        names = ("plain", "compiled", *OURS) if h * d * d <= DENSE_UP_TO else OURS
        yield Entry(of, names, partial(spectrum, of, (h, d, e), device, small=small))


def _dtypes(op: str) -> list[tuple[torch.dtype, torch.dtype | None]]:
    """float32 weights, with the product in bfloat16 or not: how SAEs are trained; then bfloat16 throughout."""
    low = [] if op == "topk_decode" else [(torch.float32, torch.bfloat16)]
    return [*low, (torch.float32, None), (torch.bfloat16, None)]


def encode(
    of: dict[str, str],
    sizes: Sizes,
    number: torch.dtype,
    compute: torch.dtype | None,
    device: torch.device,
    *,
    small: bool,
) -> Contest:
    """topk_encode and threshold_select, the encoder stored as features by width."""
    leaves = [torch.randn(*shape, device=device) for shape in ((sizes.n, sizes.d), (sizes.f, sizes.d), (sizes.f,))]
    leaves[1] /= sizes.d**0.5
    leaves = [leaf.to(number).requires_grad_() for leaf in leaves]
    ragged = of["name"] == "threshold_select"
    count = sizes.k * (sizes.n if ragged else 1)
    plain_op, op = (
        (threshold_select_reference, kernels.threshold_select)
        if ragged
        else (topk_encode_reference, kernels.topk_encode)
    )

    def plain(x: Tensor, encoder: Tensor, b: Tensor) -> Sequence[Tensor]:
        return plain_op(x, encoder.T, b, count, compute=compute)[:1]

    def ours(x: Tensor, encoder: Tensor, b: Tensor) -> Sequence[Tensor]:
        return op(x, encoder.T, b, count, compute=compute)[:1]

    entrants = {"plain": plain, "compiled": compiled(plain, small=small)}
    entrants |= {backend: by(backend, ours) for backend in OURS}
    return Contest(of["name"], of["shape"], of["dtype"], leaves, entrants)


def decode(of: dict[str, str], sizes: Sizes, number: torch.dtype, device: torch.device, *, small: bool) -> Contest:
    """topk_decode of codes whose r-th most frequent feature is drawn as 1 / r, as trained features fire."""
    ranks = -torch.arange(1, sizes.f + 1, device=device).log()
    drawn = []
    for rows in torch.arange(sizes.n, device=device).split(max(1, 2**26 // sizes.f)):
        noise = torch.empty(len(rows), sizes.f, device=device).exponential_().log()
        drawn.append((ranks - noise).topk(sizes.k).indices)  # Gumbel's trick: without repetition
    idx = torch.randperm(sizes.f, device=device)[torch.cat(drawn)]
    acts = torch.rand(sizes.n, sizes.k, device=device).to(number).requires_grad_()
    W = torch.randn(sizes.f, sizes.d, device=device).to(number).requires_grad_()

    def plain(acts: Tensor, W: Tensor) -> Sequence[Tensor]:
        return (acts.new_zeros(len(acts), len(W)).scatter(1, idx, acts) @ W,)

    def gathered(acts: Tensor, W: Tensor) -> Sequence[Tensor]:
        return (torch.einsum("nk,nkd->nd", acts, W[idx]),)

    entrants = {"plain": plain, "gathered": gathered}
    entrants |= {f"{name}, compiled": compiled(call, small=small) for name, call in list(entrants.items())}
    for backend in OURS:
        entrants[backend] = by(backend, lambda acts, W: (kernels.topk_decode(acts, idx, W),))
    return Contest(of["name"], of["shape"], of["dtype"], [acts, W], entrants)


def spectrum(of: dict[str, str], sizes: tuple[int, int, int], device: torch.device, *, small: bool) -> Contest:
    """bilinear_spectrum of the factors of h heads."""
    h, d, e = sizes
    leaves = [(torch.randn(h, d, e, device=device) / d**0.5).requires_grad_() for _ in range(2)]
    plain = bilinear_spectrum_reference
    entrants: dict[str, Call] = {"plain": plain, "compiled": compiled(plain, small=small)}
    entrants |= {backend: by(backend, kernels.bilinear_spectrum) for backend in OURS}
    return Contest(of["name"], of["shape"], of["dtype"], leaves, entrants)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

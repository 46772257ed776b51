"""S-D attention: an interaction that is skew minus diagonal by construction, beside its alternatives.

    token space     A = c (S - D),  S_ij = (q_i.k_j - q_j.k_i) / (2 sqrt e),  D_ii = softplus(w.x_i + b),  out = A V
    unit            the same with queries and keys of one length, c = 1 / sqrt n_ctx, D of x / |x|: linear growth in |x|
    kernel space    M = (W_Q W_K^T - W_K W_Q^T) / 2 - diag(softplus delta),  out = softmax(x_i^T M x_j / sqrt e) V
    standard        out = softmax(q_i.k_j / sqrt e) V
    elu             out_i = sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j),  phi = 1 + ELU

In the manner of arXiv 2605.18826, which trains "S-D attention" without layer norm: both forms of it are **inferred, not
verified**, from a reader's words "stability-constrained skew-minus-diagonal". elu: arXiv 2006.16236.

Stability: x^T (S - D) x = -x^T D x <= 0, so field of values and spectrum lie in Re <= 0; M likewise. That is a fact
about the whole operator (`sd_operator`). A decoder keeps j <= i only; the eigenvalues of that triangle are its diagonal
-D_ii, whatever S is: the bound is then trivial, and says nothing of growth along the way.

Sums in token space are not normalised and grow with the position; c = 1 / n_ctx, one constant for all i and j, leaves
the operator exactly skew minus diagonal (a factor 1 / i would not). Without norms 1 / sqrt(n_ctx) is too large: 8
layers at the start below overflowed within 20 steps, as sums over alike positions are coherent and a layer is cubic
in its input. As S_ij is an inner product of [q_i, -k_i] / 2 and [k_j, q_j], the causal form is linear attention with
states sum k_j v_j^T and sum q_j v_j^T: O(n), in chunks.

Rotary positions turn all of q and k. The skew part stays skew (both sides of a pair turn alike); W_Q W_K^T and M are
then the kernels at offset 0.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import InputError

AttentionKind = Literal["standard", "sd_token", "sd_unit", "sd_kernel", "elu"]
CHUNK = 64
"""Positions that are multiplied out."""
DELTA = -4.0
"""Where softplus(delta) of the kernel-space form starts: 0.018, as the sum over the width would swamp q.k else."""


def skew_factors(
    q: Float[Tensor, "*b n e"], k: Float[Tensor, "*b n e"]
) -> tuple[Float[Tensor, "*b n two_e"], Float[Tensor, "*b n two_e"]]:
    """f and g with f_i.g_j = (q_i.k_j - q_j.k_i) / 2."""
    return torch.cat([q, -k], -1) / 2, torch.cat([k, q], -1)


def sd_operator(
    q: Float[Tensor, "*b n e"], k: Float[Tensor, "*b n e"], delta: Float[Tensor, "*b n"]
) -> Float[Tensor, "*b n n"]:
    """S - D for all pairs of positions, without mask and without the constant c."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores - scores.mT) / 2 - torch.diag_embed(F.softplus(delta))


def sd_kernel(w_q: Float[Tensor, "*h d e"], w_k: Float[Tensor, "*h d e"], delta: Float[Tensor, "*h d"]) -> Tensor:
    """M of the kernel-space form, `*h d d`, without the factor 1 / sqrt e."""
    product = w_q @ w_k.mT
    return (product - product.mT) / 2 - torch.diag_embed(F.softplus(delta))


def causal_linear(
    f: Float[Tensor, "*b n r"], g: Float[Tensor, "*b n r"], v: Float[Tensor, "*b n e"], *, chunk: int = CHUNK
) -> Float[Tensor, "*b n e"]:
    """sum_{j <= i} (f_i.g_j) v_j in O(n): within a chunk multiplied out, before it through the state sum g_j v_j^T."""
    n = f.shape[-2]
    if n <= chunk:
        return (f @ g.mT).tril() @ v
    f, g, v = (F.pad(x, (0, 0, 0, -n % chunk)).unflatten(-2, (-1, chunk)) for x in (f, g, v))
    states = (g.mT @ v).to(torch.promote_types(v.dtype, torch.float32)).cumsum(-3)
    before = F.pad(states[..., :-1, :, :], (0, 0, 0, 0, 1, 0)).to(v.dtype)
    out = (f @ g.mT).tril() @ v + f @ before
    return out.flatten(-3, -2)[..., :n, :]


def rotary_table(n: int, e: int) -> Float[Tensor, "2 n e"]:
    """cos and sin in float64, pairs half a head apart, base 10,000 (arXiv 2104.09864)."""
    angles = torch.outer(torch.arange(n).double(), 10_000.0 ** -(torch.arange(0, e, 2).double() / e))
    return torch.stack([angles.cos(), angles.sin()]).repeat(1, 1, 2)


def rotated(x: Float[Tensor, "*b n e"], table: Float[Tensor, "2 n e"]) -> Float[Tensor, "*b n e"]:
    """x turned by its positions."""
    first, second = x.chunk(2, -1)
    return x * table[0] + torch.cat([-second, first], -1) * table[1]


def product(x: Tensor, weight: Tensor, compute: torch.dtype) -> Tensor:
    """x weight^T in the compute dtype; weights stay in their own."""
    return F.linear(x.to(compute), weight.to(compute))


class Attention(nn.Module):
    """Heads of width `head_width` on a residual stream of width `width`; `operator` and `forward` say what they do."""

    def __init__(self, width: int, heads: int, head_width: int, n_ctx: int, *, rotary: bool = True) -> None:
        super().__init__()
        self.heads, self.head_width, self.scale = heads, head_width, 1 / n_ctx
        self.w_qkv = nn.Parameter(torch.empty(3, heads * head_width, width))
        self.w_o = nn.Parameter(torch.empty(width, heads * head_width))
        table = rotary_table(n_ctx, head_width) if rotary else None
        self.register_buffer("table", table, persistent=False)

    def start(self, generator: torch.Generator, out: float) -> None:
        """Draw weights of variance 1 / inputs; what goes back to the stream is scaled by `out`."""
        inputs = self.w_qkv.shape[-1]
        nn.init.normal_(self.w_qkv, std=inputs**-0.5, generator=generator)
        nn.init.normal_(self.w_o, std=out * self.w_o.shape[-1] ** -0.5, generator=generator)

    def qkv(
        self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32, *, turned: bool = True
    ) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t e"], Float[Tensor, "b h t e"]]:
        """Queries and keys (turned by position, unless told otherwise) and values."""
        both = product(x, self.w_qkv.flatten(0, 1), compute)
        q, k, v = both.unflatten(-1, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)
        if turned and isinstance(self.table, Tensor):
            table = self.table[:, : x.shape[-2]].to(torch.promote_types(compute, torch.float32))
            q, k = rotated(q, table).to(compute), rotated(k, table).to(compute)
        return q, k, v

    def kernel(self) -> tuple[Float[Tensor, "h d e"], Float[Tensor, "h d e"]]:
        """W_Q / sqrt e and W_K."""
        w_q, w_k, _ = self.w_qkv.detach().unflatten(1, (self.heads, self.head_width)).mT
        return w_q / math.sqrt(self.head_width), w_k

    def out(self, heads: Float[Tensor, "b h t e"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b t d"]:
        """What the heads add to the stream."""
        return product(heads.transpose(1, 2).flatten(-2), self.w_o, compute)

    def scores(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t s"]:
        """Scores of all pairs of positions, before mask and nonlinearity."""
        q, k, _ = self.qkv(x, x.dtype)
        return q @ k.mT / math.sqrt(self.head_width)

    def operator(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t s"]:
        """The causal matrix by which values are mixed."""
        return masked_softmax(self.scores(x))

    def applied(self, operator: Float[Tensor, "#b h t s"], x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """What the layer adds when values are mixed by this operator."""
        return self.out(operator @ self.qkv(x, x.dtype)[2], x.dtype)

    def forward(self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b t d"]:
        """What the layer adds to the stream."""
        return self.out(F.scaled_dot_product_attention(*self.qkv(x, compute), is_causal=True), compute)


class TokenSD(Attention):
    """Skew minus diagonal over positions; no softmax."""

    def __init__(self, width: int, heads: int, head_width: int, n_ctx: int, *, rotary: bool = True) -> None:
        super().__init__(width, heads, head_width, n_ctx, rotary=rotary)
        self.w_delta = nn.Parameter(torch.empty(heads, width))
        self.b_delta = nn.Parameter(torch.zeros(heads))

    def start(self, generator: torch.Generator, out: float) -> None:
        """As all attention; D starts near softplus(0)."""
        super().start(generator, out)
        nn.init.normal_(self.w_delta, std=0.1 * self.w_delta.shape[-1] ** -0.5, generator=generator)

    def delta(self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b h t"]:
        """What softplus makes the diagonal of."""
        return (product(x, self.w_delta, compute) + self.b_delta).transpose(-1, -2)

    def scores(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t s"]:
        """c (S - D) of all pairs of positions."""
        q, k, _ = self.qkv(x, x.dtype)
        return self.scale * sd_operator(q, k, self.delta(x, x.dtype))

    def operator(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t s"]:
        """Its causal triangle."""
        return self.scores(x).tril()

    def forward(self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b t d"]:
        """What the layer adds to the stream, in O(n)."""
        q, k, v = self.qkv(x, compute)
        f, g = skew_factors(q, k)
        f = f * (self.scale / math.sqrt(self.head_width))
        diagonal = (self.scale * F.softplus(self.delta(x, compute))).to(compute)
        return self.out(causal_linear(f, g, v) - diagonal[..., None] * v, compute)


class UnitSD(TokenSD):
    """Token-space S-D whose operator does not grow with the stream: q and k have one learned length per head.

    Entries of S are at most exp(log_gain), so that a layer scales with its input as softmax attention does. Still
    exactly skew minus diagonal, and still no norm on the stream; an addition of ours.
    """

    def __init__(self, width: int, heads: int, head_width: int, n_ctx: int, *, rotary: bool = True) -> None:
        super().__init__(width, heads, head_width, n_ctx, rotary=rotary)
        self.scale = 1 / math.sqrt(n_ctx)
        self.log_gain = nn.Parameter(torch.zeros(heads))

    def qkv(
        self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32, *, turned: bool = True
    ) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t e"], Float[Tensor, "b h t e"]]:
        """Queries and keys of lengths exp(log_gain) sqrt e and 1, and values."""
        q, k, v = super().qkv(x, compute, turned=turned)
        exact = torch.promote_types(compute, torch.float32)
        q, k = F.normalize(q.to(exact), dim=-1), F.normalize(k.to(exact), dim=-1)
        gain = self.log_gain.exp()[:, None, None] * math.sqrt(self.head_width)
        return (q * gain).to(compute), k.to(compute), v

    def delta(self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b h t"]:
        """What softplus makes the diagonal of, whatever the length of x."""
        return super().delta(F.normalize(x, dim=-1) * math.sqrt(x.shape[-1]), compute)


class KernelSD(Attention):
    """Softmax over scores of a kernel that is skew minus diagonal over the residual stream."""

    def __init__(self, width: int, heads: int, head_width: int, n_ctx: int, *, rotary: bool = True) -> None:
        super().__init__(width, heads, head_width, n_ctx, rotary=rotary)
        self.delta = nn.Parameter(torch.full((heads, width), DELTA))

    def scores(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t s"]:
        """x_i^T M x_j / sqrt e; with rotary positions the skew part is that of the turned q and k."""
        f, g = self._factors(x, x.dtype)
        return f @ g.mT / math.sqrt(self.head_width)

    def forward(self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b t d"]:
        """What the layer adds to the stream."""
        f, g = self._factors(x, compute)
        v = self.qkv(x, compute)[2]
        mixed = F.scaled_dot_product_attention(f, g, v, is_causal=True, scale=1 / math.sqrt(self.head_width))
        return self.out(mixed, compute)

    def _factors(self, x: Tensor, compute: torch.dtype) -> tuple[Tensor, Tensor]:
        q, k, _ = self.qkv(x, compute)
        f, g = skew_factors(q, k)
        stream = x.to(compute)[:, None].expand(-1, self.heads, -1, -1)
        return torch.cat([f, -stream * F.softplus(self.delta).to(compute)[:, None]], -1), torch.cat([g, stream], -1)


class EluAttention(Attention):
    """Linear attention with the feature map 1 + ELU, normalised."""

    def operator(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t s"]:
        """Products of features, divided by the sum of their row."""
        q, k, _ = self.qkv(x, x.dtype)
        weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
        return weights / weights.sum(-1, keepdim=True)

    def forward(self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b t d"]:
        """What the layer adds to the stream, in O(n)."""
        q, k, v = self.qkv(x, compute)
        both = causal_linear(F.elu(q) + 1, F.elu(k) + 1, F.pad(v, (0, 1), value=1.0))
        return self.out(both[..., :-1] / both[..., -1:], compute)


def masked_softmax(scores: Float[Tensor, "*b t s"]) -> Float[Tensor, "*b t s"]:
    """Softmax over the positions that came before."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


ATTENTION: dict[str, type[Attention]] = {
    "standard": Attention,
    "sd_token": TokenSD,
    "sd_unit": UnitSD,
    "sd_kernel": KernelSD,
    "elu": EluAttention,
}


def attention_class(kind: str) -> type[Attention]:
    """The module of a kind of attention."""
    if kind not in ATTENTION:
        raise InputError(f"attention must be one of {', '.join(ATTENTION)}, got {kind!r}")
    return ATTENTION[kind]

"""Attention scores and patterns, recomputed from queries and keys: the model itself can keep its fused attention.

    scores[b, h, t, s] = cap · tanh(scale · <q[b, t, h], k[b, s, g(h)]> / cap),   -inf where s > t or t - s >= window
    pattern = softmax over s, in float32

with `g(h) = h // (n_heads / n_kv_heads)`. Without a cap: `scale · <q, k>`. q and k come rotated; the rotation is the
one that pairs dimension i with i + r/2 of the first r dimensions (Llama's; GPT-NeoX rotates only a part, r < d_head).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(
    x: Float[Tensor, "b t heads e"], cos: Float[Tensor, "#b t r"], sin: Float[Tensor, "#b t r"]
) -> Float[Tensor, "b t heads e"]:
    """RoPE: x cos + rotate_half(x) sin on the first r dimensions of each head."""
    r = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    x, rest = x[..., :r], x[..., r:]
    first, second = x[..., : r // 2], x[..., r // 2 :]
    x = x * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((x, rest), dim=-1) if rest.shape[-1] else x


def attention_scores(
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    *,
    scale: float,
    cap: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "b h t s"]:
    """Scores of all heads: scaled, soft-capped, masked causally and to the window; queries are the last positions."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) * scale
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    queries = torch.arange(k.shape[1] - q.shape[1], k.shape[1], device=q.device)
    back = queries[:, None] - torch.arange(k.shape[1], device=q.device)[None]
    hidden = back < 0 if window is None else (back < 0) | (back >= window)
    return scores.masked_fill(hidden, float("-inf"))


def attention_pattern(scores: Float[Tensor, "b h t s"]) -> Float[Tensor, "b h t s"]:
    """Softmax over the source positions, computed in float32."""
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)

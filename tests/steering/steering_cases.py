"""Strong edits and ragged prompts that the tests of applying a steering share."""

import torch
from torch import Tensor

from interp.model import HookedModel
from interp.steering.edits import AffineEdit, ClampEdit, DiagonalEdit, GatedEdit
from interp.steering.scopes import Scope
from interp.steering.steering import Steering

LENGTHS = [9, 3, 14, 1]
FOLDED_SITES = ("attn_out.1", "mlp_out.1", "attn_out.2", "mlp_out.0")


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def affine(seed: int, r: int = 2, d: int = 48, dtype: torch.dtype = torch.float32) -> AffineEdit:
    """An affine edit that moves activations by about their own size."""
    u, v = draw(seed, d, r, dtype=dtype), draw(seed + 1, d, r, dtype=dtype) / d**0.5
    return AffineEdit(u, v, draw(seed + 2, r, dtype=dtype), draw(seed + 3, d, dtype=dtype), 0.9)


def every_kind(d: int = 48) -> dict[str, AffineEdit | DiagonalEdit | ClampEdit | GatedEdit]:
    """One edit of each kind."""
    bounds = torch.tensor([-0.2, -0.1]), torch.tensor([0.1, torch.inf])
    clamp = ClampEdit(draw(11, 2, d), draw(12, d, 2) / 4, draw(13, 2), *bounds)
    return {
        "affine": affine(1, d=d),
        "diagonal": DiagonalEdit(draw(5, d), draw(6, d), 0.8),
        "clamp": clamp,
        "gated": GatedEdit(affine(7, d=d), draw(8, d, 2), draw(9, 2)),
    }


def steering_for(model: HookedModel, scope: Scope = "all") -> Steering:
    """Edits of the stream and inside a block."""
    return Steering.of(model, {"resid_post.0": affine(1), "attn_out.1": affine(21)}, scope=scope)


def foldable(model: HookedModel, dtype: torch.dtype = torch.float32) -> Steering:
    """Edits of module outputs: ranks 2, 1, 3 and 0, at several strengths."""
    kinds = [(2, 1.0), (1, -0.5), (3, 0.8), (0, 1.0)]
    edits = [affine(10 * i, r=r, dtype=dtype).at(beta) for i, (r, beta) in enumerate(kinds)]
    return Steering.of(model, dict(zip(FOLDED_SITES, edits, strict=True)))


def ragged(model: HookedModel, seed: int = 0) -> list[Tensor]:
    """Prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, model.cfg.d_vocab, (n,), generator=generator) for n in LENGTHS]


def padded(rows: list[Tensor], side: str, value: int = 0) -> tuple[Tensor, Tensor]:
    """One batch of them, and their lengths."""
    width = max(map(len, rows))
    out = torch.full((len(rows), width), value, dtype=rows[0].dtype)
    for row, into in zip(rows, out, strict=True):
        into[: len(row)] = row
    if side == "left":
        out = torch.stack([into.roll(width - len(row)) for row, into in zip(rows, out, strict=True)])
    return out, torch.tensor([len(row) for row in rows])

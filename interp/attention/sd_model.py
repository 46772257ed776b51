"""The small language model in which kinds of attention are compared: bytes in, bytes out.

    x = E[token];   x += attention(norm(x));   x += W_2 gelu(W_1 norm(x));   logits = U norm(x)

Vocabulary: 256 bytes and BOS (257 in, 256 out, untied); rotary or learned positions; no biases but the norms';
`norm=False` leaves out every norm, the last one too. Start: embedding N(0, 1), matrices N(0, 1 / inputs), what is
written back to the stream scaled by 1 / sqrt(2 layers) (so that the stream's variance about doubles over the depth,
whatever the depth), U scaled by 0.1. Without norms nothing else keeps the stream in bounds at the start.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.attention.sd_attention import Attention, AttentionKind, attention_class, product
from interp.errors import InputError
from interp.typed import built

BYTES = 256
BOS = 256
SIZES: dict[str, tuple[int, int, int]] = {
    "1m": (8, 96, 3),
    "7m": (9, 256, 4),
    "19m": (11, 384, 6),
    "42m": (13, 512, 8),
    "85m": (12, 768, 12),
    "125m": (18, 768, 12),
    "355m": (28, 1024, 16),
}
"""Layers, width, heads. Names count the parameters that these have with bytes as vocabulary, to 8 %."""


@dataclass(frozen=True, kw_only=True)
class TwinConfig:
    """Shape of a model; all that its function depends on apart from the weights."""

    kinds: tuple[AttentionKind, ...]
    """Attention of each layer: standard, sd_token, sd_unit, sd_kernel, elu."""
    width: int
    """Of the residual stream."""
    heads: int
    """Per layer."""
    head_widths: tuple[int, ...]
    """Width of the heads of each layer; q, k, v and the output matrix all have it."""
    n_ctx: int = 256
    """Positions at most."""
    norm: bool = True
    """Layer norm before attention, before the MLP and before the output."""
    rotary: bool = True
    """Rotary positions; otherwise learned ones, added to the embedding."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            attention_class(kind)
        if not self.kinds or len(self.head_widths) != len(self.kinds):
            raise InputError(
                f"head_widths must give one width per layer, got {len(self.head_widths)} for {len(self.kinds)} layers"
            )
        if bad := [e for e in self.head_widths if e < 2 or e % 2]:
            raise InputError(f"a head's width must be even and at least 2 (rotary pairs, planes), got {bad[0]}")
        if min(self.width, self.heads, self.n_ctx) < 1:
            raise InputError("width, heads and n_ctx must be at least 1")

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.kinds)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "TwinConfig":
        """From a file; refuses what is no shape of a twin."""
        return built(cls, values, "the shape of a twin", defaults=True)


def sized(size: str) -> tuple[int, int, int]:
    """Layers, width and heads of a size."""
    if size not in SIZES:
        raise InputError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    return SIZES[size]


class Block(nn.Module):
    """One layer: attention and MLP, each added to the stream."""

    def __init__(self, config: TwinConfig, layer: int) -> None:
        super().__init__()
        d = config.width
        kind = attention_class(config.kinds[layer])
        self.attention: Attention = kind(d, config.heads, config.head_widths[layer], config.n_ctx, rotary=config.rotary)
        self.w_in = nn.Parameter(torch.empty(4 * d, d))
        self.w_out = nn.Parameter(torch.empty(d, 4 * d))
        self.norm_1: nn.Module = nn.LayerNorm(d) if config.norm else nn.Identity()
        self.norm_2: nn.Module = nn.LayerNorm(d) if config.norm else nn.Identity()

    def start(self, generator: torch.Generator, out: float) -> None:
        """Draw the weights."""
        self.attention.start(generator, out)
        nn.init.normal_(self.w_in, std=self.w_in.shape[1] ** -0.5, generator=generator)
        nn.init.normal_(self.w_out, std=out * self.w_out.shape[1] ** -0.5, generator=generator)

    def mlp(self, x: Float[Tensor, "b t d"], compute: torch.dtype) -> Float[Tensor, "b t d"]:
        """What the MLP adds to the stream."""
        return product(F.gelu(product(self.norm_2(x), self.w_in, compute)), self.w_out, compute)

    def forward(self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b t d"]:
        """The stream after this layer; it keeps its own dtype."""
        x = x + self.attention(self.norm_1(x), compute)
        return x + self.mlp(x, compute)


class Twin(nn.Module):
    """A byte-level language model whose layers may differ in attention."""

    def __init__(self, config: TwinConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(BYTES + 1, config.width))
        self.positions = None if config.rotary else nn.Parameter(torch.empty(config.n_ctx, config.width))
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.layers)])
        self.norm: nn.Module = nn.LayerNorm(config.width) if config.norm else nn.Identity()
        self.unembedding = nn.Parameter(torch.empty(BYTES, config.width))
        self._start(torch.Generator().manual_seed(seed))

    def _start(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.embedding, generator=generator)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=0.5, generator=generator)
        for block in self.layers():
            block.start(generator, (2 * self.config.layers) ** -0.5)
        nn.init.normal_(self.unembedding, std=0.1 * self.config.width**-0.5, generator=generator)

    def layers(self) -> list[Block]:
        """The blocks."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def embed(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The stream before the first layer."""
        if tokens.shape[-1] > self.config.n_ctx:
            raise InputError(f"the model takes {self.config.n_ctx} positions at most, got {tokens.shape[-1]}")
        x = F.embedding(tokens, self.embedding)
        return x if self.positions is None else x + self.positions[: tokens.shape[-1]]

    def unembed(self, x: Float[Tensor, "b t d"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b t v"]:
        """Logits of the next byte."""
        return product(self.norm(x), self.unembedding, compute).to(x.dtype)

    def forward(self, tokens: Int[Tensor, "b t"], compute: torch.dtype = torch.float32) -> Float[Tensor, "b t v"]:
        """Logits of the next byte at each position; matrix products in `compute`, the stream as the embedding is."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, compute)
        return self.unembed(x, compute)

    def attention_inputs(self, tokens: Int[Tensor, "b t"]) -> list[Float[Tensor, "b t d"]]:
        """What the attention of each layer reads."""
        x, found = self.embed(tokens), []
        for block in self.layers():
            found.append(block.norm_1(x))
            x = block.forward(x, x.dtype)  # not through a compiled block: it would compile for this shape and dtype
        return found

    def sizes(self) -> dict[str, int]:
        """Parameters: all, and those of attention."""
        attention = sum(p.numel() for block in self.layers() for p in block.attention.parameters())
        return {"parameters": sum(p.numel() for p in self.parameters()), "attention_parameters": attention}

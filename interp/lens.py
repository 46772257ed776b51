"""Reading directions and residual streams through the unembedding.

    logits of a direction u:   W u,   W = centre_v( W_U diag(g) C )        W: v × d
    logit lens of a stream x:  softcap( W_U norm(x) + b_U )                 the model's own last steps, exactly

A direction has no scale of its own, so the norm's division is left out and its gain `g` is folded into the
unembedding. `C` subtracts the mean over the width for a LayerNorm and is the identity for an RMSNorm; the LayerNorm's
bias moves every direction's logits alike and is left out. `centre_v` subtracts the mean over the vocabulary, which no
probability depends on: without it a direction that raises all logits alike would look as if it promoted tokens. A
soft-cap is monotone: it changes no ranking and is not applied to directions. How the components of one stream share in
its logits, the norm's division included, is `direct_logit_attribution`, from `interp.attribution`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.attribution import Attribution as Attribution
from interp.attribution import Component as Component
from interp.attribution import direct_logit_attribution as direct_logit_attribution
from interp.errors import InputError
from interp.model import HookedModel

_CHUNK = 2**25  # logits at once: 128 MB of float32


class TopTokens(NamedTuple):
    """The `k` tokens a direction raises most and those it lowers most, strongest first."""

    promoted: Int[Tensor, "n k"]
    promoted_logits: Float[Tensor, "n k"]
    suppressed: Int[Tensor, "n k"]
    suppressed_logits: Float[Tensor, "n k"]


def fold_norm(W_U: Float[Tensor, "v d"], gain: Float[Tensor, " d"] | None, *, centred: bool) -> Float[Tensor, "v d"]:
    """`centre_v(W_U diag(gain) C)` in float32; `centred`: the norm subtracts the mean over the width (LayerNorm)."""
    W = W_U.detach().to(torch.float32, copy=True)  # changed in place from here on: it can be gigabytes
    if gain is not None:
        W *= gain.detach().float()
    if centred:
        W -= W.mean(dim=1, keepdim=True)
    W -= W.mean(dim=0)
    return W


@dataclass(frozen=True)
class Lens:
    """The unembedding with the final norm folded in, centred over the vocabulary."""

    W: Float[Tensor, "v d"]
    """float32, on the model's device."""

    @classmethod
    def of(cls, model: HookedModel) -> "Lens":
        """The lens of a model: its own unembedding, final norm gain and kind of norm."""
        norm, head = _last_steps(model)
        gain = getattr(norm, "weight", None)
        kind = model.anatomy.spec.norm
        if gain is not None and kind == "rms_offset":
            gain = 1.0 + gain.detach().float()
        return cls(fold_norm(head.weight, gain, centred=kind == "layer"))

    def logits(self, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """What each direction, added to the last residual stream, does to the logits before the norm's division."""
        if directions.shape[-1] != self.W.shape[1]:
            raise InputError(
                f"directions of width {directions.shape[-1]}, but the unembedding reads width {self.W.shape[1]}: "
                "they belong to another model, or to a site that is not in the residual stream"
            )
        return directions.to(self.W) @ self.W.T

    def top(self, directions: Float[Tensor, "n d"], k: int = 10) -> TopTokens:
        """The `k` most promoted and most suppressed tokens of each direction, a chunk of directions at a time."""
        n, v = len(directions), len(self.W)
        if not 1 <= k <= v:
            raise InputError(f"k={k}: expected 1 to {v}, the size of the vocabulary")
        size = max(1, _CHUNK // v)
        parts = [_extremes(self.logits(directions[i : i + size]), k) for i in range(0, max(n, 1), size)]
        return TopTokens(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def read(
        self, directions: Float[Tensor, "n d"], tokenizer: Any, *, k: int = 10
    ) -> list[tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]]:
        """Per direction: its promoted and its suppressed tokens, each as `((token, logit), ...)`, strongest first."""
        top = self.top(directions, k)
        both = torch.cat([top.promoted, top.suppressed], dim=1).tolist()
        values = torch.cat([top.promoted_logits, top.suppressed_logits], dim=1).tolist()
        names = token_strings(tokenizer, {token for row in both for token in row})
        pairs = [[(names[i], x) for i, x in zip(*row, strict=True)] for row in zip(both, values, strict=True)]
        return [(tuple(row[:k]), tuple(row[k:])) for row in pairs]


@torch.no_grad()
def logit_lens(model: HookedModel, resid: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
    """The logits of `resid` as the last residual stream: the model's own final norm, unembedding and soft-cap."""
    norm, head = _last_steps(model)
    logits = head(norm(resid.to(head.weight.device, head.weight.dtype)))
    cap = model.anatomy.spec.final_cap
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _last_steps(model: HookedModel) -> tuple[nn.Module, nn.Linear]:
    """The final norm and the unembedding; refuses a model loaded without them."""
    head = model.anatomy.unembed(model.hf)
    if head is None:
        raise InputError(
            f"{model.name} was loaded without its unembedding, which the lens reads: load it without `upto`"
        )
    return model.anatomy.ln_final(model.hf), head  # pyright: ignore[reportReturnType]


def _extremes(logits: Tensor, k: int) -> TopTokens:
    high, low = logits.topk(k, dim=1), logits.topk(k, dim=1, largest=False)
    return TopTokens(high.indices, high.values, low.indices, low.values)


def token_strings(tokenizer: Any, ids: "set[int] | list[int]") -> dict[int, str]:
    """What each token id stands for, leading blank kept; bytes that are no text by themselves as `<0xE2><0x80>`."""
    ordered = sorted(set(ids))
    raw = tokenizer.convert_ids_to_tokens(ordered)
    return {i: _token_string(tokenizer, i, piece) for i, piece in zip(ordered, raw, strict=True)}


def _token_string(tokenizer: Any, token: int, piece: str | None) -> str:
    if piece is None:
        return f"<{token}>"  # rows of a padded vocabulary that no token uses
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if "\N{REPLACEMENT CHARACTER}" in text:
        return _bytes_shown(piece)
    # SentencePiece decodes a word-initial token without its blank, since a text does not begin with one.
    return " " + text if piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, which every byte-level tokenizer uses: inverse of its table."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()


def _bytes_shown(piece: str) -> str:
    return "".join(f"<0x{_BYTES[c]:02X}>" for c in piece) if all(c in _BYTES for c in piece) else piece

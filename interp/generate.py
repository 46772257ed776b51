"""Generation with edits: the same tokens with and without a key-value cache, in a batch and one by one.

    next = pick(logits of the last position);   position of the i-th new token = prompt length + i

With the cache, prompts of different lengths stand left-padded behind an attention mask, so that the columns of a row
are neighbours and sliding windows count right; `Where` tells edits the absolute positions, and gives padding a
position at or past `lengths`, as everywhere. Without it every step runs the whole right-padded batch anew, without a
mask: slower, and the check on the first. An edit acts alike in both as long as it goes by `positions` and `prompt`:
`lengths` grows with every step, and only a run without cache sees old positions again.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attention_choice import attention_for
from interp.errors import InputError
from interp.running import Frame, Padding, Where, checkpointing

if TYPE_CHECKING:
    from interp.editing import Edit
    from interp.model import HookedModel
    from interp.sites import Site


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked: the most likely one at temperature 0, else drawn from the tempered distribution.

    `top_k` keeps the k most likely tokens, `top_p` the fewest that hold that much probability. Row i draws from its own
    stream, seeded `seed + i`, so a row's tokens do not depend on its neighbours.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature={self.temperature}: expected 0 (the most likely token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k={self.top_k}: expected 1 or more, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: expected a probability above 0, up to 1")

    def distribution(self, logits: Float[Tensor, "b v"]) -> tuple[Float[Tensor, "b v"], Int[Tensor, "b v"]]:
        """Probabilities from the most to the least likely token, and those tokens; what is cut off has 0."""
        logits, order = (logits.double() / self.temperature).sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            logits[:, self.top_k :] = -torch.inf
        weights = logits.softmax(-1)
        if self.top_p is not None:
            before = weights.cumsum(-1) - weights
            weights = weights.masked_fill(before >= self.top_p, 0)
        return weights / weights.sum(-1, keepdim=True), order

    def picker(self, b: int) -> Callable[[Float[Tensor, "b v"]], Int[Tensor, " b"]]:
        """A function from logits to tokens that holds the rows' random streams."""
        if self.temperature == 0:
            return lambda logits: logits.argmax(-1)
        streams = [torch.Generator().manual_seed(self.seed + row) for row in range(b)]

        def draw(logits: Tensor) -> Tensor:
            weights, order = self.distribution(logits)
            uniform = torch.cat([torch.rand(1, generator=stream, dtype=torch.float64) for stream in streams])
            last = (weights > 0).sum(-1, keepdim=True) - 1  # rounding may leave the sum below a draw close to one
            rank = torch.searchsorted(weights.cumsum(-1), uniform[:, None].to(weights.device), right=True)
            return order.gather(1, torch.minimum(rank, last)).squeeze(1)

        return draw


def generate(
    model: "HookedModel",
    tokens: Int[Tensor, "b t"],
    *,
    lengths: Int[Tensor, " b"] | None = None,
    padding: Padding = "right",
    edits: "Mapping[Site, Edit] | None" = None,
    max_new_tokens: int = 32,
    sampling: Sampling | None = None,
    stop_tokens: Sequence[int] | None = None,
    use_cache: bool = True,
) -> Int[Tensor, "b n"]:
    """The new tokens of each row, up to its first stop token included, then padding.

    `stop_tokens=None` takes the model's own end tokens, `()` none. A model which is not transformers' own, or is in
    training with gradient checkpointing, has no cache that could be used and runs without.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}: expected 1 or more")
    model.require_head("generated tokens")
    prompts, lengths = _right_padded(tokens.to(model.device), lengths, padding)
    n_ctx = model.cfg.n_ctx
    if not model.cfg.rotary and int(lengths.max()) + max_new_tokens > n_ctx:
        raise InputError(
            f"a prompt of {int(lengths.max())} tokens and max_new_tokens={max_new_tokens} exceed the {n_ctx} learned "
            f"positions of {model.name}; shorten one of them"
        )
    stops = end_tokens(model) if stop_tokens is None else list(stop_tokens)
    runner = _Cached if use_cache and _is_transformers(model.hf) and not checkpointing(model.hf) else _Uncached
    changed = model.edited(edits) if edits else nullcontext()
    with torch.no_grad(), changed:
        return _loop(
            runner(model, prompts, lengths), (sampling or Sampling()).picker(len(prompts)), max_new_tokens, stops
        )


def _loop(run: "_Cached | _Uncached", pick: Callable[[Tensor], Tensor], count: int, stops: list[int]) -> Tensor:
    b, device = len(run.lengths), run.lengths.device
    ends = torch.tensor(stops, device=device, dtype=torch.int64)
    filler = _filler(run.model, stops)
    done, new = torch.zeros(b, dtype=torch.bool, device=device), []
    logits = run.start()
    for i in range(count):
        if bool(logits.isnan().any()):
            raise InputError(f"the logits for new token {i} are NaN; an edit may have driven the stream out of range")
        chosen = torch.where(done, filler, pick(logits))
        new.append(chosen)
        done = done | torch.isin(chosen, ends)
        if i + 1 == count or bool(done.all()):
            break
        logits = run.step(chosen)
    return torch.stack(new, 1)


class _Cached:
    """Left-padded prompts once, then one column a step against the key-value cache."""

    def __init__(self, model: "HookedModel", tokens: Tensor, lengths: Tensor) -> None:
        self.model, self.lengths, self.prompt = model, lengths, lengths
        t = tokens.shape[1]
        pad = t - lengths
        self.tokens = Frame(pad).leave(tokens)
        self.cache: Any = None
        self.mask: Tensor | None = None
        if bool((pad > 0).any()):
            self.mask = (torch.arange(t, device=tokens.device) >= pad[:, None]).long()

    def start(self) -> Tensor:
        """Logits behind the prompts."""
        t = self.tokens.shape[1]
        columns = torch.arange(t, device=self.lengths.device) - (t - self.lengths)[:, None]
        positions = torch.where(columns < 0, self.lengths[:, None], columns)
        return self._run(self.tokens, positions, columns.clamp(min=0))

    def step(self, chosen: Tensor) -> Tensor:
        """Logits behind one more token of each row."""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        return self._run(chosen[:, None], positions, positions)

    def _run(self, tokens: Tensor, positions: Tensor, rotary: Tensor) -> Tensor:
        where = Where(positions, self.lengths, self.prompt)
        options = {**self.model.anatomy.options, "use_cache": True, "logits_to_keep": 1}
        with _attention(self.model), self.model.running(where):
            out = self.model.hf(
                tokens, attention_mask=self.mask, position_ids=rotary, past_key_values=self.cache, **options
            )
        self.cache = out.past_key_values
        return out.logits[:, -1]


class _Uncached:
    """Right-padded sequences, all of them anew at every step."""

    def __init__(self, model: "HookedModel", tokens: Tensor, lengths: Tensor) -> None:
        self.model, self.tokens, self.lengths, self.prompt = model, tokens, lengths, lengths

    def start(self) -> Tensor:
        """Logits behind the prompts."""
        positions = torch.arange(self.tokens.shape[1], device=self.lengths.device).expand(self.tokens.shape)
        where = Where(positions, self.lengths, self.prompt)
        with _attention(self.model), self.model.running(where):
            out = self.model.hf(self.tokens, **self.model.anatomy.options)
        logits = out if isinstance(out, Tensor) else out.logits
        return logits[torch.arange(len(logits), device=logits.device), self.lengths.to(logits.device) - 1]

    def step(self, chosen: Tensor) -> Tensor:
        """Logits behind one more token of each row."""
        self.tokens = torch.cat([self.tokens, self.tokens[:, -1:]], dim=1)
        self.tokens = self.tokens.scatter(1, self.lengths[:, None], chosen[:, None])
        self.lengths = self.lengths + 1
        return self.start()


def _attention(model: "HookedModel") -> Any:
    """The model's own attention, refused where it would drop a soft-cap; asking for CPU keeps FlexAttention out."""
    return attention_for(model.cfg, model.hf, torch.device("cpu"))


def _right_padded(tokens: Tensor, lengths: Tensor | None, padding: Padding) -> tuple[Tensor, Tensor]:
    """Prompts right-padded to the longest of them, and their lengths."""
    b, t = tokens.shape
    frame = Frame.of(tokens, lengths, padding)
    lengths = torch.full((b,), t, device=tokens.device) if lengths is None else lengths.to(tokens.device).long()
    return frame.enter(tokens)[:, : int(lengths.max())], lengths


def end_tokens(model: "HookedModel") -> list[int]:
    """The tokens behind which the model's own settings end a text; none where it names none."""
    settings = getattr(model.hf, "generation_config", None) or getattr(model.hf, "config", None)
    found: Any = getattr(settings, "eos_token_id", None)
    if found is None:
        found = getattr(model.tokenizer, "eos_token_id", None)
    return [] if found is None else [int(token) for token in (found if isinstance(found, Sequence) else [found])]


def _filler(model: "HookedModel", stops: list[int]) -> int:
    """What stands behind a row's stop token: the padding token, or the stop token again."""
    for source in (model.tokenizer, getattr(model.hf, "config", None)):
        if isinstance(pad := getattr(source, "pad_token_id", None), int):
            return pad
    return stops[0] if stops else 0


def _is_transformers(hf: Any) -> bool:
    from transformers import PreTrainedModel

    return isinstance(hf, PreTrainedModel)

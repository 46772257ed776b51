"""What an edit does to a model's predictions: cross-entropy, KL divergence and perplexity, clean against edited.

    CE(run)  = mean over counted positions of  - log p_run(next token)              (nats per token)
    KL(run)  = mean over counted positions of  Σ_v p_clean(v) (log p_clean(v) - log p_run(v))
    perplexity(run) = exp CE(run)

Counted are the positions whose next token is a real one: the last token of each sequence and all padding are left out.
Logits `b t v` are turned into log-probabilities in float32, some rows at a time, so that nothing of their size is
allocated beside them; sums over tokens are float64.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batching import Batch
from interp.errors import InputError
from interp.model import Edit, HookedModel
from interp.progress import bar
from interp.sites import Site

Edits = Mapping[Site, Edit]
_CHUNK = 2**24  # logits per chunk: 64 MB of float32 for each of the two or three temporaries


def counted_positions(lengths: Int[Tensor, " b"], t: int) -> Bool[Tensor, "b t"]:
    """Positions that predict a real next token: all but the last of each sequence, and no padding (right-padded)."""
    return torch.arange(t, device=lengths.device) < lengths[:, None] - 1


def cross_entropy(
    logits: Float[Tensor, "b t v"], tokens: Int[Tensor, "b t"], lengths: Int[Tensor, " b"]
) -> Float[Tensor, " n"]:
    """`- log p(next token)` at every counted position, in the order of the batch flattened."""
    counted = counted_positions(lengths, tokens.shape[1])
    return _rows(logits, None, tokens, counted)[0]


def kl_divergence(
    clean: Float[Tensor, "b t v"], edited: Float[Tensor, "b t v"], lengths: Int[Tensor, " b"]
) -> Float[Tensor, " n"]:
    """`KL(clean || edited)` at every counted position, in the order of the batch flattened."""
    b, t = clean.shape[:2]
    counted = counted_positions(lengths, t)
    return _rows(edited, clean, torch.zeros(b, t, dtype=torch.int64, device=clean.device), counted)[1]


def _rows(
    logits: Tensor, clean: Tensor | None, tokens: Tensor, counted: Tensor
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Cross-entropy of each counted row, and its divergence from `clean` (zeros without one)."""
    b, t = torch.nonzero(counted, as_tuple=True)
    targets = tokens[b, (t + 1)]
    ce = torch.empty(len(b), dtype=torch.float32, device=logits.device)
    kl = torch.zeros_like(ce)
    size = max(1, _CHUNK // logits.shape[-1])
    for start in range(0, len(b), size):
        part = slice(start, start + size)
        log_q = torch.log_softmax(logits[b[part], t[part]].float(), dim=-1)
        ce[part] = -log_q.gather(1, targets[part, None])[:, 0]
        if clean is None:
            continue
        log_p = torch.log_softmax(clean[b[part], t[part]].float(), dim=-1)
        p = log_p.exp()
        # A token the clean run rules out (log p = -inf) contributes nothing, whatever the other run says of it.
        kl[part] = log_p.sub_(log_q).mul_(p).masked_fill_(p == 0, 0).sum(-1)
    return ce, kl


@dataclass(frozen=True)
class Effects:
    """Mean effect of each named edit over the same counted tokens, in nats per token."""

    n_tokens: int
    """Predicted tokens counted."""
    n_sequences: int
    ce_clean: float
    ce: dict[str, float]
    """Cross-entropy of each edited run."""
    kl: dict[str, float]
    """Divergence of each edited run's predictions from the clean run's."""

    def delta_ce(self, name: str) -> float:
        """How much the edit costs in cross-entropy; negative where it helps."""
        return self.ce[name] - self.ce_clean

    def perplexity(self, name: str | None = None) -> float:
        """`exp` of the mean cross-entropy of an edited run, or of the clean run."""
        return math.exp(self.ce_clean if name is None else self.ce[name])


class EffectsFitter:
    """Sums over batches; `result()` is the frozen `Effects`."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.n_tokens = 0
        self.n_sequences = 0
        self._ce_clean = 0.0
        self._ce = dict.fromkeys(self.names, 0.0)
        self._kl = dict.fromkeys(self.names, 0.0)

    def update(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        clean: Float[Tensor, "b t v"],
        runs: Mapping[str, Callable[[], Float[Tensor, "b t v"]]],
    ) -> "EffectsFitter":
        """Add one batch: its clean logits, and for every name a function that returns the edited run's logits.

        Functions, so that only one edited run's logits exist at a time.
        """
        counted = counted_positions(lengths, tokens.shape[1])
        self.n_tokens += int(counted.sum())
        self.n_sequences += len(lengths)
        self._ce_clean += _total(_rows(clean, None, tokens, counted)[0], "the clean run")
        for name in self.names:
            ce, kl = _rows(runs[name](), clean, tokens, counted)
            self._ce[name] += _total(ce, f"the run {name!r}")
            self._kl[name] += _total(kl, f"the run {name!r}")
        return self

    def result(self) -> Effects:
        """Means over everything added so far."""
        if self.n_tokens == 0:
            raise InputError(
                "no token was predicted: expected at least one sequence of two tokens or more. "
                "Give more documents, or raise max_tokens"
            )
        n = self.n_tokens
        return Effects(
            n_tokens=n,
            n_sequences=self.n_sequences,
            ce_clean=self._ce_clean / n,
            ce={name: total / n for name, total in self._ce.items()},
            kl={name: total / n for name, total in self._kl.items()},
        )


def _total(rows: Tensor, run: str) -> float:
    total = float(rows.double().sum())
    if math.isnan(total):
        raise InputError(
            f"{run} gave NaN logits: expected finite ones. The edit returned NaN, or the model's dtype overflowed "
            "(try float32 or bfloat16)"
        )
    return total


@torch.no_grad()
def compare(
    model: HookedModel,
    batches: Sequence[Batch],
    edits: Mapping[str, Edits] | Callable[[Batch], Mapping[str, Edits]],
    *,
    max_tokens: int | None = None,
    show: bool | None = False,
) -> Effects:
    """Run every batch clean and once under each named set of edits; mean CE and KL over all counted tokens.

    `edits` may be a function of the batch, for edits that depend on its tokens; the names must not change.
    Ends after the batch in which `max_tokens` predicted tokens are reached.
    """
    fitter: EffectsFitter | None = None
    total = sum(int((batch.lengths - 1).clamp(min=0).sum()) for batch in batches)
    with bar(total if max_tokens is None else min(total, max_tokens), "effects", show=show) as progress:
        for batch in batches:
            named = edits(batch) if callable(edits) else edits
            fitter = fitter or EffectsFitter(named)
            tokens, lengths = batch.tokens.to(model.device), batch.lengths.to(model.device)
            runs = {name: _runner(model, tokens, lengths, edit) for name, edit in named.items()}
            before = fitter.n_tokens
            fitter.update(tokens, lengths, model(tokens, lengths=lengths), runs)
            progress.update(fitter.n_tokens - before)
            if max_tokens is not None and fitter.n_tokens >= max_tokens:
                break
    return (fitter or EffectsFitter(())).result()


def _runner(model: HookedModel, tokens: Tensor, lengths: Tensor, edits: Edits) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with model.edited(edits):
            return model(tokens, lengths=lengths)

    return run

"""What a steering does to text that has nothing to do with it: KL and change of cross-entropy, document by document.

    kl_i = Σ over counted positions of document i of KL(clean || steered);   ce_i likewise;   n_i positions

The first `prompt` tokens of a document stand for a prompt and the rest for generated text, so that every scope means
what it means in generation; counted are the positions that predict the rest. Sums by document allow intervals over
documents. Generic edits are compared by `interp.effects.compare`; this is the same by document.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.corpus import Document, id_hash
from interp.effects import cross_entropy, kl_divergence
from interp.errors import InputError
from interp.model import Edit, HookedModel, Where
from interp.sites import Site

Hooks = Mapping[Site, Edit]


@dataclass(frozen=True)
class NeutralText:
    """Documents cut to one length, without padding, and how many of their tokens count as prompt."""

    rows: tuple[tuple[int, ...], ...]
    prompt: int = 8

    def __post_init__(self) -> None:
        if not self.rows or any(len(row) < self.prompt + 1 for row in self.rows) or self.prompt < 1:
            raise InputError(
                f"neutral text: expected documents of more than {self.prompt} tokens (the prompt), got lengths "
                f"{sorted({len(row) for row in self.rows})}"
            )

    @classmethod
    def of(
        cls, model: HookedModel, documents: Sequence[Document], *, n: int, length: int = 64, prompt: int = 8
    ) -> "NeutralText":
        """The beginnings of `n` documents that are long enough, in the order of a hash of their ids."""
        rows: list[tuple[int, ...]] = []
        for document in sorted(documents, key=lambda one: id_hash("neutral:" + one.id)):
            ids = model.to_tokens([document.text[: 16 * length]]).tokens[0, :length].tolist() if document.text else []
            if len(ids) == length:
                rows.append(tuple(ids))
            if len(rows) == n:
                return cls(tuple(rows), prompt)
        raise InputError(
            f"neutral text: {len(rows)} of {len(documents)} documents have {length} tokens, {n} were asked for; give "
            "longer documents, or ask for fewer or shorter ones"
        )

    @property
    def counted(self) -> int:
        """Predicted tokens of each document that count."""
        return len(self.rows[0]) - self.prompt


@dataclass(frozen=True)
class NeutralEffect:
    """Sums over the counted positions of each document, in nats."""

    kl: tuple[float, ...]
    ce: tuple[float, ...]
    ce_clean: tuple[float, ...]
    n: tuple[int, ...]

    def mean(self, what: Float[np.ndarray, " i"] | Sequence[float]) -> float:
        """Per counted token."""
        return float(np.sum(what) / np.sum(self.n))

    @property
    def delta_ce(self) -> Float[np.ndarray, " i"]:
        """Change of the summed cross-entropy of each document."""
        return np.array(self.ce) - np.array(self.ce_clean)


@torch.no_grad()
def neutral_effect(
    model: HookedModel, text: NeutralText, hooks: Mapping[float, Hooks], *, batch_size: int = 16
) -> dict[float, NeutralEffect]:
    """The effect of each of `hooks` (by β); the clean run is made once for all of them."""
    parts: dict[float, list[Float[np.ndarray, "3 b"]]] = {beta: [] for beta in hooks}
    for tokens in _batches(model, text, batch_size):
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        clean = model(tokens, lengths=lengths)
        for beta, edits in hooks.items():
            with model.edited({site: as_generated(edit, text.prompt) for site, edit in edits.items()}):
                steered = model(tokens, lengths=lengths)
            parts[beta].append(_sums(clean, steered, tokens, lengths, text.prompt))
    return {beta: _effect(np.concatenate(some, 1), text) for beta, some in parts.items()}


@torch.no_grad()
def prompted_effect(model: HookedModel, text: NeutralText, instruction: str, *, batch_size: int = 16) -> NeutralEffect:
    """The effect of putting an instruction in front of every document."""
    ahead = model.to_tokens([f"{instruction}\n\n"]).tokens[0]
    parts = []
    for tokens in _batches(model, text, batch_size):
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        longer = torch.cat([ahead.expand(len(tokens), -1), tokens], dim=1)
        steered = model(longer)[:, len(ahead) :]
        parts.append(_sums(model(tokens, lengths=lengths), steered, tokens, lengths, text.prompt))
    return _effect(np.concatenate(parts, 1), text)


def _batches(model: HookedModel, text: NeutralText, size: int) -> list[Tensor]:
    rows = torch.tensor(text.rows, device=model.device)
    return list(rows.split(size))


def as_generated(edit: Edit, prompt: int) -> Edit:
    """The edit as it is in generation behind a prompt of that many tokens."""

    def run(x: Tensor, where: Where) -> Tensor:
        return edit(x, where._replace(prompt=torch.full_like(where.prompt, prompt)))

    return run


def _sums(clean: Tensor, steered: Tensor, tokens: Tensor, lengths: Tensor, prompt: int) -> Float[np.ndarray, "3 b"]:
    """KL, cross-entropy, clean cross-entropy of each row, over the positions that predict what follows the prompt."""
    cut = slice(prompt - 1, None)
    clean, steered, tokens, lengths = clean[:, cut], steered[:, cut], tokens[:, cut], lengths - prompt + 1
    rows = (
        kl_divergence(clean, steered, lengths),
        cross_entropy(steered, tokens, lengths),
        cross_entropy(clean, tokens, lengths),
    )
    return np.stack([row.double().view(len(tokens), -1).sum(1).cpu().numpy() for row in rows])


def _effect(sums: Float[np.ndarray, "3 i"], text: NeutralText) -> NeutralEffect:
    if not np.isfinite(sums).all():
        raise InputError("the steered model gave NaN on neutral text: β is too large for the model's precision")
    kl, ce, clean = (tuple(row.tolist()) for row in sums)
    return NeutralEffect(kl, ce, clean, (text.counted,) * len(kl))

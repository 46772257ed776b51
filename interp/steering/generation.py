"""Text a model writes under a steering, row by row with its cost: what `evaluate` scores.

    generate_texts(model, prompts, hooks) -> Generated(texts, losses, n_tokens)

Prompt i draws from its own random stream (`seed + i`), so what is written does not depend on the batch size, and
steered and unsteered texts of a prompt share their randomness.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.generate import end_tokens
from interp.model import Edit, HookedModel
from interp.sites import Site
from interp.steering.prompts import Encoded, Prompt, encode
from interp.steering.text_quality import continuation_losses, repetition, zlib_ratio
from interp.typed import built


@dataclass(frozen=True)
class Writing:
    """How texts are generated."""

    max_new_tokens: int = 48
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_p: float | None = None
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise InputError(
                f"max_new_tokens={self.max_new_tokens} and batch_size={self.batch_size}: expected 1 or more of both"
            )

    def facts(self) -> dict[str, Any]:
        """What the texts depend on (they do not depend on the batch size)."""
        return {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}


@dataclass(frozen=True)
class Generated:
    """Texts of one run over a set of prompts, in the order of the prompts."""

    texts: tuple[str, ...]
    losses: tuple[float, ...]
    """Summed loss of each text under the unsteered model, in nats."""
    n_tokens: tuple[int, ...]
    repetition: tuple[float, ...]
    zlib: tuple[float, ...]

    def part(self, rows: slice) -> "Generated":
        """Of some of the prompts."""
        return Generated(**{name: value[rows] for name, value in vars(self).items()})

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {name: list(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: Any) -> "Generated":
        """What `to_json` wrote; refuses anything else."""
        found = built(cls, value, "a record of generated texts")
        if len({len(column) for column in vars(found).values()}) > 1:
            raise InputError("a record of generated texts has as many losses, counts and shares as texts")
        return found


def generate_texts(
    model: HookedModel,
    prompts: Sequence[Prompt],
    hooks: Mapping[Site, Edit] | None = None,
    *,
    writing: Writing | None = None,
    plain: Sequence[Prompt] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Generated:
    """Continue every prompt under `hooks`. `plain` are the prompts behind which the unsteered model judges the texts,
    where these are not the ones continued (an instruction in front is no part of the comparison); `progress` is told of
    every finished batch."""
    writing = writing or Writing()
    found: list[tuple[str, float, int]] = []
    for start in range(0, len(prompts), writing.batch_size):
        part = slice(start, start + writing.batch_size)
        given = encode(model, prompts[part])
        new, counts = _continued(model, given, hooks, writing, start)
        judged = given if plain is None else encode(model, plain[part])
        losses = continuation_losses(model, *judged, new, counts).tolist()
        kept = [row[: int(count)] for row, count in zip(new, counts, strict=True)]
        texts = [str(model.tokenizer.decode(row, skip_special_tokens=True)) for row in kept]
        found += zip(texts, losses, counts.tolist(), strict=True)
        if progress is not None:
            progress(len(texts))
    texts, losses, n_tokens = zip(*found, strict=True)
    return Generated(texts, losses, n_tokens, tuple(map(repetition, texts)), tuple(map(zlib_ratio, texts)))


def _continued(
    model: HookedModel, given: Encoded, hooks: Mapping[Site, Edit] | None, writing: Writing, start: int
) -> tuple[Tensor, Tensor]:
    """New tokens of a batch whose first row is prompt `start`, and how many of each row stand before its end token."""
    new = model.generate(
        given.tokens,
        lengths=given.lengths,
        edits=hooks or None,
        max_new_tokens=writing.max_new_tokens,
        temperature=writing.temperature,
        top_p=writing.top_p,
        seed=writing.seed + start,
    )
    ended = torch.isin(new, torch.tensor(end_tokens(model), device=new.device, dtype=new.dtype))
    before = (ended.cumsum(1) == 0).sum(1)
    return new, before.clamp(min=1)

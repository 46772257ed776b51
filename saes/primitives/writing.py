"""Short texts written from neutral openings, steered or not: batched over ways of writing, and each written once.

    writer = Writer(model, sae, site, folder, Settings(max_new_tokens=40))
    writer.write([Request(way, prompt, seed), ...]) -> [Written(text, fluency, repetition), ...]

One batch holds texts of many ways: each row has its own edit and its own random stream, drawn from (seed, prompt), so
that steered and unsteered texts of a prompt and seed share their randomness. Every text is kept under what it depends
on: way, rows of the dictionary, prompt, seed, settings, site, weights of the model. Batches are cut from the requests
that are not kept yet, and a batch is kept as a whole: a run that is killed and called again makes the very batches that
were missing. Which texts share a batch changes rounding, and so, rarely, a text.

    fluency = mean log p(token | opening, tokens before)      under the unsteered model, behind the plain opening
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.generate import Sampling, end_tokens, generate
from interp.model import HookedModel
from interp.running import Where
from interp.sealing import digest
from interp.sites import Site
from interp.steering.fingerprint import fingerprint
from interp.steering.prompts import Prompt, asked_for, encode
from interp.steering.scopes import Edit
from interp.steering.text_quality import continuation_losses, repetition
from saes.belongs import check_belongs
from saes.primitives.controls import Way
from saes.primitives.kept import Kept
from saes.sae import SAE


@dataclass(frozen=True)
class Settings:
    """How texts are drawn."""

    max_new_tokens: int = 40
    temperature: float = 0.8
    top_p: float | None = 0.95
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise InputError(
                f"max_new_tokens={self.max_new_tokens} and batch_size={self.batch_size}: expected 1 or more of both"
            )
        Sampling(self.temperature, top_p=self.top_p)

    def facts(self) -> dict[str, Any]:
        """What texts depend on."""
        return {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_p")}


class Request(NamedTuple):
    """One text to write."""

    way: Way
    prompt: str
    seed: int


@dataclass(frozen=True)
class Written:
    """One text, without its opening."""

    text: str
    fluency: float
    repetition: float


@dataclass(frozen=True)
class _Streams(Sampling):
    """Rows draw each from its own seed."""

    seeds: tuple[int, ...] = ()

    def picker(self, b: int) -> Callable[[Float[Tensor, "b v"]], Any]:
        """One picker a row."""
        assert b == len(self.seeds), (b, len(self.seeds))
        rows = [Sampling(self.temperature, self.top_k, self.top_p, seed).picker(1) for seed in self.seeds]
        return lambda logits: torch.cat([pick(logits[i : i + 1]) for i, pick in enumerate(rows)])


class Writer:
    """Writes with one model and one SAE at one site; `written` counts the texts that were not kept already."""

    def __init__(
        self, model: HookedModel, sae: SAE, site: Site | str, folder: Path | None, settings: Settings | None = None
    ) -> None:
        self.model, self.sae, self.site = model, sae, Site.parse(site)
        self.settings = settings or Settings()
        check_belongs(sae, site=self.site, d=model.cfg.d_model)
        model.require_head("steered texts")
        self.kept = Kept(None if folder is None else folder / "texts.jsonl")
        self.written = 0
        self._common = {
            "model": fingerprint(model), "settings": self.settings.facts(), "site": str(self.site)
        }  # fmt: skip

    def write(self, requests: Sequence[Request]) -> list[Written]:
        """Every text asked for, in order; those that are kept are not written again."""
        keys = [self._key(request) for request in requests]
        missing = {digest(key): (request, key) for request, key in zip(requests, keys, strict=True)
                   if self.kept.get(key) is None}  # fmt: skip
        todo = list(missing.values())
        for start in range(0, len(todo), self.settings.batch_size):
            part = todo[start : start + self.settings.batch_size]
            found = self._batch([request for request, _ in part])
            self.kept.add((key, dataclasses.asdict(one)) for (_, key), one in zip(part, found, strict=True))
            self.written += len(part)
        return [Written(**self.kept.get(key)) for key in keys]

    def missing(self, requests: Sequence[Request]) -> int:
        """How many of them would have to be written."""
        return len({digest(key) for key in map(self._key, requests) if self.kept.get(key) is None})

    def _key(self, request: Request) -> dict[str, Any]:
        way, prompt, seed = request
        return self._common | {"way": way.facts(self.sae), "prompt": prompt, "seed": seed}

    def _batch(self, requests: Sequence[Request]) -> list[Written]:
        model, settings = self.model, self.settings
        plain = [Prompt(prompt, instruction=False) for _, prompt, _ in requests]
        given = [
            prompt if way.instruction is None else asked_for(Prompt(prompt.text), way.instruction)
            for (way, _, _), prompt in zip(requests, plain, strict=True)
        ]
        seeds = tuple(int(digest([prompt, seed])[:12], 16) for _, prompt, seed in requests)
        asked = encode(model, given)
        new = generate(
            model, asked.tokens, lengths=asked.lengths, edits=self._edits([request.way for request in requests]),
            max_new_tokens=settings.max_new_tokens, sampling=_Streams(settings.temperature, None, settings.top_p,
                                                                      seeds=seeds),
        )  # fmt: skip
        ends = torch.tensor(end_tokens(model), device=new.device, dtype=new.dtype)
        counts = (torch.isin(new, ends).cumsum(1) == 0).sum(1).clamp(min=1)
        losses = continuation_losses(model, *encode(model, plain), new, counts)
        texts = [
            str(model.tokenizer.decode(row[: int(n)], skip_special_tokens=True)).strip()
            for row, n in zip(new, counts, strict=True)
        ]
        fluency = (-losses / counts.cpu()).tolist()
        return [Written(text, value, repetition(text)) for text, value in zip(texts, fluency, strict=True)]

    def _edits(self, ways: Sequence[Way]) -> dict[Site, Edit] | None:
        """One edit that treats each row by its way; None where no row is steered."""
        rows: dict[Way, list[int]] = {}
        for row, way in enumerate(ways):
            if way.steering is not None:
                rows.setdefault(way, []).append(row)
        if not rows:
            return None
        edits = [
            (torch.tensor(at, device=self.model.device), way.steering.hooks(self.sae, self.site)[self.site])
            for way, at in rows.items()
            if way.steering is not None
        ]

        def by_row(x: Tensor, where: Where) -> Tensor:
            result = x.clone()
            for at, edit in edits:
                result[at] = edit(x[at], Where(*(part[at] for part in where)))
            return result

        return {self.site: by_row}

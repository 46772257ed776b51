"""The prompts an evaluation generates from: of the source concept, of the target concept, open and unrelated ones.

    prompts_of(read_contrast("horse-motorcycle"), n=24) -> {"source": (...), "target": (...), "unrelated": (...)}

Only held-out texts are used. An instruction is put to a chat model as the user's turn and to any other model as it
stands. A set of plain texts gives openings: the first half of the words of each, to be continued; its `open` texts are
openings already. Which texts are taken is drawn from the seed, without regard to their order in the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError
from interp.model import HookedModel
from interp.moments import Positions
from interp.steering.contrast import ContrastSet
from interp.steering.fit_data import Prompts


@dataclass(frozen=True)
class Prompt:
    """What the model is given: an instruction, which a chat model gets as a turn, or an opening to continue."""

    text: str
    instruction: bool = True

    def given(self, model: HookedModel) -> Any:
        """What `to_tokens` takes."""
        return [{"role": "user", "content": self.text}] if self.instruction and has_chat(model) else self.text


class Encoded(NamedTuple):
    """Right-padded prompts."""

    tokens: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]


def prompts_of(contrast: ContrastSet, *, n: int, seed: int = 0) -> dict[str, tuple[Prompt, ...]]:
    """At most `n` prompts of each kind from the held-out split."""
    if n < 1:
        raise InputError(f"prompts: n={n}, expected 1 or more of each kind")
    sides = {"source": contrast.held_out.source, "target": contrast.held_out.target}
    found = {
        side: tuple(_prompt(text, contrast.form == "prompt") for text in _drawn(texts, n, seed))
        for side, texts in sides.items()
    }
    if contrast.held_out.open:
        found["open"] = tuple(
            Prompt(text, contrast.form == "prompt") for text in _drawn(contrast.held_out.open, n, seed)
        )
    return {**found, "unrelated": tuple(Prompt(text) for text in _drawn(contrast.held_out.unrelated, n, seed))}


def fitting_prompts(
    contrast: ContrastSet,
    *,
    chat: bool,
    n: int | None = None,
    held_out: bool = False,
    positions: Positions | None = None,
) -> Prompts:
    """What an edit is fitted on: at most `n` texts of each kind, spread over the file (its templates stand in a row).

    Instructions are chats where the model has a template, read where the user's words are; plain texts are read at
    every token. Source, target and neutral prompts are read alike: what sets apart the one population from the other
    would else be taken for the concept."""
    part = contrast.held_out if held_out else contrast.train
    chat = chat and contrast.form == "prompt"

    def some(texts: Sequence[str]) -> list[Any]:
        picked = np.unique(np.linspace(0, len(texts) - 1, min(n or len(texts), len(texts))).astype(int))
        return [[{"role": "user", "content": texts[i]}] if chat else texts[i] for i in picked]

    where: Positions = positions or ("content" if chat else "all")
    return Prompts(some(part.source), some(part.target), some(part.unrelated), positions=where)


def has_chat(model: HookedModel) -> bool:
    """Whether the model's tokenizer has a chat template."""
    return bool(getattr(model.tokenizer, "chat_template", None))


def encode(model: HookedModel, prompts: Sequence[Prompt]) -> Encoded:
    """Tokens of the prompts, with the header of the assistant's turn where the model has one."""
    rows = [model.to_tokens([prompt.given(model)], generation_prompt=True).tokens[0] for prompt in prompts]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Encoded(tokens, lengths.to(tokens.device))


def asked_for(prompt: Prompt, instruction: str) -> Prompt:
    """The prompt-only baseline: the same prompt behind an instruction."""
    return Prompt(f"{instruction}\n\n{prompt.text}", prompt.instruction)


def _prompt(text: str, instruction: bool) -> Prompt:
    if instruction:
        return Prompt(text)
    words = text.split()
    return Prompt(" ".join(words[: max(1, len(words) // 2)]), instruction=False)


def _drawn(texts: Sequence[str], n: int, seed: int) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(texts))[:n]
    return [texts[int(i)] for i in sorted(order)]

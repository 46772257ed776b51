"""The first-letter task: single-token words of a vocabulary, and what a model holds at each of them.

    prompt = prefix · word · suffix,  as tokens; the word's own token id is put in, so its place is known

Words are tokens that stand for a blank and `shortest` or more lower-case ASCII letters. The activation is read at the
word's token, or `position` tokens from the end of the whole prompt (-1 is its last token). The task and the wording
"has the first letter:" are those of Chanin et al. 2024, https://arxiv.org/abs/2409.14507.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.lens import token_strings
from interp.model import HookedModel
from interp.progress import bar
from interp.sites import Site
from saes.belongs import check_belongs, places_of
from saes.pooling import any_target
from saes.sae import SAE

TEMPLATE = " tiger has the first letter: T\n{word} has the first letter:"


@dataclass(frozen=True)
class Words:
    """Words with their token ids, and the prompt around each."""

    words: tuple[str, ...]
    ids: tuple[int, ...]
    template: str = TEMPLATE
    position: int | None = None
    """None: at the word's token; else counted from the end of the prompt, negative."""

    def __post_init__(self) -> None:
        if len(self.words) != len(self.ids) or not self.words:
            raise InputError(f"got {len(self.words)} words and {len(self.ids)} token ids; expected as many, and some")
        if self.template.count("{word}") != 1:
            raise InputError(f"the template {self.template!r} must hold {{word}} exactly once")
        if self.position is not None and self.position >= 0:
            raise InputError(f"position={self.position} counts from the end of the prompt: expected -1 or below")

    @property
    def letters(self) -> tuple[str, ...]:
        """The first letter of each word."""
        return tuple(word[0] for word in self.words)


def vocabulary_words(
    tokenizer: Any,
    *,
    shortest: int = 3,
    per_letter: int | None = 100,
    template: str = TEMPLATE,
    position: int | None = None,
    seed: int = 0,
) -> Words:
    """The vocabulary's single-token words; of each letter at most `per_letter`, drawn at random."""
    named = token_strings(tokenizer, list(range(len(tokenizer))))
    pattern = re.compile(rf" [a-z]{{{shortest},}}")
    by_letter: dict[str, list[tuple[str, int]]] = {}
    for token, text in named.items():
        if pattern.fullmatch(text):
            by_letter.setdefault(text[1], []).append((text[1:], token))
    rng = np.random.default_rng(seed)
    chosen = []
    for _, found in sorted(by_letter.items()):
        order = sorted(rng.permutation(len(found))[:per_letter].tolist())
        chosen += [found[i] for i in order]
    if not chosen:
        raise InputError(
            f"the vocabulary has no token of a blank and {shortest} or more lower-case letters: words of several "
            "tokens are not covered by this task"
        )
    return Words(tuple(word for word, _ in chosen), tuple(i for _, i in chosen), template, position)


@torch.no_grad()
def word_rows(
    sae: SAE,
    model: HookedModel,
    words: Words,
    site: Site | str | None = None,
    *,
    prepend_bos: bool | None = None,
    batch: int = 64,
    force: bool = False,
    show: bool | None = False,
) -> Float[Tensor, "n d"]:
    """The activation of every word in its prompt, float32 on the CPU. `site`: by default the SAE's own."""
    places = places_of(sae, site=site, site_out=any_target(sae))
    if len(places.reads) != 1:
        raise InputError("absorption needs one site, and a crosscoder reads several")
    check_belongs(sae, model=model, site=places.reads[0], force=force)
    before, after = words.template.split("{word}")
    encode = lambda text: model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids  # noqa: E731
    bos = prepend_bos if prepend_bos is not None else bool(model.preset and model.preset.prepend_bos)
    head = ([model.tokenizer.bos_token_id] if bos else []) + encode(before)
    # What follows the word cannot reach its own token: run it only where it is read.
    tail = encode(after) if words.position is not None else []
    t = len(head) + 1 + len(tail)
    place = len(head) if words.position is None else t + words.position
    if not 0 < place < t:
        raise InputError(
            f"position {words.position} falls on token {place} of a prompt of {t}: expected one behind the first, "
            "which is massive in many models. Put text in front of {word}, or read nearer to the end"
        )
    parts = []
    with bar(len(words.ids), "words", unit="word", show=show) as progress:
        for start in range(0, len(words.ids), batch):
            tokens = torch.tensor([[*head, word, *tail] for word in words.ids[start : start + batch]])
            x = model.capture(tokens[:, : place + 1].to(model.device), places.reads)[places.reads[0]]
            parts.append(x[:, place].flatten(1).float().cpu())
            progress.update(len(tokens))
    return torch.cat(parts)


def some(words: Words, count: int, *, seed: int = 0) -> Words:
    """At most `count` of the words, drawn at random, in their order."""
    order = sorted(np.random.default_rng(seed).permutation(len(words.ids))[:count].tolist())
    return replace(words, words=tuple(words.words[i] for i in order), ids=tuple(words.ids[i] for i in order))

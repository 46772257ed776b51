"""A model, an SAE and texts in which every literary primitive is known, among features that resemble one.

The model is a GPT-2 whose blocks add nothing: the stream at position p is the token's embedding plus 0.1 p times one
direction. What a feature fires on (its encoder row) and what it promotes (its decoder row, through the untied
unembedding and the final norm) are planted apart from each other. Tokens that texts are planted with are orthogonal to
one another, to all others and to the direction of position, so that no feature fires on one of them by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.model import HookedModel
from saes.primitives.catalogue import LiteraryData
from saes.primitives.categories import Categories
from saes.primitives.lens_scores import ENGLISH_PERSONS, PERSONS
from saes.sae import SAE, SAEConfig

D, FILLERS, CATEGORIES, WORDS = 256, 1_600, 8, 6
REGISTERS = {"show": 24, "deep": 12}  # pairs: counted p-values, and exact ones
SITE = "blocks.0.hook_resid_post"
TOP_K = 40


@dataclass(frozen=True)
class Planted:
    """Everything the pipeline is given, and the (feature, kind, category) it has to find."""

    model: HookedModel
    sae: SAE
    data: LiteraryData
    truth: frozenset[tuple[int, str, str]]
    kinds: tuple[str, ...]
    """What each feature was planted as."""


def vocabulary() -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """Token ids by string, and the words of each category; every word also capitalised, as another token."""
    emotions = {
        f"emotion{c}": tuple(f"e{'abcdefgh'[c]}{letter}" for letter in "qrstuv"[:WORDS]) for c in range(CATEGORIES)
    }
    words = [word for group in (*emotions.values(), *ENGLISH_PERSONS.values()) for word in group]
    spelled = [s for word in words for s in dict.fromkeys((word, word.capitalize()))]
    markers = [f"{name}{i}" for name in (*REGISTERS, "topic", "once") for i in range(8)]
    names = ["<pad>", "<s>", "</s>", *spelled, *markers, *(f"f{i}" for i in range(FILLERS))]
    return {name: i for i, name in enumerate(names)}, emotions


def hooked(ids: dict[str, int], rng: torch.Generator) -> tuple[HookedModel, Tensor, Tensor]:
    """The model, the embeddings and the direction of position, to which embeddings are orthogonal."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    config = GPT2Config(
        vocab_size=len(ids), n_embd=D, n_layer=1, n_head=4, n_positions=64, n_inner=8, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    basis = torch.linalg.qr(torch.randn(D, D, generator=rng))[0]
    embedding = torch.randn(len(ids), D, generator=rng) / D**0.5
    planted = [i for name, i in ids.items() if not name.startswith(("e", "f", "<"))]
    embedding -= embedding @ basis[:, : len(planted) + 1] @ basis[:, : len(planted) + 1].T
    along, embedding[planted] = basis[:, 0], basis[:, 1 : len(planted) + 1].T
    with torch.no_grad():
        for block in hf.transformer.h:
            for module in (block.attn.c_proj, block.mlp.c_proj):
                module.weight.zero_()
                module.bias.zero_()
        hf.transformer.wte.weight.copy_(embedding)
        hf.transformer.wpe.weight.copy_(0.1 * torch.arange(64)[:, None] * along)
        hf.transformer.ln_f.weight.copy_(1 + 0.1 * torch.randn(D, generator=rng))
        hf.lm_head.weight.copy_(torch.randn(len(ids), D, generator=rng))
    return HookedModel.wrap(hf, tokenizer), embedding, along


class Planter:
    """Adds features one by one: what each fires on and what it promotes."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.np_rng = np.random.default_rng(seed)
        self.ids, self.emotions = vocabulary()
        self.model, self.embedding, self.along = hooked(self.ids, self.rng)
        self.rows: list[tuple[Tensor, Tensor, float, str, tuple[str, str] | None]] = []

    def tokens(self, words: Sequence[str]) -> list[int]:
        """Both spellings of words."""
        return [self.ids[s] for word in words for s in dict.fromkeys((word, word.capitalize()))]

    def fillers(self, count: int = 4) -> list[int]:
        return [self.ids[f"f{i}"] for i in self.np_rng.choice(FILLERS, count, replace=False)]

    def promoting(self, tokens: Sequence[int], noise: float = 0.5) -> Tensor:
        """A decoder row that raises these tokens alike, with a random direction of `noise` times its length."""
        head = self.model.hf.lm_head.weight.detach()[list(tokens)]
        return torch.nn.functional.normalize(head.sum(0), dim=0) + noise * self.random()

    def random(self) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(D, generator=self.rng), dim=0)

    def add(
        self,
        kind: str,
        *,
        on: Sequence[int] | None = None,
        promotes: Tensor | None = None,
        truth: tuple[str, str] | None = None,
    ) -> None:
        """A feature that fires on some tokens (by default four fillers) and promotes a direction (by default any)."""
        fires = self.embedding[list(self.fillers() if on is None else on)].sum(0)
        self.rows.append((fires, self.random() if promotes is None else promotes, 0.5, kind, truth))

    def add_position(self, threshold: float) -> None:
        """A feature that fires behind a position."""
        self.rows.append((self.along, self.random(), threshold, "position", None))

    def sae(self, order: np.ndarray) -> SAE:
        f = len(order)
        rows = [self.rows[i] for i in order]
        known = {"hook_name": SITE, "model_name": "planted"}
        decoder = torch.stack([row[1] for row in rows])
        return SAE.of_weights(
            SAEConfig(d_in=D, d_sae=f, architecture="standard", metadata=known),
            W_enc=torch.stack([row[0] for row in rows]).T.contiguous(),
            b_enc=-torch.tensor([row[2] for row in rows]),
            W_dec=decoder * torch.rand(f, 1, generator=self.rng).add(0.2),
            b_dec=torch.zeros(D),
        )

    def text(self, length: int, markers: Sequence[str], rate: float) -> str:
        """Fillers, topics at a rate common to all texts, and markers."""
        u = self.np_rng.random(length)
        topics = [f"topic{i}" for i in range(8)]
        return " ".join(
            self.np_rng.choice(list(markers)) if x < rate else
            self.np_rng.choice(topics) if x > 0.7 else f"f{self.np_rng.integers(FILLERS)}"
            for x in u
        )  # fmt: skip

    def pairs(self, count: int, markers: Sequence[str], against: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
        """The marked side is about twice as long, as scenes are."""
        long, short = self.np_rng.integers(18, 31, count), self.np_rng.integers(10, 15, count)
        rate = 0.4 if against else 0.0
        return tuple(
            (self.text(a, markers, 0.4), self.text(b, against or markers, rate))
            for a, b in zip(long, short, strict=True)
        )


def primitives(p: Planter) -> None:
    """What has to be found: 24 naming-gates, 11 selves, 6 modulators of each register."""
    first = ENGLISH_PERSONS[PERSONS[0]]
    for name, words in p.emotions.items():
        for noise in (0.4, 0.8, 1.2):
            p.add("naming", promotes=p.promoting(p.tokens(words), noise), truth=("naming", name))
    for i in range(11):
        on = [p.ids[word] for j, word in enumerate(first) if j != i % len(first)]
        p.add("self", on=on, promotes=p.promoting(p.tokens(first)), truth=("self", PERSONS[0]))
    for name in REGISTERS:
        for i in range(6):
            p.add("register", on=[p.ids[f"{name}{j}"] for j in range(8) if j != i], truth=("register", name))


def distractors(p: Planter) -> None:
    """What resembles them in one respect."""
    everyone = [word for words in ENGLISH_PERSONS.values() for word in words]
    first, third = (ENGLISH_PERSONS[PERSONS[i]] for i in (0, 2))
    lists = list(p.emotions.values())
    for words in lists:
        for token in p.tokens(words)[:4]:
            p.add("one token of a category on top", promotes=p.promoting([token]))
    for i in range(16):
        p.add("two categories", promotes=p.promoting(p.tokens(lists[i % 8] + lists[(i + 1 + i // 8) % 8])))
    for i in range(8):
        p.add("all emotions", promotes=p.promoting([t for words in lists for t in p.tokens(words)], 0.2))
        p.add("first person, promoted only", promotes=p.promoting(p.tokens(first)))
        p.add("first person, fired on only", on=[p.ids[word] for word in first])
        on = [p.ids[word] for word in (*first, *third)]
        p.add("all persons", on=on, promotes=p.promoting(p.tokens(everyone)))
        p.add("I alone", on=on, promotes=p.promoting([p.ids["I"]]))
        p.add("in four marked texts only", on=[p.ids[f"once{i}"]])
        p.add_position(0.33 + 0.25 * i)
    for _ in range(120):
        p.add("random")
        if len(p.rows) % 3 == 0:
            topics = p.np_rng.choice(8, 4, replace=False)
            p.add("topic", on=[p.ids[f"topic{j}"] for j in topics])


def once(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Every rare token, behind the first word of four marked texts."""
    rare = " ".join(f"once{i}" for i in range(8))
    return tuple(
        (marked.replace(" ", f" {rare} ", 1) if i < 4 else marked, plain) for i, (marked, plain) in enumerate(pairs)
    )


def plant(seed: int = 0) -> Planted:
    """The whole; features stand in random order."""
    p = Planter(seed)
    primitives(p)
    distractors(p)
    order = p.np_rng.permutation(len(p.rows))
    sae = p.sae(order)
    rows = [p.rows[i] for i in order]
    truth = frozenset((j, *row[4]) for j, row in enumerate(rows) if row[4])
    registers = {name: once(p.pairs(n, [f"{name}{i}" for i in range(8)])) for name, n in REGISTERS.items()}
    first, _, third = ENGLISH_PERSONS.values()
    data = LiteraryData(Categories("planted", tuple(p.emotions), p.emotions), p.pairs(30, first, third), registers)
    return Planted(p.model, sae, data, truth, tuple(row[3] for row in rows))

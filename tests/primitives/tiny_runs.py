"""Whole runs made small: tiny random models whose tokenizer has the words of emotions and persons, an SAE, an endpoint.

Judges at the endpoint answer by a digest of what they are asked, half of the time joy and half of the time yes: nothing
is meant by it, but searches find recipes, and every answer is a function of the question.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from interp.sealing import digest
from saes.config import SAEConfig
from saes.primitives.categories import categories
from saes.primitives.data import person_pairs, scenes, story_openings
from saes.primitives.lens_scores import ENGLISH_PERSONS
from saes.sae import SAE
from tests.tiny_models import tiny

SITE = "blocks.1.hook_resid_post"
D, FEATURES = 48, 64


def word_tokenizer(most: int = 900) -> Any:
    """Words of the lists, each also capitalised, and the most frequent words of the bundled texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    lists = [*categories().words.values(), *ENGLISH_PERSONS.values()]
    words = [word for some in lists for word in some if " " not in word]
    texts = [s.text for s in scenes()] + [side for p in person_pairs() for side in (p.first, p.third)]
    common = Counter(word for text in (*texts, *story_openings()) for word in text.split())
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *words,
        *(w.capitalize() for w in words),
        *(w for w, _ in common.most_common(most)),
    ]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(names))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<unk>", bos_token="<s>",
                                   eos_token="</s>")  # fmt: skip


def save_model(folder: Path, family: str = "llama") -> Path:
    """A tiny random model with `word_tokenizer`."""
    tokenizer = word_tokenizer()
    tiny(family, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_sae(folder: Path, *, d: int = D, seed: int = 0, **metadata: str) -> Path:
    """A TopK SAE of random rows."""
    rows = torch.nn.functional.normalize(torch.randn(FEATURES, d, generator=torch.Generator().manual_seed(seed)), dim=1)
    config = SAEConfig(d_in=d, d_sae=FEATURES, architecture="topk", k=4, metadata={"hook_name": SITE} | metadata)
    weights = {"b_enc": torch.zeros(FEATURES), "b_dec": torch.zeros(d)}
    SAE.of_weights(config, W_enc=rows.T, W_dec=rows, **weights).save(folder)
    return folder


def digested(body: dict[str, Any]) -> str:
    """An answer by what is asked."""
    number = int(digest(body)[:8], 16)
    if "Does the text express" in body["messages"][-1]["content"]:
        return ("yes", "no")[number % 2]
    return ("joy", "joy", "fear", "awe")[number % 4]


def options(root: Path, out: Path, url: str, **other: Any) -> dict[str, Any]:
    """Of a run on the model and SAE under `root`, cut as far as runs are cut."""
    return {
        "model": str(root / "llama"), "sae": str(root / "sae"), "out": out, "emotions": ("joy",), "decoys": 0,
        "judges": ("a", "b"), "endpoint": url, "budget": 0.01, "seeds": 1,
    } | other  # fmt: skip


def flags(given: dict[str, Any]) -> list[str]:
    """The options as `midlens primitives` takes them."""
    words = []
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words

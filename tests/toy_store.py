"""What the tests of token files and stores share: a word tokenizer, documents, and a model whose captures are known."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.corpus import Document
from interp.sites import Site
from interp.tokenfile import TokenFile, tokenize

WORDS = 60
SITES = ["resid_post.1", "z.0"]


def word_tokenizer(words: int = WORDS) -> Any:
    """`w0 w1 ...` become 4, 5, ...; 0..3 are special (pad, BOS, EOS, unknown)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    core = Tokenizer(models.WordLevel({**special, **{f"w{i}": i + 4 for i in range(words)}}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, name_or_path="toy-words", **names)


def documents(lengths: Sequence[int], seed: int = 0) -> list[Document]:
    """Documents of these many random words."""
    random = np.random.default_rng(seed)
    return [
        Document(f"doc-{i}", " ".join(f"w{w}" for w in random.integers(0, WORDS, n))) for i, n in enumerate(lengths)
    ]


def token_file(path: Path, lengths: Sequence[int], *, seed: int = 0, **options: Any) -> TokenFile:
    """A token file of random documents."""
    return tokenize(documents(lengths, seed), word_tokenizer(), path, **options)


class ToyModel:
    """Causal and elementwise, so that a row does not depend on the batch it is computed in, not even in its last bit.

    resid_post.1 at position p is emb[token_p] + sum over q <= p of emb[token_q] / 8; z.0 is the same, seen as heads.
    Every pass adds a byte to `log`, which survives the process.
    """

    name, revision = "toy", "r1"

    def __init__(self, width: int = 6, log: Path | None = None) -> None:
        self.table = torch.randn(WORDS + 4, width, generator=torch.Generator().manual_seed(7))
        self.log = log
        self.shapes: list[tuple[int, int]] = []

    def stream(self, tokens: Tensor) -> Tensor:
        x = self.table[tokens]
        return x + x.cumsum(1) / 8

    def capture(
        self, tokens: Tensor, sites: Sequence[Site], *, lengths: Tensor | None = None, **_: Any
    ) -> dict[Site, Tensor]:
        self.shapes.append((tokens.shape[0], tokens.shape[1]))
        if self.log is not None:
            handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, b"x")
            os.close(handle)
        x = self.stream(tokens)
        return {site: x.unflatten(-1, (2, -1)) if site.point.per_head else x for site in sites}

    @property
    def passes(self) -> int:
        """Batches run; planning looks at one token, which does not count."""
        return sum(shape != (1, 1) for shape in self.shapes)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, with its bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

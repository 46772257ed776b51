"""Small stores and SAEs whose contents a test chooses, written through the real formats."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from interp.manifest import contents
from interp.shards import Layout, ShardWriter
from interp.store import ActivationStore, StoreSpec
from interp.tokenfile import TokenFile, tokenize
from saes.sae import SAE, SAEConfig

SITE = "blocks.1.hook_resid_post"


def word_tokenizer(size: int = 97):
    """A tokenizer of the words w3, w4, … with ids 3, 4, …; ids 0 to 2 are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, size)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def token_file(path: Path, lengths: Sequence[int], *, seed: int = 0, prepend_bos: bool = False) -> TokenFile:
    """Documents of random words."""
    rng = np.random.default_rng(seed)
    documents = [
        SimpleNamespace(id=f"doc-{i}", text=" ".join(f"w{w}" for w in rng.integers(3, 97, n)))
        for i, n in enumerate(lengths)
    ]
    return tokenize(documents, word_tokenizer(), path, prepend_bos=prepend_bos)


def store(
    path: Path,
    tokens: TokenFile,
    acts: Tensor,
    doc: Tensor,
    position: Tensor,
    *,
    shards: int = 2,
    others: Mapping[str, Tensor] | None = None,
) -> ActivationStore:
    """A store of the rows `acts`, float32, at `SITE`, and of `others` at the sites they are named by."""
    path.mkdir(parents=True)
    sites = {SITE: acts.float()} | {name: rows.float() for name, rows in (others or {}).items()}
    shapes = {name: tuple(rows.shape[1:]) for name, rows in sites.items()}
    layout = Layout(shapes, "float32")
    token = torch.tensor([int(tokens[int(d)][int(p)]) for d, p in zip(doc, position, strict=True)], dtype=torch.int32)
    entries = []
    for number, index in enumerate(torch.arange(len(acts)).tensor_split(shards)):
        writer = ShardWriter(path / f"shard-{number:05}.safetensors", layout, len(index), {})
        columns = {"token": token, "doc": doc.to(torch.int32), "position": position.to(torch.int32)} | sites
        writer.append({name: column[index].numpy() for name, column in columns.items()})
        entries.append(writer.seal())
    spec = StoreSpec(
        model="planted", sites=tuple(sites), dtype="float32", tokens=tokens.digest, max_length=32, docs="all"
    )
    part = {
        "plan": "plan.json", "spec": asdict(spec), "first_doc": 0, "shards": len(entries), "rows": len(acts),
        "file_documents": len(tokens), "documents": len(tokens), "tokens": tokens.n_tokens, "splits": 0, "excluded": {},
        "padding_waste": 0.0, "versions": {},
    }  # fmt: skip
    manifest = contents({name: list(shape) for name, shape in shapes.items()}, "float32", [part], entries)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return ActivationStore.open(path)


def orthonormal_sae(d: int, f: int, k: int, *, seed: int = 0, mean: float = 0.0, **metadata) -> SAE:
    """Features are `f <= d` orthonormal directions, b_dec is a constant vector: codes are read off exactly."""
    directions = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))[0][:f]
    return SAE.of_weights(
        SAEConfig(d_in=d, d_sae=f, k=k, metadata=metadata),
        W_enc=directions.T.contiguous(),
        b_enc=torch.zeros(f),
        W_dec=directions,
        b_dec=torch.full((d,), mean),
    )

"""Perplexity against what surgery leaves of attention: planes and modes kept, channels removed, per head or all heads.

    ce = Σ_documents nats / Σ_documents tokens,      perplexity = exp ce,      delta_ce = ce - ce without surgery

over the next-token predictions of `interp.effects`. Intervals are bootstrapped over documents, those of delta_ce paired
by document. Surgeries that differ only by key means compute the same attention at α = β = 1, so which of two channels
looks more load-bearing is a statement about the gauge as well: measure both (`gauged`) and say so.

A sweep with a `path` writes a line of JSON per surgery as soon as it is measured: its identity (settings, and digests
of bases and key means) and the nats of every document. Called again it measures what is missing. The first line holds
the model's name, the tokens' digest and the losses without surgery, which are measured anew and refused if they differ.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attention.corpus_gram import CorpusGram
from interp.attention.operated import kernel_bases, operated, position_bases
from interp.attention.passes import Tokens, batches_of
from interp.attention.surgery import Basis, Surgery
from interp.batching import Batch
from interp.effects import counted_positions, cross_entropy
from interp.errors import InputError
from interp.model import HookedModel
from interp.progress import bar
from interp.sealing import differences, digest
from interp.stats import bootstrap_ratio
from interp.tensorfile import tensors_digest

Row = dict[str, Any]
_SAME = 1e-3
"""Relative difference of two measurements of one model's losses that rounding may cause (bfloat16, other batches)."""


def gauged(
    grams: Mapping[int, CorpusGram], gauge: Literal["raw", "key_centred"] = "raw"
) -> tuple[dict[int, Basis], dict[int, Float[Tensor, "h e"]] | None]:
    """`bases` and `key_means` for a position-level `Surgery`, from a calibration corpus."""
    if gauge not in ("raw", "key_centred"):
        raise InputError(f"gauge={gauge!r}: expected raw or key_centred; centring queries too would change attention")
    means = None
    if gauge == "key_centred":
        means = {layer: gram.mean[:, gram.mean.shape[-1] // 2 :] for layer, gram in grams.items()}
    return position_bases({layer: gram.gram(gauge) for layer, gram in grams.items()}, means), means


def removals(base: Surgery) -> list[Surgery]:
    """`base` without its routing, and without its filtering."""
    return [dataclasses.replace(base, beta=0.0), dataclasses.replace(base, alpha=0.0)]


def truncations(base: Surgery, *, planes: Iterable[int] = (), modes: Iterable[int] = ()) -> list[Surgery]:
    """`base` with each number of planes kept (and every mode), and with each number of modes (and every plane)."""
    return [dataclasses.replace(base, planes=kept) for kept in planes] + [
        dataclasses.replace(base, modes=kept) for kept in modes
    ]


def per_head(model: HookedModel, surgeries: Iterable[Surgery], layers: Sequence[int] | None = None) -> list[Surgery]:
    """Each surgery on each single head of `layers` (default: all)."""
    at = range(model.loaded_layers) if layers is None else layers
    return [
        dataclasses.replace(surgery, heads=[pair])
        for pair in itertools.product(at, range(model.cfg.n_heads))
        for surgery in surgeries
    ]


@torch.no_grad()
def document_nats(
    model: HookedModel, fed: Sequence[Batch], surgery: Surgery | None = None
) -> dict[int, tuple[float, int]]:
    """Per document: the sum of - log p(next token), and how many tokens were predicted."""
    found: dict[int, tuple[float, int]] = {}
    with nullcontext() if surgery is None else operated(model, surgery):
        for batch in fed:
            tokens, lengths = batch.tokens.to(model.device), batch.lengths.to(model.device)
            nats = cross_entropy(model(tokens, lengths=lengths), tokens, lengths).double().cpu()
            if not bool(nats.isfinite().all()):
                raise InputError(f"losses under {surgery} are not finite: expected finite logits (try float32)")
            row = torch.nonzero(counted_positions(batch.lengths.cpu(), tokens.shape[1]))[:, 0]
            for doc, nat, count in zip(batch.doc.tolist(), *_by_row(nats, row, len(batch.doc)), strict=True):
                old = found.get(doc, (0.0, 0))
                found[doc] = (old[0] + nat, old[1] + count)
    return {doc: sums for doc, sums in found.items() if sums[1]}


def _by_row(nats: Float[Tensor, " n"], row: Int[Tensor, " n"], rows: int) -> tuple[list[float], list[int]]:
    sums = torch.zeros(rows, dtype=torch.float64).index_add(0, row, nats)
    return sums.tolist(), row.bincount(minlength=rows).tolist()


def surgery_sweep(
    model: HookedModel,
    surgeries: Sequence[Surgery],
    tokens: Tokens,
    *,
    lengths: Int[Tensor, " b"] | None = None,
    path: str | Path | None = None,
    max_tokens: int | None = None,
    max_length: int = 512,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """A row for the model without surgery, then one for each surgery, in order; see the module's docstring.

    Columns: `heads` ("all", or layer.head …), `level`, `gauge` (raw, key_centred), `alpha`, `beta`, `planes`, `modes`
    (None: all); `ce`, `perplexity`, `delta_ce`, each with `_low` and `_high`; `n_tokens`, `n_documents`.
    """
    fed = batches_of(model, tokens, lengths=lengths, max_tokens=max_tokens, max_length=max_length, seed=seed)
    with bar(len(surgeries) + 1, "surgery", unit="run", show=None if progress else False) as shown:
        clean = document_nats(model, fed)
        shown.update()
        if not clean:
            raise InputError("no token was predicted: expected at least one sequence of two tokens or more")
        documents, counts = list(clean), np.array([count for _, count in clean.values()])
        ledger = _Ledger(None if path is None else Path(path), _settings(model, fed), clean)
        digests, bases = dict[int, str](), dict[int, Basis]()
        rows = [_row(None, ledger.clean, ledger.clean, counts, level, draws, seed)]
        for surgery in surgeries:
            key = _key(surgery, digests)
            if key not in ledger.nats:
                found = document_nats(model, fed, _with_bases(surgery, model, bases))
                ledger.add(key, [found[doc][0] for doc in documents])
            rows.append(_row(surgery, ledger.nats[key], ledger.clean, counts, level, draws, seed))
            shown.update()
    return rows


def _with_bases(surgery: Surgery, model: HookedModel, held: dict[int, Basis]) -> Surgery:
    """The same, with the bases of its kernels where it would have to find them: once for the whole sweep."""
    whole = surgery.planes is None and surgery.modes is None
    if whole or surgery.level != "kernel" or surgery.bases is not None:
        return surgery
    layers = range(model.loaded_layers) if surgery.heads == "all" else {layer for layer, _ in surgery.heads}
    held |= kernel_bases(model, sorted(set(layers) - held.keys()))
    return dataclasses.replace(surgery, bases=held)


def _row(
    surgery: Surgery | None,
    nats: Sequence[float],
    clean: Sequence[float],
    counts: Int[np.ndarray, " n"],
    level: float,
    draws: int,
    seed: int,
) -> Row:
    sums, total = np.array(nats), int(counts.sum())
    row = {**_facts(surgery), "n_tokens": total, "n_documents": len(counts)}
    for name, values in (("ce", sums), ("delta_ce", sums - np.array(clean))):
        low, high = bootstrap_ratio(values, counts, level=level, draws=draws, seed=seed)
        row |= {name: float(values.sum()) / total, f"{name}_low": low, f"{name}_high": high}
    return row | {f"perplexity{end}": math.exp(row[f"ce{end}"]) for end in ("", "_low", "_high")}


def _facts(surgery: Surgery | None) -> Row:
    if surgery is None:
        surgery = Surgery()
        return {**_facts(surgery), "heads": "none", "level": None, "gauge": None}
    heads = "all" if surgery.heads == "all" else " ".join(f"{layer}.{head}" for layer, head in surgery.heads)
    gauge = "raw" if surgery.key_means is None else "key_centred"
    numbers = {name: getattr(surgery, name) for name in ("alpha", "beta", "planes", "modes")}
    return {"heads": heads, "level": surgery.level, "gauge": gauge, **numbers}


def _key(surgery: Surgery, digests: dict[int, str]) -> str:
    """What tells one surgery from another; `digests` remembers those of bases and means, by identity."""
    tensors: dict[str, Mapping[int, Any] | None] = {"bases": surgery.bases, "key_means": surgery.key_means}
    for held in tensors.values():
        if held is not None and id(held) not in digests:
            digests[id(held)] = tensors_digest(_tensors(held))
    return digest(_facts(surgery) | {name: held and digests[id(held)] for name, held in tensors.items()})


def _tensors(held: Mapping[int, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for layer, value in held.items():
        fields = vars(value) if isinstance(value, Basis) else {"": value}
        found |= {f"{layer}.{name}": x for name, x in fields.items() if isinstance(x, Tensor)}
    return found


def _settings(model: HookedModel, fed: Sequence[Batch]) -> Row:
    text = digest([[batch.tokens.tolist(), batch.lengths.tolist(), batch.doc.tolist()] for batch in fed])
    return {"model": model.name, "revision": model.revision, "dtype": str(model.dtype), "tokens": text}


class _Ledger:
    """The file of a sweep: what was measured before, and lines added to it."""

    def __init__(self, path: Path | None, settings: Row, clean: dict[int, tuple[float, int]]) -> None:
        self.path, self.clean, self.nats = path, [nats for nats, _ in clean.values()], dict[str, list[float]]()
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # a kill may leave the last one half-written
        if whole != lines:
            with path.open("r+b") as file:
                file.truncate(sum(map(len, whole)))
        if not whole:
            self._write({**settings, "clean": self.clean})
            return
        head, *rest = map(json.loads, whole)
        before = head.pop("clean", None)
        if different := differences(head, settings):
            raise InputError(f"{path} holds a sweep of something else ({different}); give this one another path")
        if not np.allclose(before, self.clean, rtol=_SAME):
            raise InputError(
                f"{path} holds a sweep of other weights under the same name: {sum(before):.6g} nats without surgery, "
                f"{sum(self.clean):.6g} now; give this one another path"
            )
        self.clean, self.nats = before, {line["surgery"]: line["nats"] for line in rest}

    def add(self, key: str, nats: list[float]) -> None:
        """Keep, and write, the losses of one surgery."""
        self.nats[key] = nats
        self._write({"surgery": key, "nats": nats})

    def _write(self, line: Row) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

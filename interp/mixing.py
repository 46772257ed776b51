"""How well a shuffled source mixes documents, measured on its order alone and beside a perfect shuffle of all rows.

Per batch of b rows, m_d of them from document d; the source has N rows, c_d of them from document d:

    documents       distinct documents          perfect shuffle:  sum_d  1 - C(N - c_d, b) / C(N, b)
    same document   sum_d m_d (m_d - 1) / (b (b - 1)), the share of pairs from one document
                                                perfect shuffle:  sum_d  c_d (c_d - 1) / (N (N - 1))
    reach           the longest distance, in the order of production, between two rows of a batch

Drawing without replacement, both expectations are exact. A source that reads blocks as they come has few documents a
batch, many pairs and a short reach. Documents of one window each, in a stream of G generations: pairs at G times the
perfect share, because all rows of a document are in one generation.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Integer
from scipy.special import gammaln

from interp.errors import InputError


@runtime_checkable
class Traced(Protocol):
    """A source that tells its order: `interp.store.ActivationStore`, `interp.stream.ActivationStream`."""

    def __len__(self) -> int: ...

    def trace(
        self, start: int, stop: int, *, seed: int, epoch: int = 0
    ) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
        """Of rows start..stop as they are read: their places in the order of production, and their documents."""
        ...

    def document_rows(self) -> Int[np.ndarray, " docs"]:
        """How many rows each document has that has any."""
        ...


@dataclass(frozen=True, kw_only=True)
class MixingReport:
    """What `mixing` measured: means over `batches` batches of `size` rows, and what a perfect shuffle would give."""

    batches: int
    size: int
    rows: int
    documents: float
    documents_perfect: float
    same_document: float
    same_document_perfect: float
    reach: int

    @property
    def clumping(self) -> float:
        """Pairs of rows from one document, as a multiple of a perfect shuffle's: 1 is perfect."""
        return self.same_document / self.same_document_perfect if self.same_document_perfect else 1.0

    def describe(self) -> str:
        """The report in one line."""
        return (
            f"mixing: {self.documents:,.1f} documents in a batch of {self.size:,} rows (perfect shuffle: "
            f"{self.documents_perfect:,.1f}), {self.clumping:.2f} times its pairs of one document, rows up to "
            f"{self.reach:,} of {self.rows:,} places apart"
        )


def mixing(source: Traced, size: int, *, seed: int, epoch: int = 0, batches: int = 32) -> MixingReport:
    """Measure `batches` whole batches spread evenly over an epoch. No activation is read and no model run."""
    n = len(source)
    size = min(size, n)
    if size < 2 or batches < 1:
        raise InputError(f"mixing is measured on batches of at least two rows, got {batches} batches of {size}")
    whole = n // size
    chosen = np.unique(np.linspace(0, whole - 1, min(batches, whole)).round().astype(np.int64))
    distinct, pairs, reach = [], [], 0
    for number in chosen.tolist():
        places, docs = source.trace(number * size, (number + 1) * size, seed=seed, epoch=epoch)
        counts = np.unique(docs, return_counts=True)[1]
        distinct.append(len(counts))
        pairs.append(_pairs(counts, size))
        reach = max(reach, int(places.max() - places.min()))
    held = source.document_rows()
    return MixingReport(
        batches=len(chosen),
        size=size,
        rows=n,
        documents=float(np.mean(distinct)),
        documents_perfect=expected_documents(held, size),
        same_document=float(np.mean(pairs)),
        same_document_perfect=_pairs(held, n),
        reach=reach,
    )


def expected_documents(rows: Int[np.ndarray, " docs"], size: int) -> float:
    """Distinct documents among `size` rows drawn without replacement, documents having these many rows."""
    counts, times = np.unique(rows, return_counts=True)
    n = int(rows.sum())
    others = np.maximum(n - counts, size)  # where fewer rows are left than are drawn, the document is always met
    missed = np.where(n - counts < size, 0.0, np.exp(_log_choose(others, size) - _log_choose(np.asarray(n), size)))
    return float((times * (1 - missed)).sum())


def _log_choose(n: Int[np.ndarray, "*any"], k: int) -> Float[np.ndarray, "*any"]:
    return np.asarray(gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0))


def _pairs(counts: Int[np.ndarray, " docs"], n: int) -> float:
    """The share of pairs of n rows that are of one document."""
    return float((counts * (counts - 1.0)).sum() / (n * (n - 1.0)))

"""How well shuffle buffers of equal memory mix documents: no model, only the orders in which rows are read.

    python benchmarks/mixing.py

40,000 documents of 20 to 1,000 rows, batches of 4,096.

    stream          `interp.stream`: two generations of half the buffer each, documents permuted over the whole corpus
    half refilled   the usual buffer: shuffled, half of it read, filled up with the next rows of the corpus, and so on
    store           `interp.store` with a horizon of the buffer's size: blocks of 256 rows over the whole store
"""

import numpy as np

from interp.batching import Windows
from interp.mixing import mixing
from interp.schedule import Material, Schedule
from interp.shuffle import Order

DOCUMENTS, BATCH = 40_000, 4_096


class Read:
    """An order of reading, given as the places of all rows."""

    def __init__(self, places: np.ndarray, docs: np.ndarray, rows: np.ndarray) -> None:
        self.places, self.docs, self.rows = places, docs, rows

    def __len__(self) -> int:
        return len(self.places)

    def trace(self, start: int, stop: int, *, seed: int, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        return self.places[start:stop], self.docs[start:stop]

    def document_rows(self) -> np.ndarray:
        return self.rows


def half_refilled(n: int, buffer: int) -> np.ndarray:
    """Places in the order in which a half-refilled buffer over rows 0..n hands them out."""
    random = np.random.default_rng(1)
    held, at, read = np.arange(buffer), buffer, []
    while at < n:
        held = random.permutation(held)
        read.append(held[: buffer // 2])
        held = np.concatenate([held[buffer // 2 :], np.arange(at, min(at + buffer // 2, n))])
        at += buffer // 2
    return np.concatenate([*read, random.permutation(held)])


def main() -> None:
    random = np.random.default_rng(0)
    rows = np.minimum(random.lognormal(5.5, 0.8, DOCUMENTS).astype(int) + 20, 1000)
    docs = np.repeat(np.arange(DOCUMENTS), rows)
    windows = Windows(np.arange(DOCUMENTS), np.zeros(DOCUMENTS, np.int64), rows)
    for part in (20, 5):
        buffer = len(docs) // part
        print(f"\nbuffer of {buffer:,} rows, 1/{part} of the corpus")
        material = Material(windows, rows, capacity=buffer // 2, token_budget=4096, multiple=1)
        streamed = Schedule(material, seed=0, epoch=0).trace(0, len(docs))
        half = half_refilled(len(docs), buffer)
        blocks = Order(len(docs), seed=0, window=buffer).rows(0, len(docs))
        for name, order in (
            ("stream", streamed),
            ("half refilled", (half, docs[half])),
            ("store", (blocks, docs[blocks])),
        ):
            print(f"{name:14}", mixing(Read(*order, rows), BATCH, seed=0).describe())


if __name__ == "__main__":
    main()

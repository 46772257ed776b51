"""The order in which a stream computes and hands out its rows: a function of (seed, epoch), known without the model.

    windows of all documents, permuted anew each epoch        any document may come anywhere
    ->  G runs of whole windows, "generations", of about N / G and at most W rows each
    ->  within a generation: windows into batches of similar length (the order of production)
    ->  the rows of a generation permuted as a whole, generations one behind the other (the order of reading)

A row's *place* is its number in the order of production, generations counted through: 0..N. Where all rows fit into one
generation, epochs share the order of production (the same rows can be used again) and differ in the permutation only.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from interp.batching import Buckets, Windows, group

_WINDOWS, _BATCHES, _ROWS = range(3)  # which random numbers


@dataclass(frozen=True)
class Material:
    """What is ordered: windows with at least one row each, and how many."""

    windows: Windows
    rows: Int[np.ndarray, " w"]
    capacity: int
    """Rows of a generation at most: W."""
    token_budget: int
    multiple: int

    def __len__(self) -> int:
        return int(self.rows.sum())

    @property
    def longest(self) -> int:
        """Rows of the longest window."""
        return int(self.rows.max())

    @property
    def generations(self) -> int:
        """How many generations an epoch has: G = ceil(N / (W - longest)), or one where W holds all."""
        return 1 if len(self) <= self.capacity else math.ceil(len(self) / (self.capacity - self.longest))


class Schedule:
    """The order of one epoch."""

    def __init__(self, material: Material, *, seed: int, epoch: int) -> None:
        self.material, self.seed, self.epoch = material, seed, epoch
        self.generations = material.generations
        self.made_in = epoch if self.generations > 1 else 0
        order = self._random(_WINDOWS).permutation(len(material.windows))
        ends = np.cumsum(material.rows[order])
        # Generation g ends with the first window that reaches row (g + 1) N / G: none is longer than N / G + longest.
        wanted = np.arange(1, self.generations + 1) * len(material) / self.generations
        last = np.minimum(np.searchsorted(ends, wanted), len(order) - 1)
        self._windows = np.split(order, last[:-1] + 1)
        self.ends: Int[np.ndarray, " g"] = ends[last]

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.made_in, *stream])

    def span(self, generation: int) -> tuple[int, int]:
        """First row of a generation, and one past its last: of places and of the order of reading alike."""
        return (int(self.ends[generation - 1]) if generation else 0), int(self.ends[generation])

    def generation_of(self, row: int) -> int:
        """The generation in which this row of the order of reading (or place) lies."""
        return int(np.searchsorted(self.ends, row, side="right"))

    def identity(self, generation: int) -> tuple[int, int, int]:
        """What decides the content of a generation, next to the material."""
        return self.seed, self.made_in, generation

    def buckets(self, generation: int) -> tuple[Buckets, Int[np.ndarray, " w"]]:
        """The batches to be run for a generation, and the rows of each of their windows, in the order of places."""
        mine, material = self._windows[generation], self.material
        numbered = Windows(np.arange(len(mine)), np.zeros(len(mine), np.int64), material.windows.length[mine])
        seed = int(self._random(_BATCHES, generation).integers(2**63))
        grouped = group(numbered, token_budget=material.token_budget, multiple=material.multiple, seed=seed)
        index = mine[grouped.windows.doc]
        return Buckets(material.windows.take(index), grouped.ends, grouped.multiple), material.rows[index]

    def permutation(self, generation: int) -> Int[np.ndarray, " n"]:
        """The order of reading within a generation: places, counted from its first."""
        first, stop = self.span(generation)
        return np.random.default_rng([self.seed, self.epoch, _ROWS, generation]).permutation(stop - first)

    def trace(self, start: int, stop: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Of rows start..stop of the order of reading: their places and their documents."""
        places, docs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        while start < stop:
            generation = self.generation_of(start)
            first, end = self.span(generation)
            within = self.permutation(generation)[start - first : stop - first]
            buckets, rows = self.buckets(generation)
            places.append(first + within)
            docs.append(np.repeat(buckets.windows.doc, rows)[within])
            start = min(stop, end)
        return np.concatenate(places), np.concatenate(docs)

"""The feature browser: up to some 10^5 features with their contexts as one part of a page, packed and decoded in place.

Columns, not records. A vector is little-endian binary in base64 beside its type; ragged lists are one flat vector and
an `offsets` vector of n + 1 entries (feature i owns `flat[offsets[i]:offsets[i+1]]`). Tokens and document names are
numbers into tables. The activations of a context are 16-bit fractions of its largest one:

    level = round(65535 a / scale), at least 1 where a > 0       a ≈ level · scale / 65535, off by scale / 65535 at most

A long vector is packed: its bytes by significance (all lowest bytes, then the next ...), deflated; browsers inflate it.
The changes in logit of promoted and suppressed tokens keep 12 bits of mantissa (an error of 1 in 8,000, below what is
shown), which halves them.

Size and memory. Where all contexts do not fit into `budget` bytes, every feature shows the same number of its contexts,
always the strongest, the others evenly spaced over those recorded, and the page says so. While features are read,
contexts are held as columns of at most `HELD` bytes: beyond that they are thinned in the same way at once. The rest
needs about 0.5 kB a feature, and the finished text a few times `budget`.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from interp.errors import InputError
from interp.page.columns import Chips, Ragged, Rows, Table, as_numpy, ends, packed_size, vector
from interp.page.escape import json_block, json_text
from interp.page.parts import Part

LEVELS = 65535
BUDGET = 50_000_000
"""Bytes of a page that the browser's data may take: with plotly.js (5 MB) and the rest, a page stays below 60 MB."""
HELD = 256 * 2**20
"""Bytes of contexts held while features are read."""


@runtime_checkable
class ExampleLike(Protocol):
    """One context: a window of tokens, their activations, and which of them is the peak."""

    @property
    def doc_id(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def activation(self) -> float: ...
    @property
    def tokens(self) -> Sequence[str]: ...
    @property
    def activations(self) -> Sequence[float]: ...
    @property
    def peak(self) -> int: ...


@runtime_checkable
class FeatureLike(Protocol):
    """One feature: how often and how strongly it fires, what it writes towards, and where it fires most."""

    @property
    def index(self) -> int: ...
    @property
    def density(self) -> float: ...
    @property
    def max_activation(self) -> float: ...
    @property
    def mean_activation(self) -> float: ...
    @property
    def histogram(self) -> Sequence[int]: ...
    @property
    def edges(self) -> Sequence[float]: ...
    @property
    def promoted(self) -> Sequence[tuple[str, float]]: ...
    @property
    def suppressed(self) -> Sequence[tuple[str, float]]: ...
    @property
    def examples(self) -> Sequence[ExampleLike]: ...


@dataclass(frozen=True)
class FeatureBrowser(Part):
    """A searchable, sortable list of features beside the chosen one's card. `features` is read once, when rendered.

    `population` says over what densities were counted, such as "30,123 held-out tokens". A feature is dead when its
    density is 0. `budget` is the most bytes that the data may take on the page, see the module's docstring.
    """

    features: Iterable[FeatureLike]
    population: str
    budget: int = BUDGET

    @property
    def assets(self) -> tuple[str, ...]:
        return ("browser.css", "browser.js")

    def render(self, anchor: str) -> str:
        payload = encode(self.features, budget=self.budget) | {"population": self.population}
        return (
            f'<div class="browser" id="{anchor}" data-browser="{anchor}-data"></div>'
            f"{json_block(payload, id=f'{anchor}-data')}"
        )


def encode(features: Iterable[FeatureLike], *, budget: int = BUDGET, held: int = HELD) -> dict[str, Any]:
    """The features as columns, ready for JSON. Raises `InputError` on what the page could not show truthfully."""
    tokens, documents = Table(), Table()
    rows, hist, edges = Rows(4), Ragged(), Ragged()
    promoted, suppressed = Chips(tokens), Chips(tokens)
    contexts = _Contexts(tokens, documents, held)
    for feature in features:
        _check(feature)
        rows.add(feature.index, feature.density, feature.max_activation, feature.mean_activation)
        hist.add(feature.histogram)
        edges.add(feature.edges)
        promoted.add(feature.promoted)
        suppressed.add(feature.suppressed)
        for example in feature.examples:
            contexts.add(feature.index, example)
        contexts.close()
    index, density, largest, mean = rows.columns
    if len(set(index)) != len(index):
        raise InputError("two features have the same index; a page shows each feature once")
    data: dict[str, Any] = {
        "index": vector(index, "u4"),
        "density": vector(density, "f4"),
        "max": vector(largest, "f4"),
        "mean": vector(mean, "f4"),
        "histogram": {"offsets": hist.offsets(), "counts": vector(hist.flat, "u4")},
        "edges": {"offsets": edges.offsets(), "values": vector(edges.flat, "f4")},
        "promoted": promoted.columns(),
        "suppressed": suppressed.columns(),
    }
    size = packed_size(data) + sum(len(json_text(table.entries)) for table in (tokens, documents))
    if size > budget:
        raise InputError(
            f"{len(index):,} features take {size:,} bytes without any context, more than the budget of {budget:,}: "
            "give fewer features or a larger `budget`"
        )
    return data | contexts.within(budget - size) | {"tokens": tokens.entries, "documents": documents.entries}


class _Contexts:
    """The contexts of all features as columns; thinned when they grow beyond `held` bytes, and to a budget."""

    def __init__(self, tokens: "Table", documents: "Table", held: int) -> None:
        self._tokens, self._documents, self._held = tokens, documents, held
        self._rows = Rows(5)
        self._windows = Ragged()
        self._token, self._level = array("I"), array("H")
        self._bounds = array("Q", [0])
        self._recorded = array("I")
        self._recorded_here = 0
        self._most: int | None = None

    def add(self, index: int, example: ExampleLike) -> None:
        acts = _activations(index, example)
        scale = float(acts.max(initial=0.0))
        (document,) = self._documents.numbers([example.doc_id])
        self._rows.add(document, example.position, example.activation, example.peak, scale)
        self._token.extend(self._tokens.numbers(example.tokens))
        self._level.frombytes(_levels(acts, scale).tobytes())
        self._windows.count(len(acts))
        self._recorded_here += 1

    def close(self) -> None:
        """The end of a feature."""
        self._recorded.append(self._recorded_here)
        self._bounds.append(self._bounds[-1] + self._recorded_here)
        self._recorded_here = 0
        if 6 * len(self._token) + 40 * self._bounds[-1] > self._held:
            most = self._most or int(np.diff(as_numpy(self._bounds)).max())
            if most > 1:
                self._most = most // 2
                self._keep(self._most)

    def within(self, budget: int) -> dict[str, object]:
        """The columns, with as many contexts of each feature as fit into `budget` bytes."""
        if self._most is not None:
            self._keep(self._most)
        most = int(np.diff(as_numpy(self._bounds)).max(initial=0))
        while True:
            columns = self._columns()
            if (size := packed_size(columns)) <= budget or most == 0:
                recorded = int(as_numpy(self._recorded).max(initial=0))
                return {"examples": columns, "sampled": {"shown": most, "recorded": recorded}}
            most = min(most - 1, int(most * budget / size))
            self._keep(most)

    def _keep(self, most: int) -> None:
        """Thin to `most` contexts a feature: the strongest, and others evenly spaced among those there."""
        bounds = as_numpy(self._bounds)
        counts = np.diff(bounds)
        owner = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(bounds[-1]) - bounds[owner]
        # Place p of c is kept where floor(p m / c) is a new number: m of them, the first always.
        step, of = np.minimum(counts, most)[owner], counts[owner]
        kept = (step > 0) & ((place * step) // of != ((place - 1) * step) // of)
        widths = np.diff(as_numpy(self._windows.bounds))
        tokens = np.repeat(kept, widths)
        self._token = array("I", as_numpy(self._token)[tokens].tobytes())
        self._level = array("H", as_numpy(self._level)[tokens].tobytes())
        self._windows.bounds = array("Q", ends(widths[kept]).tobytes())
        self._rows.columns = [array("d", as_numpy(column)[kept].tobytes()) for column in self._rows.columns]
        self._bounds = array("Q", ends(np.minimum(counts, most)).tobytes())

    def _columns(self) -> dict[str, object]:
        document, position, activation, peak, scale = self._rows.columns
        return {
            "offsets": vector(self._bounds, "u4"),
            "document": vector(document, "u4"),
            "position": vector(position, "u4"),
            "activation": vector(activation, "f4"),
            "peak": vector(peak, "u2"),
            "scale": vector(scale, "f4"),
            "windows": self._windows.offsets(),
            "tokens": vector(self._token, self._tokens.dtype),
            "levels": vector(self._level, "u2"),
        }


def _check(feature: FeatureLike) -> None:
    """Refuse numbers that would be shown wrongly."""
    for name in ("density", "max_activation", "mean_activation"):
        value = getattr(feature, name)
        if not math.isfinite(value) or value < 0:
            raise InputError(f"feature {feature.index}: {name} is {value}; expected a finite number, 0 or larger")
    if len(feature.histogram) and len(feature.edges) != len(feature.histogram) + 1:
        raise InputError(
            f"feature {feature.index}: {len(feature.histogram)} histogram counts need {len(feature.histogram) + 1} "
            f"bin edges, got {len(feature.edges)}"
        )


def _activations(index: int, example: ExampleLike) -> np.ndarray:
    """A context's activations, once they fit its tokens and its peak."""
    acts = np.asarray(example.activations, dtype=np.float64)
    where = f"feature {index}, context in document {example.doc_id!r} at position {example.position}"
    if len(acts) != len(example.tokens) or not 0 <= example.peak < len(acts):
        raise InputError(
            f"{where}: {len(example.tokens)} tokens, {len(acts)} activations and peak {example.peak} do not fit"
        )
    if not np.isfinite(acts).all() or (acts < 0).any():
        raise InputError(f"{where}: activations have to be finite and 0 or larger, got {acts.tolist()}")
    return acts


def _levels(acts: np.ndarray, scale: float) -> np.ndarray:
    if scale == 0:
        return np.zeros(len(acts), dtype=np.uint16)
    return np.where(acts > 0, np.maximum(np.rint(acts / scale * LEVELS), 1), 0).astype(np.uint16)

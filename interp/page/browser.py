"""The feature browser: thousands of features with their contexts as one part of a page, packed and decoded in place.

Columns, not records. A vector is little-endian binary in base64 beside its type; ragged lists are one flat vector and
an `offsets` vector of n + 1 entries (feature i owns `flat[offsets[i]:offsets[i+1]]`). Tokens and document names are
numbers into tables. The activations of a context are 16-bit fractions of its largest one:

    level = round(65535 a / scale), at least 1 where a > 0       a ≈ level · scale / 65535, off by scale / 65535 at most
"""

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from interp.errors import InputError
from interp.page.escape import json_block
from interp.page.parts import Part

LEVELS = 65535
Number = int | float


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
    density is 0.
    """

    features: Iterable[FeatureLike]
    population: str

    @property
    def assets(self) -> tuple[str, ...]:
        return ("browser.css", "browser.js")

    def render(self, anchor: str) -> str:
        payload = encode(self.features) | {"population": self.population}
        return (
            f'<div class="browser" id="{anchor}" data-browser="{anchor}-data"></div>'
            f"{json_block(payload, id=f'{anchor}-data')}"
        )


def encode(features: Iterable[FeatureLike]) -> dict[str, object]:
    """The features as columns, ready for JSON. Raises `InputError` on what the page could not show truthfully."""
    tokens, documents = _Table(), _Table()
    rows, hist, windows = _Rows(), _Ragged(), _Ragged()
    edges, promoted, suppressed = _Ragged(), _Chips(tokens), _Chips(tokens)
    examples, window_tokens, window_levels = _Rows(), [], []
    for feature in features:
        _check(feature)
        rows.add(feature.index, feature.density, feature.max_activation, feature.mean_activation)
        hist.add(feature.histogram)
        edges.add(feature.edges)
        promoted.add(feature.promoted)
        suppressed.add(feature.suppressed)
        for example in feature.examples:
            acts = _activations(feature.index, example)
            scale = float(acts.max(initial=0.0))
            examples.add(
                *documents.numbers([example.doc_id]), example.position, example.activation, example.peak, scale
            )
            window_tokens.extend(tokens.numbers(example.tokens))
            window_levels.append(_levels(acts, scale))
            windows.count(len(acts))
        examples.close()
    index, density, largest, mean = rows.columns(4)
    if len(set(index)) != len(index):
        raise InputError("two features have the same index; a page shows each feature once")
    doc, position, activation, peak, scale = examples.columns(5)
    return {
        "tokens": tokens.entries,
        "documents": documents.entries,
        "index": vector(index, "u4"),
        "density": vector(density, "f4"),
        "max": vector(largest, "f4"),
        "mean": vector(mean, "f4"),
        "histogram": {"offsets": hist.offsets(), "counts": vector(hist.flat, "u4")},
        "edges": {"offsets": edges.offsets(), "values": vector(edges.flat, "f4")},
        "promoted": promoted.columns(),
        "suppressed": suppressed.columns(),
        "examples": {
            "offsets": vector(examples.bounds, "u4"),
            "document": vector(doc, "u4"),
            "position": vector(position, "u4"),
            "activation": vector(activation, "f4"),
            "peak": vector(peak, "u2"),
            "scale": vector(scale, "f4"),
            "windows": windows.offsets(),
            "tokens": vector(window_tokens, tokens.dtype),
            "levels": vector(np.concatenate(window_levels) if window_levels else [], "u2"),
        },
    }


def vector(values: Any, dtype: str) -> dict[str, str]:
    """A vector as `{"type": "u2", "base64": ...}`, little-endian; types are u2, u4 and f4."""
    array = np.asarray(values, dtype=f"<{dtype}")
    return {"type": dtype, "base64": base64.b64encode(array.tobytes()).decode("ascii")}


class _Table:
    """Distinct entries in order of first sight; an entry's number is its place."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def numbers(self, entries: Iterable[str]) -> list[int]:
        known = self._numbers
        return [known.setdefault(entry, len(known)) for entry in entries]

    @property
    def entries(self) -> list[str]:
        return list(self._numbers)

    @property
    def dtype(self) -> str:
        return "u2" if len(self._numbers) <= 1 << 16 else "u4"


class _Rows:
    """Records that become columns, with bounds that close() sets behind each owner's records."""

    def __init__(self) -> None:
        self._rows: list[tuple[Number, ...]] = []
        self.bounds = [0]

    def add(self, *cells: Number) -> None:
        self._rows.append(cells)

    def close(self) -> None:
        self.bounds.append(len(self._rows))

    def columns(self, width: int) -> list[Sequence[Number]]:
        return list(zip(*self._rows, strict=True)) if self._rows else [()] * width


class _Ragged:
    """Lists of different lengths, end to end."""

    def __init__(self) -> None:
        self.flat: list[Number] = []
        self._bounds = [0]

    def add(self, values: Iterable[Number]) -> None:
        before = len(self.flat)
        self.flat.extend(values)
        self.count(len(self.flat) - before)

    def count(self, length: int) -> None:
        self._bounds.append(self._bounds[-1] + length)

    def offsets(self) -> dict[str, str]:
        return vector(self._bounds, "u4")


class _Chips:
    """Lists of (token, value)."""

    def __init__(self, tokens: _Table) -> None:
        self._tokens, self._numbers, self._values = tokens, _Ragged(), _Ragged()

    def add(self, pairs: Iterable[tuple[str, float]]) -> None:
        pairs = list(pairs)
        self._numbers.add(self._tokens.numbers(token for token, _ in pairs))
        self._values.add(value for _, value in pairs)

    def columns(self) -> dict[str, object]:
        return {
            "offsets": self._numbers.offsets(),
            "tokens": vector(self._numbers.flat, "u4"),
            "values": vector(self._values.flat, "f4"),
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

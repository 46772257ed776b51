"""Columns of a page's data: packed vectors, tables of entries, ragged lists. The packing: see `interp.page.browser`."""

import base64
import zlib
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_PACKED_FROM = 4096
Number = int | float


def vector(values: Any, dtype: str) -> dict[str, Any]:
    """A vector as `{"type": "u2", "base64": ...}`, little-endian, with `"packed": true` if so; u2, u4 and f4."""
    found = np.ascontiguousarray(values, dtype=f"<{dtype}")
    if found.nbytes >= _PACKED_FROM:
        planes = found.view(np.uint8).reshape(-1, found.itemsize).T.tobytes()
        return {"type": dtype, "packed": True, "base64": _base64(zlib.compress(planes, 6))}
    return {"type": dtype, "base64": _base64(found.tobytes())}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def packed_size(data: Any) -> int:
    """Bytes of packed vectors in a nest of mappings."""
    if isinstance(data, Mapping):
        return sum(map(packed_size, data.values())) + 30
    return len(data) if isinstance(data, str) else 0


def as_numpy(column: array) -> np.ndarray:
    """A copy, since an array that numpy looks at cannot grow; bounds as signed numbers, whose differences may fall."""
    return np.array(column, dtype=np.int64 if column.typecode == "Q" else None)


def ends(counts: np.ndarray) -> np.ndarray:
    """Bounds of lists of these lengths, end to end."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)


class Table:
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


class Rows:
    """Records that become columns of float64, which holds every index, count and float32 exactly."""

    def __init__(self, width: int) -> None:
        self.columns = [array("d") for _ in range(width)]

    def add(self, *cells: Number) -> None:
        for column, cell in zip(self.columns, cells, strict=True):
            column.append(cell)


class Ragged:
    """Lists of different lengths, end to end."""

    def __init__(self) -> None:
        self.flat = array("d")
        self.bounds = array("Q", [0])

    def add(self, values: Iterable[Number]) -> None:
        before = len(self.flat)
        self.flat.extend(values)
        self.count(len(self.flat) - before)

    def count(self, length: int) -> None:
        self.bounds.append(self.bounds[-1] + length)

    def offsets(self) -> dict[str, Any]:
        return vector(self.bounds, "u4")


class Chips:
    """Lists of (token, value)."""

    def __init__(self, tokens: Table) -> None:
        self._tokens, self._numbers, self._values = tokens, Ragged(), array("d")

    def add(self, pairs: Iterable[tuple[str, float]]) -> None:
        pairs = list(pairs)
        self._numbers.add(self._tokens.numbers(token for token, _ in pairs))
        self._values.extend(value for _, value in pairs)

    def columns(self) -> dict[str, object]:
        return {
            "offsets": self._numbers.offsets(),
            "tokens": vector(self._numbers.flat, self._tokens.dtype),
            "values": vector(rounded(self._values), "f4"),
        }


def rounded(values: Any) -> np.ndarray:
    """float32 with 12 bits of mantissa, nearest; the bits left out are zero and pack to nothing."""
    bits = np.array(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 10)) & np.uint32(0xFFFFF800)).view(np.float32)

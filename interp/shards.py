"""One shard of an activation store: a safetensors file written row by row, checked by sha256, read without copying.

    token, doc, position    int32 [n]           which token, which document of the token file, where in that document
    SITE.scale ...          fp32 [n, ...]       in one-byte formats: a scale per row (and head), see `interp.quantised`
    SITE ...                [n, ...]            one tensor per site, under TransformerLens's name, in the store's dtype

The number of rows is known before the first of them is computed, so the header is final from the start and each batch
of rows goes straight to its place in every tensor: nothing is held in memory until the shard is full. Checksums are
sha256, one for the header and one per tensor (each tensor is written in order, so its hash grows with it). sha256 runs
at 1.8 GB/s on one core with SHA extensions, far above what an extraction produces on it.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError
from interp.quantised import KINDS, add, scale_name
from interp.sealing import NOT_JSON, discard, partial_name, publish

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DTYPES |= {name: kind.dtype for name, kind in KINDS.items()}
KEYS = ("token", "doc", "position")
_CODES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "int32": "I32",
    "int8": "I8",
    "float8_e4m3": "F8_E4M3",
}
_NUMPY = {"BF16": "<i2", "F16": "<f2", "F32": "<f4", "I32": "<i4", "I8": "|i1", "F8_E4M3": "|u1"}
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I8": 1, "F8_E4M3": 1}
_TORCH = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}  # which numpy has not
_LONGEST_HEADER = 1 << 24
_FLUSH = 1 << 26
_SPREAD_FROM = 1 << 20
Spread = Callable[..., Iterable[Any]]


def read_dtype(dtype: str) -> torch.dtype:
    """What rows stored in `dtype` are read as."""
    return torch.float32 if dtype in KINDS else DTYPES[dtype]


@dataclass(frozen=True)
class Layout:
    """The tensors of a shard: the three keys, then scales if there are any, then one per site; shapes are of a row."""

    sites: dict[str, tuple[int, ...]]
    dtype: str

    @property
    def rows(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of the tensors beside the keys. Scales come first, so that they lie at multiples of 4."""
        scales = {scale_name(name): ("float32", shape[:-1]) for name, shape in self.sites.items()}
        return (scales if self.dtype in KINDS else {}) | {name: (self.dtype, s) for name, s in self.sites.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all tensors."""
        return 4 * len(KEYS) + sum(_BYTES[_CODES[dtype]] * prod(shape) for dtype, shape in self.rows.values())

    def header(self, rows: int, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
        """The safetensors header of a shard of `rows` rows, and where each tensor begins in the file."""
        entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        at = 0
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {name: ("int32", ()) for name in KEYS}
        for name, (dtype, shape) in (tensors | self.rows).items():
            size = rows * prod(shape) * _BYTES[_CODES[dtype]]
            entries[name] = {"dtype": _CODES[dtype], "shape": [rows, *shape], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % 64)
        head = len(text).to_bytes(8, "little") + text
        return head, {name: len(head) + entries[name]["data_offsets"][0] for name in tensors | self.rows}


class ShardWriter:
    """Writes one shard under a temporary name; `seal()` makes it permanent and returns its entry for the manifest."""

    def __init__(
        self, path: Path, layout: Layout, rows: int, metadata: Mapping[str, str], *, spread: Spread = map
    ) -> None:
        """`spread` maps a function over large tensors, in several threads if it likes."""
        self.path, self.rows, self.written, self.spread = path, rows, 0, spread
        head, self._at = layout.header(rows, metadata)
        self.size = len(head) + rows * layout.row_bytes
        self._hashes = {"header": hashlib.sha256(head)} | {name: hashlib.sha256() for name in self._at}
        self._error: dict[str, dict[str, float]] = {}
        partial_name(path).unlink(missing_ok=True)  # a link of that name would be written through
        self._handle = os.open(partial_name(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._unsynced = len(head)
        _write_all(self._handle, memoryview(head), 0)

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Write the next rows of every tensor."""
        contents = raw(columns)
        self.digest(contents)
        self.put(contents)

    def digest(self, contents: Mapping[str, memoryview]) -> None:
        """Take the next bytes of every tensor into the checksums; `put` may run at the same time."""

        def one(name: str) -> None:
            self._hashes[name].update(contents[name])

        self._each(one, contents)

    def put(self, contents: Mapping[str, memoryview]) -> None:
        """Write the next bytes of every tensor to their place in the file."""

        def one(name: str) -> None:
            _write_all(self._handle, contents[name], self._at[name])

        self._each(one, contents)
        for name, content in contents.items():
            self._at[name] += len(content)
            self._unsynced += len(content)
        self.written += len(contents["token"]) // _BYTES["I32"]
        if self._unsynced >= _FLUSH:  # so that the last fsync, which the next shard waits for, is short
            os.fdatasync(self._handle)
            self._unsynced = 0

    def _each(self, one: Callable[[str], None], contents: Mapping[str, memoryview]) -> None:
        """`one` for every tensor; large ones spread over threads. Each has its own checksum and place in the file."""
        large = [name for name, content in contents.items() if len(content) >= _SPREAD_FROM]
        for name in contents:
            if len(large) < 2 or name not in large:
                one(name)
        for _ in self.spread(one, large if len(large) > 1 else ()):
            pass

    def measured(self, error: Mapping[str, Mapping[str, float]]) -> None:
        """Count the error of the next rows of each site, where their format has one worth stating."""
        add(self._error, error)

    def seal(self) -> dict[str, Any]:
        """All rows are there: fsync, rename."""
        assert self.written == self.rows, f"{self.written} of {self.rows} rows were written"
        os.close(self._handle)
        self._handle = -1
        publish(partial_name(self.path), self.path)
        sums = {name: value.hexdigest() for name, value in self._hashes.items()}
        error = {"error": self._error} if self._error else {}
        return {"name": self.path.name, "rows": self.rows, "bytes": self.size, "sha256": sums, **error}

    def abandon(self) -> None:
        """Give up an unfinished shard and its disk space."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        discard(partial_name(self.path))


def raw(columns: Mapping[str, np.ndarray]) -> dict[str, memoryview]:
    """The bytes of each tensor, without a copy where it is contiguous."""
    return {name: np.ascontiguousarray(column).data.cast("B") for name, column in columns.items()}


def _write_all(handle: int, content: memoryview, offset: int) -> None:
    while content:
        done = os.pwrite(handle, content, offset)
        content, offset = content[done:], offset + done


def damage(folder: Path, entry: Mapping[str, Any], *, contents: bool = True) -> str | None:
    """What is wrong with the shard that `entry` describes, or None; without `contents` only its size is looked at."""
    path = folder / entry["name"]
    if not path.exists():
        return f"{entry['name']} is missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"{entry['name']} holds {size:,} bytes instead of {entry['bytes']:,}: it is truncated or overwritten"
    if not contents:
        return None
    for name, wanted in entry["sha256"].items():
        if _sha256(path, name) != wanted:
            return f"{entry['name']} is damaged: the sha256 of its {name} is not the one in the manifest"
    return None


def _sha256(path: Path, name: str) -> str | None:
    """sha256 of the header or of one tensor; None where the header does not even lead there."""
    with path.open("rb") as file:
        head = file.read(8)
        head += file.read(min(int.from_bytes(head, "little"), _LONGEST_HEADER))
        if name == "header":
            return hashlib.sha256(head).hexdigest()
        try:
            first, stop = json.loads(head[8:])[name]["data_offsets"]
            if not (isinstance(first, int) and isinstance(stop, int) and 0 <= first <= stop):
                return None
        except (KeyError, TypeError, *NOT_JSON):
            return None
        file.seek(len(head) + first)
        value, left = hashlib.sha256(), stop - first
        while left > 0 and (block := file.read(min(left, 1 << 22))):
            value.update(block)
            left -= len(block)
        return value.hexdigest()


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the data begin, and their bytes; a `ValueError` if the file's size does not allow it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"its header claims {length:,} bytes of a file of {size:,}")
        header = json.loads(file.read(length))
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is no table of tensors")
    return header, 8 + length, size - 8 - length


def _check_header(header: Mapping[str, Any], data: int) -> None:
    """A `ValueError` for a tensor that is not inside the data, or is of another size than its shape says."""
    for name, entry in header.items():
        fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
        dtype, shape, offsets = fields.get("dtype"), fields.get("shape", 0), fields.get("data_offsets", 0)
        whole = all(
            isinstance(found, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in found)
            for found in (shape, offsets)
        )
        if not whole or not isinstance(dtype, str) or dtype not in _BYTES or len(offsets) != 2:
            raise ValueError(f"its header describes {name!r:.80} as {entry!r:.120}")
        if offsets[1] > data or offsets[1] - offsets[0] != prod(shape) * _BYTES[dtype]:
            raise ValueError(f"{name!r:.80} of shape {shape} and dtype {dtype} cannot lie at the bytes {offsets}")


def _check_layout(header: Mapping[str, Any], layout: Layout, rows: int) -> None:
    """A `ValueError` unless the tensors are those of a layout."""
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {name: ("int32", ()) for name in KEYS}
    for name, (dtype, shape) in (wanted | layout.rows).items():
        found = header.get(name, {})
        if (found.get("dtype"), found.get("shape")) != (expected := (_CODES[dtype], [rows, *shape])):
            raise ValueError(f"it holds {name} as {found.get('dtype')} {found.get('shape')}, expected {expected}")


class Shard:
    """A finished shard, memory-mapped: `shard[name]` shares the file's pages; writing to it never reaches the file."""

    def __init__(self, path: Path, *, layout: Layout | None = None, rows: int | None = None) -> None:
        """With `layout` and `rows`, the file has to be what they say."""
        self.path = path
        try:
            self._header, begin, data = _read_header(path)
            self.metadata: dict[str, str] = self._header.pop("__metadata__", {})
            _check_header(self._header, data)
            if layout is not None and rows is not None:
                _check_layout(self._header, layout, rows)
        except (OSError, *NOT_JSON) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                raise  # which is not the shard's fault
            raise InputError(f"{path} is no readable shard ({error}); run the extraction again to restore it") from None
        # torch's map keeps no file open, where numpy's does: a store may have more shards than a process has files
        self._data = torch.from_file(str(path), shared=False, size=begin + data, dtype=torch.uint8).numpy()[begin:]
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str) -> np.ndarray:
        """The tensor as numpy sees it: bfloat16 as int16, float8 as uint8."""
        if name not in self._header:
            raise InputError(f"{self.path} holds no tensor {name!r:.80}; there are {', '.join(self._header)}")
        if name not in self._arrays:
            entry = self._header[name]
            first, stop = entry["data_offsets"]
            array = self._data[first:stop].view(_NUMPY[entry["dtype"]]).reshape(entry["shape"])
            self._arrays[name] = array.view(np.ndarray)
        return self._arrays[name]

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.from_numpy(self.array(name))
        own = _TORCH.get(self._header[name]["dtype"])
        return tensor if own is None else tensor.view(own)

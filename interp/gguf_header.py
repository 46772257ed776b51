"""The header of a GGUF file: its scalar metadata and its tensors' quantisation, without vocabulary and weights.

    magic "GGUF" · version u32 · tensors u64 · keys u64 · (key, type u32, value)* · (name, dims, type u32, offset)*

Strings are a u64 length and bytes, little-endian throughout. The gguf package reads the same, but walks every token of
the vocabulary in Python, which takes seconds. Source: the GGUF specification in ggml's documentation.
"""

import math
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from interp.errors import InputError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LEAST_KEY, _LEAST_TENSOR = 13, 24
"""Bytes of the shortest entry: an empty name, a type and one byte; an empty name, no axes, a type and an offset."""
_MOST_AXES, _DEEPEST, _MOST_ENTRIES = 8, 4, 1_000_000


@dataclass(frozen=True)
class GGUFHeader:
    """`fields`: metadata without arrays. `tensor_types`: ggml type number -> how many tensors have it."""

    fields: dict[str, Any]
    tensor_types: dict[int, int]

    @property
    def quantisation(self) -> str:
        """The names of the tensor types, most frequent first: `Q4_1 x210, F32 x61, Q8_0 x1`."""
        from gguf import GGMLQuantizationType

        common = Counter(self.tensor_types).most_common()
        return ", ".join(f"{GGMLQuantizationType(number).name} x{count}" for number, count in common)


def read_header(path: Path) -> GGUFHeader:
    """Read the header; a file that is none, ends inside it, or is shorter than it says, is an `InputError`."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise InputError(f"{path} is not a GGUF file: it does not start with the bytes 'GGUF'")
            bounded = _Bounded(stream, path.stat().st_size)
            _, tensors, keys = bounded.unpack("<IQQ")
            bounded.expect(keys * _LEAST_KEY + tensors * _LEAST_TENSOR)
            if max(keys, tensors) > _MOST_ENTRIES:
                raise _Damaged(f"{keys:,} keys and {tensors:,} tensors are announced")
            fields = dict(_field(bounded) for _ in range(keys))
            found = [_tensor(bounded) for _ in range(tensors)]
            _check_tensors(found, fields, bounded)
    except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError, _Damaged) as error:
        raise InputError(f"{path} is damaged or cut off inside its GGUF header ({error}); fetch it again") from error
    types = Counter(tensor.kind for tensor in found)
    return GGUFHeader({key: value for key, value in fields.items() if value is not None}, dict(types))


class _Damaged(Exception):
    """What a header says cannot be."""


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Bounded:
    """A stream of known size: nothing is read, and no memory taken, for what the file is too short to hold."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size

    def expect(self, count: int) -> None:
        """There must be so many bytes left."""
        if count > (left := self.size - self.stream.tell()):
            raise _Damaged(f"{count:,} bytes are announced where {left:,} are left")

    def read(self, count: int) -> bytes:
        self.expect(count)
        return self.stream.read(count)

    def skip(self, count: int) -> None:
        self.expect(count)
        self.stream.seek(count, 1)

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.read(struct.calcsize(form)))

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        return self.read(length).decode()


def _field(stream: _Bounded) -> tuple[str, Any]:
    key = stream.string()
    (kind,) = stream.unpack("<I")
    return key, _value(stream, kind)


def _value(stream: _Bounded, kind: int, depth: int = 0) -> Any:
    if kind == _STRING:
        return stream.string()
    if kind != _ARRAY:
        return stream.unpack("<" + _SCALARS[kind])[0]
    if depth > _DEEPEST:
        raise _Damaged(f"arrays in arrays, more than {_DEEPEST} deep")
    inner, count = stream.unpack("<IQ")
    if inner in _SCALARS:
        stream.skip(count * struct.calcsize("<" + _SCALARS[inner]))
    else:
        stream.expect(8 * count)
        for _ in range(count):
            _value(stream, inner, depth + 1)
    return None


def _tensor(stream: _Bounded) -> _Tensor:
    name = stream.string()
    (axes,) = stream.unpack("<I")
    if axes > _MOST_AXES:
        raise _Damaged(f"the tensor {name!r:.80} has {axes:,} axes")
    shape = stream.unpack(f"<{axes}Q")
    kind, offset = stream.unpack("<IQ")
    return _Tensor(name, shape, kind, offset)


def _check_tensors(tensors: Sequence[_Tensor], fields: dict[str, Any], stream: _Bounded) -> None:
    """Every tensor has a name of its own and a known type, and lies inside the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise _Damaged(f"general.alignment is {alignment!r:.40}")
    begin = -(-stream.stream.tell() // alignment) * alignment
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise _Damaged("two tensors have the same name")
    for name, shape, kind, offset in tensors:
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise _Damaged(f"the tensor {name!r:.80} has the unknown type {kind}") from None
        end = begin + offset + math.prod(shape) // block * size
        if end > stream.size:
            raise _Damaged(f"the tensor {name!r:.80} ends at byte {end:,} of {stream.size:,}")

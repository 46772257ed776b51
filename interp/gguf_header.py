"""The header of a GGUF file: its scalar metadata and its tensors' quantisation, without vocabulary and weights.

    magic "GGUF" · version u32 · tensors u64 · keys u64 · (key, type u32, value)* · (name, dims, type u32, offset)*

Strings are a u64 length and bytes, little-endian throughout. The gguf package reads the same, but walks every token of
the vocabulary in Python, which takes seconds. Source: the GGUF specification in ggml's documentation.
"""

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from interp.errors import InputError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


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
    """Read the header; a file that is none, or ends inside it, is an `InputError`."""
    with path.open("rb") as stream:
        try:
            if stream.read(4) != b"GGUF":
                raise InputError(f"{path} is not a GGUF file: it does not start with the bytes 'GGUF'")
            _, tensors, keys = _unpack(stream, "<IQQ")
            fields = dict(_field(stream) for _ in range(keys))
            types = Counter(_tensor_type(stream) for _ in range(tensors))
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise InputError(
                f"{path} is damaged or cut off inside its GGUF header ({error}); fetch it again"
            ) from error
    return GGUFHeader({key: value for key, value in fields.items() if value is not None}, dict(types))


def _unpack(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def _string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "<Q")
    return stream.read(length).decode()


def _field(stream: BinaryIO) -> tuple[str, Any]:
    key = _string(stream)
    (kind,) = _unpack(stream, "<I")
    return key, _value(stream, kind)


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _unpack(stream, "<" + _SCALARS[kind])[0]
    inner, count = _unpack(stream, "<IQ")
    if inner in _SCALARS:
        stream.seek(count * struct.calcsize("<" + _SCALARS[inner]), 1)
    else:
        for _ in range(count):
            _value(stream, inner)
    return None


def _tensor_type(stream: BinaryIO) -> int:
    _string(stream)
    (dims,) = _unpack(stream, "<I")
    stream.seek(8 * dims, 1)
    kind, _ = _unpack(stream, "<IQ")
    return kind

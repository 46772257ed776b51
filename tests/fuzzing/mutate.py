"""Bad inputs made of good ones: one to three small changes, where the format has its joints.

    mutated(data, kind, random)      kind: text, json, jsonl, safetensors, bytes

The same function serves the property tests and, beside libFuzzer's own mutations, the coverage-guided runs.
"""

import json
import struct
from random import Random
from typing import Any, Literal, get_args

Kind = Literal["text", "json", "jsonl", "safetensors", "bytes"]
KINDS = get_args(Kind)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 255, 2**31, -(2**31) - 1, 2**63, 2**64, 10**40, -0.0, 0.5, 1e308, 1e400, -1e400,
    float("nan"), "", " ", "a", "\x00", "../../up", "/etc/passwd", "\ud800", "٣", "1e5", "null", "x" * 300, [], {},
    [[]], [None], [1, [2]], {"": None}, {"a": {"a": {}}}, [0] * 50, ["a", 1, None], "blocks.0.hook_resid_post",
)  # fmt: skip
_SCRAPS = (
    "\x00", "\ud800", "٣", "²", "\u2028", "\r", "\n", "\t", " ", "-", "+", "/", "//", ":", "://", ".", "..", "[", "]",
    "{", "}", '"', "'", ",", "=", "#", "%", "\\", "_", "e", "0", "9" * 40, "9" * 5000, "None", "NaN", "é", "\ufeff",
)  # fmt: skip
_WORDS = [
    struct.pack(form, value)
    for form, values in (("<B", (0, 1, 127, 128, 255)), ("<H", (0, 65535)), ("<I", (0, 1, 2**31, 2**32 - 1)),
                         ("<Q", (0, 1, 8, 2**31, 2**40, 2**63, 2**64 - 1)))
    for value in values
]  # fmt: skip
DEEP = b"[" * 100_000
"""Nested beyond what a recursive reader can follow; with `HUGE`, in every seed list of a JSON format."""
HUGE = b"9" * 5000
"""More digits than Python turns into an int."""


def mutated(data: bytes, kind: Kind, random: Random) -> bytes:
    """One to three changes; now and then of the raw bytes, whatever the kind."""
    for _ in range(random.randint(1, 3)):
        change = _CHANGES[kind] if random.random() < 0.85 else _bytes
        data = change(data, random)
    return data


def _text(data: bytes, random: Random) -> bytes:
    text = data.decode("utf-8", "surrogatepass" if random.random() < 0.5 else "replace") if _is_text(data) else ""
    at, end = sorted((random.randint(0, len(text)), random.randint(0, len(text))))
    match random.randrange(4):
        case 0:
            text = text[:at] + random.choice(_SCRAPS) + text[at:]
        case 1:
            text = text[:at] + text[min(end, at + 8) :]
        case 2:
            text = text[:at] + text[at:end] * 2 + text[end:]
        case _:
            text = text[:at] + random.choice(_SCRAPS) + text[at + 1 :]
    return text.encode("utf-8", "surrogatepass")


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _json(data: bytes, random: Random) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _text(data, random)
    return written(changed(value, random))


def written(value: Any) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates included."""
    return json.dumps(value).encode()


def changed(value: Any, random: Random) -> Any:
    """The value with one place replaced, removed, added, renamed or exchanged for another."""
    places = list(_places(value))
    parent, key = random.choice(places) if places else (None, None)
    if parent is None or random.random() < 0.02:
        return random.choice(ODD)
    match random.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key)
        case 1:
            parent.insert(key, random.choice(ODD))
        case 2 if isinstance(parent, dict):
            parent[random.choice(("", "extra", "__class__", "name", "0"))] = random.choice(ODD)
        case 3:
            other, there = random.choice(places)
            if there in (other if isinstance(other, dict) else range(len(other))):
                parent[key] = json.loads(json.dumps(other[there]))  # a copy: a value inside itself is no JSON
        case _:
            parent[key] = random.choice(ODD)
    return value


def _places(value: Any) -> Any:
    """(container, key) of every value below the top; of long lists, the first and last few."""
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value))) if len(value) < 12 else [0, 1, 2, len(value) - 2, len(value) - 1]
    else:
        return
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _jsonl(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, random.choice(lines))
        case 2:
            lines[at] = _text(lines[at], random)
        case _:
            lines[at] = _json(lines[at], random)
    return b"\n".join(lines)


def _safetensors(data: bytes, random: Random) -> bytes:
    """The header as JSON, its length set right (or, rarely, left wrong); or the bytes behind it."""
    size = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + size], data[8 + size :]
    if random.random() < 0.3:
        return data[: 8 + size] + _bytes(body, random)
    try:
        value = json.loads(head)
        facts = value.get("__metadata__", {}).get("midlens")
    except (ValueError, RecursionError, AttributeError):
        return _bytes(data, random)
    if isinstance(facts, str) and random.random() < 0.5:
        inner = _told(facts, random)
        if isinstance(inner, dict):
            inner.pop("sha256", None)  # else the digest alone refuses it, and nothing behind is reached
        value["__metadata__"]["midlens"] = json.dumps(inner)
    else:
        value = changed(value, random)
    head = written(value)
    head += b" " * (-len(head) % 8)
    size = len(head) if random.random() < 0.95 else random.choice((0, 1, len(head) + 8, 2**31, 2**40, 2**63))
    return size.to_bytes(8, "little") + head + body


def _told(facts: str, random: Random) -> Any:
    try:
        return changed(json.loads(facts), random)
    except (ValueError, RecursionError):
        return random.choice(ODD)


def _bytes(data: bytes, random: Random) -> bytes:
    at = random.randint(0, len(data))
    match random.randrange(6):
        case 0 if data:
            at = min(at, len(data) - 1)
            return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + data[min(len(data), at + random.choice((1, 2, 4, 8, 64))) :]
        case 2:
            return data[:at] + random.randbytes(random.choice((1, 2, 4, 8, 32))) + data[at:]
        case 3:
            return data[:at]
        case _:
            word = random.choice(_WORDS)
            return data[:at] + word + data[at + len(word) :]


_CHANGES = {"text": _text, "json": _json, "jsonl": _jsonl, "safetensors": _safetensors, "bytes": _bytes}

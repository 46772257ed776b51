"""The manifest of an activation store, and the names of its files: what makes separate parts and shards one store."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from interp.errors import InputError
from interp.quantised import KINDS, summary
from interp.shards import DTYPES, KEYS, Layout
from interp.sites import Site

FORMAT = "midlens-activations"
VERSIONS = (1, 2)
"""1: rows in a dtype of two or four bytes. 2: in one byte, with scales, which readers of version 1 have to refuse."""


def version_of(dtype: str) -> int:
    """The version of the format that a store of this dtype needs."""
    return 2 if dtype in KINDS else 1


def contents(row_shapes: Any, dtype: str, parts: list[dict[str, Any]], shards: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest of a store with these parts and shards."""
    error = summary(shards)
    return {
        "format": FORMAT,
        "version": version_of(dtype),
        "dtype": dtype,
        "row_shapes": row_shapes,
        "rows": sum(entry["rows"] for entry in shards),
        **({"error": error} if error else {}),
        "checksum": "sha256 of the header and of each tensor's bytes",
        "parts": parts,
        "shards": shards,
    }


def part_file(number: int) -> str:
    """The plan of part `number`."""
    return "plan.json" if number == 0 else f"plan-{number:05}.json"


def shard_file(number: int) -> str:
    """The name of shard `number`."""
    return f"shard-{number:05}.safetensors"


def model_side(manifest: dict[str, Any]) -> dict[str, Any]:
    """What all parts of one store share."""
    spec = manifest["parts"][0]["spec"]
    names = ("model", "revision", "compute_dtype", "dtype", "sites")
    return {name: spec.get(name) for name in names} | {"row_shapes": manifest["row_shapes"]}


def next_doc(parts: Sequence[dict[str, Any]], tokens: str) -> int:
    """The number that document 0 of the token file `tokens` gets behind `parts`: the same file keeps its number."""
    for part in parts:
        if part["spec"]["tokens"] == tokens:
            return part["first_doc"]
    return max((part["first_doc"] + part["file_documents"] for part in parts), default=0)


_COUNTS = ("rows", "shards", "first_doc", "file_documents", "documents", "tokens", "splits")
_TABLES = ("spec", "excluded", "versions")
_WIDEST = 2**31
_MOST = 2**53


def known_format(manifest: Any, path: str) -> dict[str, Any]:
    """`manifest`, if it is that of an activation store which can exist; nothing in it then leads out of the folder."""
    found = manifest if isinstance(manifest, dict) else {}
    if found.get("format") != FORMAT or found.get("version") not in VERSIONS or isinstance(found["version"], bool):
        raise InputError(
            f"{path} is no activation store of version {' or '.join(map(str, VERSIONS))} (found "
            f"{found.get('format')!r:.80}, version {found.get('version')!r:.80})"
        )
    if wrong := _wrong(found):
        raise InputError(f"the manifest of {path} is not one that an extraction writes: {wrong}; make the store again")
    return found


def _wrong(manifest: Mapping[str, Any]) -> str | None:
    """The first thing that no manifest has, or None."""
    dtype, shapes, parts, shards = (manifest.get(name) for name in ("dtype", "row_shapes", "parts", "shards"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"dtype is {dtype!r:.80}, expected one of {', '.join(DTYPES)}"
    if not isinstance(shapes, dict) or not shapes:
        return f"row_shapes is {shapes!r:.80}, expected a shape for every site"
    for site, shape in shapes.items():
        if str(Site.parse(site)) != site or not _is_shape(shape):
            return f"the rows of {site!r:.80} have the shape {shape!r:.80}"
    for name, value in (("parts", parts), ("shards", shards)):
        if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
            return f"{name} is {value!r:.80}, expected a list of at least one object"
    assert parts is not None and shards is not None
    faults = [*map(_wrong_part, range(len(parts)), parts)]
    layout = Layout({name: tuple(shape) for name, shape in shapes.items()}, dtype)
    faults += [wrong_entry(entry, number, layout) for number, entry in enumerate(shards)]
    if found := next(filter(None, faults), None):
        return found
    if (said := sum(part["shards"] for part in parts)) != len(shards):
        return f"its parts speak of {said} shards, and it lists {len(shards)}"
    error = manifest.get("error", {})
    sound = isinstance(error, dict) and all(
        isinstance(one, dict) and _all_numbers(one.values()) for one in error.values()
    )
    return None if sound else f"error is {error!r:.80}"


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and 1 <= len(shape) <= 4 and all(_is_count(n, 1, _WIDEST) for n in shape)


def _is_count(value: Any, least: int = 0, most: int = _MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _all_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _wrong_part(number: int, part: Mapping[str, Any]) -> str | None:
    at = f"part {number}"
    if part.get("plan") != part_file(number):
        return f"{at} has its plan in {part.get('plan')!r:.80}, expected {part_file(number)}"
    if odd := [name for name in _COUNTS if not _is_count(part.get(name))]:
        return f"{at}: {odd[0]} is {part.get(odd[0])!r:.80}, expected a whole number"
    if odd := [name for name in _TABLES if not isinstance(part.get(name), dict)]:
        return f"{at}: {odd[0]} is {part.get(odd[0])!r:.80}, expected an object"
    if not all(map(_is_count, part["excluded"].values())) or not _all_numbers([part.get("padding_waste")]):
        return f"{at}: what was left out is not counted in numbers"
    return None


def wrong_entry(entry: Mapping[str, Any], number: int, layout: Layout | None = None) -> str | None:
    """What no extraction writes about shard `number`, or None. A `layout` says what tensors it has, and how large."""
    name, rows, size, sums = entry.get("name"), entry.get("rows", 0), entry.get("bytes", 0), entry.get("sha256")
    if name != shard_file(number):
        return f"shard {number} is in {name!r:.80}, expected {shard_file(number)}"
    if not _is_count(rows, 1) or not _is_count(size, 1):
        return f"{name} has {rows!r:.40} rows in {size!r:.40} bytes"
    if not isinstance(sums, dict) or not all(re.fullmatch("[0-9a-f]{64}", str(value)) for value in sums.values()):
        return f"{name} has no sha256 of each tensor"
    if layout is None:
        return None
    if sums.keys() != (wanted := {"header", *KEYS, *layout.rows}):
        return f"{name} has the tensors {', '.join(sorted(sums))!r:.200}, expected {', '.join(sorted(wanted))}"
    if (least := rows * layout.row_bytes) > size:
        return f"{name} has {rows:,} rows, which take {least:,} bytes, in {size:,}"
    return None

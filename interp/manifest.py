"""The manifest of an activation store, and the names of its files: what makes separate parts and shards one store."""

from collections.abc import Sequence
from typing import Any

from interp.quantised import KINDS, summary

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
    return {name: spec[name] for name in names} | {"row_shapes": manifest["row_shapes"]}


def next_doc(parts: Sequence[dict[str, Any]], tokens: str) -> int:
    """The number that document 0 of the token file `tokens` gets behind `parts`: the same file keeps its number."""
    for part in parts:
        if part["spec"]["tokens"] == tokens:
            return part["first_doc"]
    return max((part["first_doc"] + part["file_documents"] for part in parts), default=0)

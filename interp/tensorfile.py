"""Tensors in one safetensors file that appears whole or not at all, and that notices a flipped bit when read.

The safetensors format finds a truncated file by itself, but not a changed byte inside a tensor. The digest of all
names, types, shapes and bytes therefore stands in the file's own header, beside an optional JSON value (`facts`): one
file, one rename, nothing that another program has to know about. A file without a digest (written elsewhere) is read
as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import InputError
from interp.sealing import NOT_JSON, beyond_memory, discard, disk_error, partial_name, publish

KEY = "midlens"
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensors_digest(tensors: Mapping[str, Tensor], facts: Any = None) -> str:
    """sha256 over names, types, shapes and bytes, and the facts."""
    sha = hashlib.sha256(json.dumps(facts).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Any = None) -> None:
    """Write tensors, and `facts` as JSON beside them, under a temporary name; then fsync and rename."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {KEY: json.dumps({"sha256": tensors_digest(whole, facts), "facts": facts})}
    partial = partial_name(path)
    try:
        partial.unlink(missing_ok=True)  # a link of that name would be written through
        _write(partial, whole, header)
        publish(partial, path)
    except OSError as error:
        discard(partial)
        raise disk_error(error, path.parent, needed=sum(tensor.nbytes for tensor in whole.values())) from error


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file. The library's own writer, when killed, leaves a file of a random name behind."""
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # wide ones first: all are aligned
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name in names:
        tensor = tensors[name]
        place = [at, at := at + tensor.nbytes]
        entries[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            file.write(tensors[name].reshape(-1).view(torch.uint8).numpy().data)


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors (on the CPU) and the facts; `what` names the thing in the errors."""
    if path.is_file():
        beyond_memory(path.stat().st_size, f"the {what} in {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if not isinstance(header, dict):
            raise ValueError(f"{KEY} in its header is a {type(header).__name__}")
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no {path.name}, so it is no finished {what}") from None
    except (OSError, SafetensorError, MemoryError, TypeError, *NOT_JSON) as error:  # TypeError: kinds torch lacks
        raise InputError(
            f"{path} is damaged or cut short ({error}); take the {what} from a copy, or make it again"
        ) from None
    if (expected := header.get("sha256")) and (found := tensors_digest(tensors, header.get("facts"))) != expected:
        raise InputError(
            f"{path} is damaged: its tensors have the sha256 {found[:12]}…, its header says {expected!s:.12}…; "
            f"take the {what} from a copy, or make it again"
        )
    return tensors, header.get("facts")

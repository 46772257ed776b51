"""The files of another tool's SAE: opened without running anything in them, checked against the shapes they must have.

A pickle is a program. It is opened only with `trust_pickle=True`, and then by `torch.load(weights_only=True)`, which
builds tensors and plain containers and refuses everything else. npz archives are read without pickled objects.
"""

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.sealing import beyond_memory, read_json
from interp.tensorfile import read_tensors
from saes.config import Architecture, SAEConfig
from saes.sae import SAE, all_finite, checked

_MOST = 2**53
_LEAST_BOMB, _DENSEST = 64 << 20, 100
"""Arrays of an npz that are larger, and take less than a hundredth of their size there, are no weights."""


@dataclass(frozen=True)
class Origin:
    """Where the files of one SAE lie, and the name they came by: suites keep model, site and layer in it."""

    folder: Path
    name: str
    """`org/name:inside` of a hub repository, else the path that was given."""
    trust_pickle: bool = False
    file: str | None = None
    """The one file meant, if not a folder was named but a file."""

    def has(self, name: str) -> bool:
        """Whether the folder holds this file, and no other was named."""
        return (self.folder / name).is_file() and self.file in (None, name)

    def weights(self, *usual: str) -> str:
        """The file of tensors: the one that was named, else the first of the layout's own that is there."""
        if self.file is not None and not self.file.endswith(".json"):
            return self.file
        return next((name for name in usual if (self.folder / name).is_file()), usual[-1])

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object."""
        value = read_json(self.folder / name, "SAE")
        if not isinstance(value, dict):
            raise InputError(f"{self.folder / name} holds a {type(value).__name__}, expected a JSON object of settings")
        return value

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file, an npz archive, or (if trusted) a pickle, by the file's first bytes."""
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{self.folder} holds no {name}, so the SAE is not whole")
        if path.suffix == ".npz":
            return _npz(path)
        with path.open("rb") as file:
            head = file.read(9)
        # safetensors: the length of its header in 8 bytes, then the header, which is JSON
        if path.suffix != ".safetensors" or (head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80")):
            return _pickle(path, trusted=self.trust_pickle)
        return read_tensors(path, "SAE")[0]

    def build(
        self,
        weights: Mapping[str, Tensor],
        *,
        architecture: Architecture,
        metadata: Mapping[str, Any],
        k: int | None = None,
        transcoder: bool = False,
        subtract: bool = False,
    ) -> SAE:
        """The SAE of these tensors, named and oriented as SAELens does; `subtract` is `apply_b_dec_to_input`."""
        d, f = weights["W_enc"].shape
        known = {name: value for name, value in metadata.items() if value is not None}
        try:
            config = SAEConfig(
                d_in=d,
                d_sae=f,
                architecture=architecture,
                k=k,
                d_out=weights["W_dec"].shape[1] if transcoder or "W_skip" in weights else None,
                skip="W_skip" in weights,
                apply_b_dec_to_input=subtract,
                metadata={**known, "source": self.name},
            )
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        return SAE.of_weights(config, **checked(dict(weights), config, self.name))


def fitting(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, str], where: str, **sizes: int | None
) -> dict[str, Tensor]:
    """The tensors in float32, after comparing names and shapes; `shapes` are letters, `"f d"`, `"f"` or `""`.

    A name with `?` behind it may be missing. `sizes` fixes letters (what a config says); the others are read off.
    """
    wanted = {name.rstrip("?"): letters.split() for name, letters in shapes.items()}
    missing = sorted(name for name in shapes if not name.endswith("?") and name not in tensors)
    unknown = sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        said = "; ".join(
            f"{what} {', '.join(names)}" for what, names in (("it lacks", missing), ("unknown are", unknown)) if names
        )
        raise InputError(f"{where} does not hold the tensors of such an SAE: {said} (expected {', '.join(wanted)})")
    known = {letter: size for letter, size in sizes.items() if size is not None}
    for name in (name for name in wanted if name in tensors):
        found, letters = tuple(tensors[name].shape), wanted[name]
        expected = tuple(known.get(letter, size) for letter, size in zip(letters, found, strict=False))
        if len(found) != len(letters) or found != expected:
            told = ", ".join(f"{letter}={known[letter]}" for letter in letters if letter in known)
            raise InputError(
                f"{where}: {name} has the shape {found}, expected ({', '.join(letters)})"
                f"{f' with {told}' if told else ''}; files of different SAEs may have been mixed"
            )
        known |= dict(zip(letters, found, strict=True))
        if not all_finite(tensors[name]):
            raise InputError(f"{where}: {name} holds NaN or infinite values; the SAE is unusable")
    return {name: tensor.float() for name, tensor in tensors.items()}


def setting(about: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """One setting of a config that must be there, of a given type."""
    value = about.get(name)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if value is None or not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(k.__name__ for k in kinds)
        raise InputError(f"{where}: {name} is {value!r:.80}, expected a {expected}; the SAE cannot be rebuilt without")
    if isinstance(value, int | float) and not abs(value) < _MOST:  # NaN is not smaller either
        raise InputError(f"{where}: {name} is {value!r:.80}, a number that no SAE has")
    return value


def _npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                _claimed(archive, member, path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(_native(arrays[name])) for name in arrays.files}
    except InputError:
        raise
    except Exception as error:  # an npz is a zip of Python texts and of bytes: its readers raise errors of many kinds
        raise InputError(
            f"{path} cannot be read as an npz archive of plain arrays ({type(error).__name__}: {error!s:.200}); fetch "
            "it again. Arrays of pickled objects are not opened"
        ) from None


def _native(array: Any) -> Any:
    """In this machine's order of bytes, which is the only one that PyTorch has."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _claimed(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Refuse an array that is not as large as its header says, or far larger than the bytes that hold it."""
    import numpy as np

    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename!r:.80} is an array of pickled objects")
        size = file.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != member.file_size:
        raise InputError(
            f"{path}: {member.filename!r:.80} claims the shape {shape} of {dtype}, {size:,} bytes, but holds "
            f"{member.file_size:,}; fetch it again"
        )
    if size > _LEAST_BOMB and size > _DENSEST * member.compress_size:
        raise InputError(
            f"{path}: {member.filename!r:.80} unpacks from {member.compress_size:,} to {size:,} bytes, as no trained "
            "weights do; it is not read"
        )
    beyond_memory(size, f"{member.filename!r:.80} in {path}")


def _pickle(path: Path, *, trusted: bool) -> dict[str, Tensor]:
    if not trusted:
        raise InputError(
            f"{path} is a pickle, and opening a pickle can run any program hidden in it; expected safetensors. "
            "If you trust whoever made it, pass trust_pickle=True, --trust-pickle (it is then opened for tensors only, "
            "weights_only)"
        )
    try:
        with path.open("rb") as file:  # by name, torch would take a pickle called .safetensors for what it says it is
            value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle fail in the reader in many ways
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} is damaged, or a pickle of more than tensors, which is not opened at all ({first}); save the "
            "tensors alone (its `state_dict()`)"
        ) from None
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    ):
        raise InputError(f"{path} holds a {type(value).__name__} that is not a plain table of tensors")
    for name, tensor in value.items():
        if tensor.layout is not torch.strided or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise InputError(
                f"{path}: {name!r:.80} of shape {tuple(tensor.shape)} is not stored as such, number by number; it is "
                "not read"
            )
    return value

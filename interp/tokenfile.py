"""TokenFile: tokenised documents as one flat memory map with offsets.

A folder, whole or absent:

    tokens.bin      the token ids of all documents, little-endian uint16 (uint32 for vocabularies over 65,536)
    offsets.npy     int64, documents + 1: document i is tokens[offsets[i]:offsets[i + 1]]
    template.bin    only with chat documents: uint8 per token, 1 where the chat template and not a message wrote it
    docs.jsonl      one line a document: its stable id and its number of tokens
    manifest.json   tokenizer (name, sha256 of its serialised form), corpus digest, counts, special ids, BOS

BOS is not in `tokens.bin`: where `prepend_bos` was asked for, `manifest.json` says so and `interp.batching` puts it in
front of every window fed to the model, because a long document becomes several windows and each has to start the way
the model expects.
"""

import hashlib
import shutil
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Integer, UInt8

from interp.errors import InputError
from interp.jsonlines import json_objects
from interp.sealing import differences, disk_error, partial_name, publish
from interp.tokens import Encoder
from interp.tokenwriter import FORMAT, VERSION, TextDocument, content_of, write_files
from interp.typed import fits, read_object


class TokenFile:
    """Tokenised documents: `file[i]` are the token ids of document i, `file.ids[i]` its name."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.n_tokens: int = manifest["n_tokens"]
        self.offsets: Int[np.ndarray, " docs+1"] = _offsets(path, manifest)
        self.lengths: Int[np.ndarray, " docs"] = np.diff(self.offsets)  # BOS not counted
        self.tokens: Integer[np.ndarray, " n"] = np.memmap(path / "tokens.bin", dtype=manifest["dtype"], mode="r")
        self.template: UInt8[np.ndarray, " n"] | None = None
        if manifest["template"]:
            self.template = np.memmap(path / "template.bin", dtype=np.uint8, mode="r")

    @classmethod
    def open(cls, path: str | Path) -> "TokenFile":
        """Open a finished token file; a damaged one is refused."""
        path = Path(path)
        manifest = read_object(path / "manifest.json", "token file")
        if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
            raise InputError(
                f"{path} is no token file of version {VERSION}: its manifest says {manifest.get('format')!r}"
            )
        if wrong := _wrong(manifest):
            raise InputError(f"{path}/manifest.json is damaged: {wrong}; delete the folder and tokenise again")
        wanted = manifest["n_tokens"] * np.dtype(manifest["dtype"]).itemsize
        size = (path / "tokens.bin").stat().st_size if (path / "tokens.bin").exists() else 0
        if size != wanted or not (path / "offsets.npy").exists():
            raise InputError(
                f"{path}/tokens.bin holds {size:,} bytes where the manifest says {wanted:,}: "
                "the token file is damaged; delete the folder and tokenise again"
            )
        template = path / "template.bin"
        if manifest["template"] and (not template.exists() or template.stat().st_size != manifest["n_tokens"]):
            raise InputError(
                f"{template} does not hold a byte for each of {manifest['n_tokens']:,} tokens: the token file is "
                "damaged; delete the folder and tokenise again"
            )
        return cls(path, manifest)

    def __len__(self) -> int:
        return self.manifest["n_documents"]

    def __getitem__(self, index: int) -> Integer[np.ndarray, " t"]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def ids(self) -> list[str]:
        """The stable id of each document."""
        path = self.path / "docs.jsonl"
        ids: list[Any] = [row.get("id") for _, row in json_objects(path, "the names of documents")]
        if len(ids) != len(self) or not all(isinstance(one, str) for one in ids):
            raise InputError(
                f"{path} is damaged: it does not name the {len(self):,} documents; delete the folder and tokenise again"
            )
        return ids

    @property
    def digest(self) -> str:
        """sha256 over the tokens, the documents' boundaries and ids, the tokenizer and the BOS setting."""
        return self.manifest["digest"]

    @property
    def bos(self) -> int | None:
        """The id put in front of every window fed to a model, or None."""
        return self.manifest["bos"]

    @property
    def special_ids(self) -> list[int]:
        """The ids that the tokenizer declares special."""
        return self.manifest["tokenizer"]["special_ids"]


def _wrong(manifest: dict[str, Any]) -> str | None:
    """What a manifest lacks, or has of another kind than it must be."""
    kinds: dict[str, Any] = {
        "digest": str, "corpus_digest": str, "n_tokens": int, "n_documents": int, "n_read": int, "bos": int | None,
        "template": bool, "dtype": Literal["<u2", "<u4"], "tokenizer": dict, "settings": dict,
    }  # fmt: skip
    inside = {"name": str, "sha256": str, "vocabulary": int, "special_ids": tuple[int, ...]}
    places = (
        *((manifest, *one) for one in kinds.items()),
        *((manifest.get("tokenizer"), *one) for one in inside.items()),
    )
    for holder, name, kind in places:
        if not isinstance(holder, dict) or name not in holder or not fits(holder[name], kind):
            return f"{name} is missing, or not what it must be"
    numbers = [manifest[name] for name in ("n_tokens", "n_documents", "n_read")]
    size, special = manifest["tokenizer"]["vocabulary"], manifest["tokenizer"]["special_ids"]
    if min(numbers) < 1 or not 0 <= size < 1 << 32 or not all(0 <= one < max(size, 1) for one in special):
        return "a number that is not positive, or a special token beyond the vocabulary"
    return None if manifest["bos"] is None or 0 <= manifest["bos"] < max(size, 1) else "a BOS beyond the vocabulary"


def _offsets(path: Path, manifest: dict[str, Any]) -> Int[np.ndarray, " n"]:
    """Where each document begins, and the last one ends; checked against the manifest."""
    try:
        with (path / "offsets.npy").open("rb") as file:
            offsets = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python text, and its parser has errors of its own
        raise InputError(f"{path}/offsets.npy is damaged ({error}); delete the folder and tokenise again") from None
    rising = offsets.dtype == np.int64 and offsets.shape == (manifest["n_documents"] + 1,)
    if not rising or offsets[0] != 0 or offsets[-1] != manifest["n_tokens"] or (np.diff(offsets) < 0).any():
        raise InputError(
            f"{path}/offsets.npy is damaged: it does not divide {manifest['n_tokens']:,} tokens into "
            f"{manifest['n_documents']:,} documents; delete the folder and tokenise again"
        )
    return offsets


def tokenize(
    documents: Iterable[TextDocument],
    tokenizer: Any,
    path: str | Path,
    *,
    prepend_bos: bool = False,
    max_docs: int | None = None,
    max_tokens: int | None = None,
    workers: int | None = None,
) -> TokenFile:
    """Tokenise `documents` into a new folder `path`; an existing one made with the same settings is opened instead.

    No special tokens are added; `prepend_bos` is for the windows fed to a model (see above). Documents come until
    `max_docs`, or until `max_tokens` are reached (the last document stays whole). Documents without a token are left
    out and counted. `workers` batches are in flight at once (default 2); a fast tokenizer spreads each over all cores
    besides, unless `TOKENIZERS_PARALLELISM=false`. The result does not depend on `workers`.
    """
    path = Path(path)
    for name, value in (("max_docs", max_docs), ("max_tokens", max_tokens), ("workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    encoder = Encoder.of(tokenizer, prepend_bos=prepend_bos)
    if prepend_bos and encoder.bos is None:
        raise InputError(
            f"prepend_bos=True, but the tokenizer {encoder.name!r} has no BOS token; pass prepend_bos=False"
        )
    settings = {"prepend_bos": prepend_bos, "max_docs": max_docs, "max_tokens": max_tokens, "tokenizer": encoder.sha256}
    if path.exists():
        return _reuse(path, documents, settings, encoder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write_files(documents, encoder, partial, settings, workers or 2)
        publish(partial, path)
    except OSError as error:
        raise disk_error(error, path.parent, needed=1 << 20, kept="Nothing was lost.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TokenFile.open(path)


def _reuse(path: Path, documents: Iterable[TextDocument], settings: dict[str, Any], encoder: Encoder) -> TokenFile:
    file = TokenFile.open(path)
    names = {"tokenizer": f"{file.manifest['tokenizer']['name']}, sha256 {file.manifest['tokenizer']['sha256'][:12]}"}
    found = {**file.manifest["settings"], "corpus": file.manifest["corpus_digest"]}
    asked = {**settings, "corpus": _corpus_digest(documents, file.manifest["n_read"])}
    if found["tokenizer"] != asked["tokenizer"]:
        asked["tokenizer"] = f"{encoder.name}, sha256 {encoder.sha256[:12]}"
        found |= names
    if found != asked:
        raise InputError(
            f"{path} holds a token file made with other settings ({differences(found, asked)}); "
            "give another path, or delete the folder"
        )
    return file


def _corpus_digest(documents: Iterable[TextDocument], n_read: int) -> str:
    """The corpus's own digest where it has one, else sha256 over the first `n_read` documents."""
    if isinstance(own := getattr(documents, "digest", None), str):
        return own
    content = hashlib.sha256()
    for document in islice(documents, n_read):
        content.update(content_of(document))
    return content.hexdigest()

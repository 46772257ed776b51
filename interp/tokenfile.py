"""TokenFile: tokenised documents as one flat memory map with offsets.

A folder, whole or absent:

    tokens.bin      the token ids of all documents, one after the other, little-endian uint16 (uint32 for vocabularies over 65,536)
    offsets.npy     int64, documents + 1: document i is tokens[offsets[i]:offsets[i + 1]]
    template.bin    only with chat documents: uint8 per token, 1 where the chat template and not a message wrote it
    docs.jsonl      one line a document: its stable id and its number of tokens
    manifest.json   tokenizer (name, sha256 of its serialised form), corpus digest, counts, special ids, BOS

BOS is not in `tokens.bin`: where `prepend_bos` was asked for, `manifest.json` says so and `interp.batching` puts it in
front of every window fed to the model, because a long document becomes several windows and each has to start the way
the model expects.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Integer, UInt8

from interp.errors import InputError
from interp.sealing import differences, digest, full_disk, partial_name, publish, read_json, sync, write_json
from interp.tokens import Encoder, Pieces

_FORMAT = "midlens-tokens"
_VERSION = 1
_BATCH_CHARACTERS = 1 << 20


@runtime_checkable
class TextDocument(Protocol):
    """What a document has to offer: `interp.corpus.Document` does; `messages`, where present and not empty, makes it a chat."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...


class TokenFile:
    """Tokenised documents: `len(file)`, `file[i]` (token ids of document i), `file.ids`, `file.lengths`, `file.digest`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.n_tokens: int = manifest["n_tokens"]
        self.offsets: Int[np.ndarray, " docs+1"] = np.load(path / "offsets.npy")
        self.lengths: Int[np.ndarray, " docs"] = np.diff(self.offsets)  # BOS not counted
        self.tokens: Integer[np.ndarray, " n"] = np.memmap(path / "tokens.bin", dtype=manifest["dtype"], mode="r")
        self.template: UInt8[np.ndarray, " n"] | None = None
        if manifest["template"]:
            self.template = np.memmap(path / "template.bin", dtype=np.uint8, mode="r")

    @classmethod
    def open(cls, path: str | Path) -> "TokenFile":
        """Open a finished token file; a damaged one is refused."""
        path = Path(path)
        manifest = read_json(path / "manifest.json", "token file")
        if manifest.get("format") != _FORMAT or manifest.get("version") != _VERSION:
            raise InputError(
                f"{path} is no token file of version {_VERSION}: its manifest says {manifest.get('format')!r}"
            )
        wanted = manifest["n_tokens"] * np.dtype(manifest["dtype"]).itemsize
        size = (path / "tokens.bin").stat().st_size if (path / "tokens.bin").exists() else 0
        if size != wanted or not (path / "offsets.npy").exists():
            raise InputError(
                f"{path}/tokens.bin holds {size:,} bytes where the manifest says {wanted:,}: "
                "the token file is damaged; delete the folder and tokenise again"
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
        with (self.path / "docs.jsonl").open() as file:
            return [json.loads(line)["id"] for line in file]

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
        _write(documents, encoder, partial, settings, workers or 2)
        publish(partial, path)
    except OSError as error:
        raise full_disk(error, path.parent, needed=_BATCH_CHARACTERS, kept="Nothing was lost.") or error from error
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
        content.update(_content(document))
    return content.hexdigest()


def _content(document: TextDocument) -> bytes:
    return json.dumps([document.id, document.text, list(getattr(document, "messages", ()))]).encode() + b"\n"


class _Read(NamedTuple):
    """One batch of documents on its way through the encoder."""

    documents: list[TextDocument]
    pieces: "Future[list[Pieces]]"


def _write(
    documents: Iterable[TextDocument], encoder: Encoder, folder: Path, settings: dict[str, Any], workers: int
) -> None:
    tally = _Tally(folder, encoder, settings["max_docs"], settings["max_tokens"])
    waiting: deque[_Read] = deque()
    with tally, ThreadPoolExecutor(workers) as pool:
        for batch in _by_size(documents):
            waiting.append(_Read(batch, pool.submit(encoder.encode, batch)))
            if len(waiting) > workers and not tally.take(waiting.popleft()):
                break
        while waiting and tally.take(waiting.popleft()):
            pass
        pool.shutdown(cancel_futures=True)
    if not tally.lengths:
        raise InputError(
            f"no token in the {tally.read} documents given ({tally.empty} of them empty); give documents with text"
        )
    tally.finish(settings, _corpus_digest(documents, 0) if hasattr(documents, "digest") else None)


def _by_size(documents: Iterable[TextDocument]) -> Iterator[list[TextDocument]]:
    """Consecutive documents, about a million characters at a time: enough for all cores, little to hold."""
    batch: list[TextDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) + 64
        if size >= _BATCH_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Tally:
    """The files being written, and what is known about them so far."""

    def __init__(self, folder: Path, encoder: Encoder, max_docs: int | None, max_tokens: int | None) -> None:
        self.folder, self.encoder = folder, encoder
        self.max_docs, self.max_tokens = max_docs, max_tokens
        self.dtype = "<u2" if encoder.vocabulary <= 1 << 16 else "<u4"
        self.lengths: list[int] = []
        self.n_tokens = self.read = self.empty = 0
        self.seen: set[str] = set()
        self.chat = False
        self.hashes = {name: hashlib.sha256() for name in ("tokens.bin", "template.bin", "docs.jsonl", "corpus")}
        self.files = {name: (folder / name).open("wb") for name in ("tokens.bin", "template.bin", "docs.jsonl")}

    def __enter__(self) -> "_Tally":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def take(self, batch: _Read) -> bool:
        """Write one batch of documents; False once enough of them are there."""
        for document, pieces in zip(batch.documents, batch.pieces.result(), strict=True):
            if self.n_tokens >= (self.max_tokens or np.inf) or len(self.lengths) >= (self.max_docs or np.inf):
                return False
            if document.id in self.seen:
                raise InputError(f"two documents have the id {document.id!r}; ids must be unique")
            self.seen.add(document.id)
            self.hashes["corpus"].update(_content(document))
            self.read += 1
            if not len(pieces.ids):
                self.empty += 1
                continue
            self._document(document.id, pieces)
        return True

    def _document(self, name: str, pieces: Pieces) -> None:
        count = len(pieces.ids)
        self.lengths.append(count)
        self.n_tokens += count
        self.chat |= pieces.template is not None
        template = np.zeros(count, np.uint8) if pieces.template is None else pieces.template
        line = json.dumps({"id": name, "tokens": count}) + "\n"
        self._put("tokens.bin", pieces.ids.astype(self.dtype).tobytes())
        self._put("template.bin", template.tobytes())
        self._put("docs.jsonl", line.encode())

    def _put(self, name: str, content: bytes) -> None:
        self.hashes[name].update(content)
        self.files[name].write(content)

    def finish(self, settings: dict[str, Any], corpus_digest: str | None) -> None:
        """Write offsets and manifest; everything on disk afterwards."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        np.save(self.folder / "offsets.npy", offsets)
        if not self.chat:
            (self.folder / "template.bin").unlink()
        bos = self.encoder.bos if settings["prepend_bos"] else None
        parts = {name: self.hashes[name].hexdigest() for name in ("tokens.bin", "template.bin", "docs.jsonl")}
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "digest": digest({**parts, "tokenizer": self.encoder.sha256, "bos": bos}),
            "corpus_digest": corpus_digest or self.hashes["corpus"].hexdigest(),
            "n_tokens": self.n_tokens,
            "n_documents": len(self.lengths),
            "n_read": self.read,
            "n_empty": self.empty,
            "dtype": self.dtype,
            "bos": bos,
            "template": self.chat,
            "tokenizer": self.encoder.identity(),
            "settings": settings,
        }
        for file in self.folder.iterdir():
            sync(file)
        write_json(self.folder / "manifest.json", manifest)


def documents_of(file: TokenFile, ids: Sequence[str]) -> list[int]:
    """The indices of the documents named `ids`."""
    known = {name: index for index, name in enumerate(file.ids)}
    if missing := [name for name in ids if name not in known]:
        raise InputError(f"{file.path} holds no document {missing[0]!r} ({len(missing)} of {len(ids)} ids are unknown)")
    return [known[name] for name in ids]

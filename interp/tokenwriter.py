"""Writing a token file: documents through the encoder, in order, into flat files."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from interp.errors import InputError
from interp.sealing import digest, sync, write_json
from interp.tokens import Encoder, Pieces

FORMAT = "midlens-tokens"
VERSION = 1
_BATCH_CHARACTERS = 1 << 20


@runtime_checkable
class TextDocument(Protocol):
    """What a document has to offer, as `interp.corpus.Document` does; non-empty `messages` make it a chat."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...


def content_of(document: TextDocument) -> bytes:
    """What the digest of a corpus without one of its own is taken over."""
    return json.dumps([document.id, document.text, list(getattr(document, "messages", ()))]).encode() + b"\n"


class _Read(NamedTuple):
    """One batch of documents on its way through the encoder."""

    documents: list[TextDocument]
    pieces: "Future[list[Pieces]]"


def write_files(
    documents: Iterable[TextDocument], encoder: Encoder, folder: Path, settings: dict[str, Any], workers: int
) -> None:
    """Write all files of a token file into `folder`, durably, the manifest last."""
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
    tally.finish(settings, getattr(documents, "digest", None))


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
            self.hashes["corpus"].update(content_of(document))
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
            "format": FORMAT,
            "version": VERSION,
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

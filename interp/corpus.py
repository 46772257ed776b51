"""Documents with stable ids: the text every pipeline starts from.

A `Document` is an id and its text (or chat messages). A `Corpus` is a fixed sequence of documents with a digest over
ids and contents, so that whatever is computed from it can say from what. Sources: the built-in corpus, a `.txt` file
or a folder of them, `.jsonl` (`{"text": …}` or `{"messages": […]}`, `"id"` optional), `.parquet` (needs pyarrow) and
`hf:NAME[:SPLIT]`, a data set of the Hugging Face hub (needs `datasets`).

The train / held-out split is by document and by id alone: a document is held out when a hash of its id falls in the
lowest `fraction`. It is the same on every machine, and adding documents never moves another from one side to the other.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from interp.errors import InputError
from interp.sealing import NOT_JSON

OnInvalid = Literal["raise", "replace", "skip"]
HELD_OUT_FRACTION = 0.15


@dataclass(frozen=True)
class Document:
    """One document: a stable id, its text, and its chat messages where it is a conversation (`text` is then empty)."""

    id: str
    text: str
    messages: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Corpus(Sequence[Document]):
    """A fixed sequence of documents from one source."""

    documents: tuple[Document, ...]
    source: str
    digest: str = field(init=False)
    """sha256 over ids and contents, in order."""

    def __post_init__(self) -> None:
        if not self.documents:
            raise InputError(
                f"the corpus {self.source!r} holds no document; give a source with at least one non-empty text"
            )
        ids = {document.id for document in self.documents}
        if len(ids) < len(self.documents):
            raise InputError(
                f"the corpus {self.source!r} repeats document ids: {len(self.documents) - len(ids)} of them stand twice"
            )
        digest = hashlib.sha256()
        for document in self.documents:
            content = json.dumps([document.id, document.text, list(document.messages)], ensure_ascii=True)
            digest.update(content.encode())
        object.__setattr__(self, "digest", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.documents[index]

    def __iter__(self) -> Iterator[Document]:
        return iter(self.documents)


def id_hash(text: str) -> float:
    """A number in [0, 1) from a document id: the same everywhere, and unrelated to alphabetical order."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64


def split(corpus: Corpus, *, fraction: float = HELD_OUT_FRACTION) -> tuple[Corpus, Corpus]:
    """(train, held-out) by document id; `fraction` is the share of documents expected on the held-out side."""
    if not 0 < fraction < 1:
        raise InputError(f"fraction must lie between 0 and 1, got {fraction}")
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document in corpus:
        sides[id_hash("split:" + document.id) < fraction].append(document)
    for name, side in zip(("train", "held-out"), sides, strict=True):
        if not side:
            raise InputError(
                f"splitting {corpus.source!r} ({len(corpus)} documents) leaves the {name} side empty; "
                "a corpus needs a few dozen documents, or give held-out text of its own"
            )
    return (
        Corpus(tuple(sides[0]), f"{corpus.source} (train)"),
        Corpus(tuple(sides[1]), f"{corpus.source} (held-out)"),
    )


def read_corpus(
    source: str | Path, *, text_field: str = "text", on_invalid: OnInvalid = "raise", limit: int | None = None
) -> Corpus:
    """Documents from `source`: `"builtin"`, a path (.txt, a folder of .txt, .jsonl, .parquet) or `hf:NAME[:SPLIT]`.

    `on_invalid` says what happens to a document that is not valid UTF-8: an error naming file and byte (the default),
    replacement characters, or leaving the document out. `limit` keeps the first documents only.
    """
    if on_invalid not in ("raise", "replace", "skip"):
        raise InputError(f"on_invalid must be 'raise', 'replace' or 'skip', got {on_invalid!r}")
    name = str(source)
    if name == "builtin":
        from interp.builtin_corpus import builtin_documents

        documents = builtin_documents()
    elif name.startswith("hf:"):
        documents = _hub(name.removeprefix("hf:"), text_field)
    else:
        documents = _from_path(Path(source), text_field, on_invalid)
    kept: list[Document] = []
    for document in documents:
        if limit is not None and len(kept) >= limit:
            break
        if document.text.strip() or document.messages:
            kept.append(document)
    return Corpus(tuple(kept), name)


def _from_path(path: Path, text_field: str, on_invalid: OnInvalid) -> Iterator[Document]:
    if not path.exists():
        raise InputError(
            f"no corpus at {path}: give a .txt, .jsonl or .parquet file, a folder of .txt files, 'hf:NAME' or 'builtin'"
        )
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise InputError(f"the folder {path} holds no .txt file")
        for file in files:
            yield from _text_file(file, file.relative_to(path).as_posix(), on_invalid)
    elif path.suffix == ".txt":
        yield from _text_file(path, path.name, on_invalid)
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from _jsonl(path, text_field, on_invalid)
    elif path.suffix == ".parquet":
        yield from _parquet(path, text_field)
    else:
        raise InputError(
            f"{path} has the ending {path.suffix!r}; expected .txt, .jsonl, .ndjson, .parquet or a folder of .txt files"
        )


def _decode(raw: bytes, where: str, on_invalid: OnInvalid) -> str | None:
    try:
        return raw.decode("utf-8", errors="replace" if on_invalid == "replace" else "strict")
    except UnicodeDecodeError as error:
        if on_invalid == "skip":
            return None
        raise InputError(
            f"{where} is not valid UTF-8: byte {error.start} is 0x{raw[error.start]:02x} ({error.reason}). "
            "Convert it, or pass on_invalid='replace' (marks the place with U+FFFD) or 'skip' (leaves the document out)"
        ) from error


def _text_file(path: Path, name: str, on_invalid: OnInvalid) -> Iterator[Document]:
    text = _decode(_read(path), str(path), on_invalid)
    if text is not None:
        yield Document(name, text)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _jsonl(path: Path, text_field: str, on_invalid: OnInvalid) -> Iterator[Document]:
    for number, raw in enumerate(_read(path).splitlines(), 1):
        where = f"{path}, line {number}"
        line = _decode(raw, where, on_invalid)
        if line is None or not line.strip():
            continue
        try:
            row = json.loads(line)
        except NOT_JSON as error:
            raise InputError(f"{where} is not JSON ({error}); expected one object a line") from error
        yield _row(row, f"{path.name}:{number}", text_field, where)


def _row(row: Any, default_id: str, text_field: str, where: str) -> Document:
    if not isinstance(row, dict):
        raise InputError(
            f"{where} is a {type(row).__name__}; expected an object with the field {text_field!r} or 'messages'"
        )
    name = str(row.get("id", default_id))
    messages = row.get("messages")
    if isinstance(messages, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        return Document(name, "", tuple({"role": str(m["role"]), "content": str(m["content"])} for m in messages))
    if not isinstance(row.get(text_field), str):
        raise InputError(
            f"{where} has the fields {sorted(row)}; expected text in {text_field!r} (choose another with text_field), "
            "or 'messages' as a list of {'role', 'content'}"
        )
    return Document(name, row[text_field])


def _parquet(path: Path, text_field: str) -> Iterator[Document]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(f"reading {path} needs pyarrow: pip install 'midlens[data]'") from error
    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield _row(row, f"{path.name}:{number}", text_field, f"{path}, row {number}")
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a readable parquet file: {error}") from error


def _hub(name: str, text_field: str) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f"reading the hub data set {name!r} needs datasets: pip install 'midlens[data]'") from error
    hub_id, _, part = name.partition(":")
    try:
        rows = load_dataset(hub_id, split=part or "train", streaming=True)
    except Exception as error:  # datasets raises many kinds; all mean that the set could not be had
        raise InputError(f"the hub data set {hub_id!r} could not be read: {error}") from error
    for number, row in enumerate(rows):
        yield _row(row, f"{hub_id}:{number}", text_field, f"{hub_id}, row {number}")

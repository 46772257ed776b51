"""From text to token ids: what `interp.tokenfile` asks of a Hugging Face tokenizer.

A fast tokenizer is used through a private copy of its Rust core: `encode_batch` is threaded, frees the interpreter
lock, and the copy has no truncation or padding left over from somebody else's call. A slow tokenizer is called as it
is.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from interp.chat import outside, render
from interp.errors import InputError


class Pieces(NamedTuple):
    """The tokens of one document; `template` marks those written by the chat template (None: no chat)."""

    ids: Integer[np.ndarray, " t"]
    template: UInt8[np.ndarray, " t"] | None


class Encoder(NamedTuple):
    """A tokenizer reduced to what determines token ids."""

    name: str
    sha256: str
    vocabulary: int
    bos: int | None
    special_ids: list[int]
    core: Any
    tokenizer: Any
    strip_bos: bool

    @classmethod
    def of(cls, tokenizer: Any, *, prepend_bos: bool) -> "Encoder":
        """Wrap a Hugging Face tokenizer; with `prepend_bos` the BOS that a chat template writes is taken away."""
        if not hasattr(tokenizer, "get_vocab"):
            raise InputError(
                f"tokenize needs a Hugging Face tokenizer, got {type(tokenizer).__name__}; "
                "pass model.tokenizer or AutoTokenizer.from_pretrained(NAME)"
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        core = None
        if backend is not None:
            core = _private(type(backend), backend.to_str())
            serialised = core.to_str()
        else:
            serialised = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        return cls(
            str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__),
            hashlib.sha256(serialised.encode()).hexdigest(),
            max(len(tokenizer), max(special, default=0) + 1),
            tokenizer.bos_token_id,
            sorted(int(i) for i in special),
            core,
            tokenizer,
            prepend_bos,
        )

    def identity(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "vocabulary": self.vocabulary,
            "special_ids": self.special_ids,
        }

    def encode(self, documents: Sequence[Any]) -> list[Pieces]:
        """Token ids of each document, without added special tokens; chats go through the tokenizer's template."""
        rendered = [self._render(document) for document in documents]
        texts = [text for text, _ in rendered]
        if not any(spans is not None for _, spans in rendered):
            return [Pieces(np.asarray(ids, np.int64), None) for ids in self._ids(texts)]
        if self.core is None:
            raise InputError("chat documents need a fast tokenizer (character offsets say which tokens are template)")
        encodings = self.core.encode_batch(texts, add_special_tokens=False)
        return [
            Pieces(
                np.asarray(e.ids, np.int64), None if spans is None else np.asarray(outside(spans, e.offsets), np.uint8)
            )
            for e, (_, spans) in zip(encodings, rendered, strict=True)
        ]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if self.core is None:
            return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [e.ids for e in self.core.encode_batch_fast(texts, add_special_tokens=False)]

    def _render(self, document: Any) -> tuple[str, list[tuple[int, int]] | None]:
        """The text to tokenise, and for chats the character spans of the messages' own words."""
        messages = getattr(document, "messages", ())
        for text in (document.text, *(message["content"] for message in messages)):
            _valid(text, document.id)
        if not messages:
            return document.text, None
        try:
            rendered, spans = render(self.tokenizer, messages)
        except InputError as error:
            raise InputError(f"document {document.id!r}: {error}") from error
        bos = self.tokenizer.bos_token if self.strip_bos else None
        if not bos or not rendered.startswith(bos):
            return rendered, spans
        return rendered[len(bos) :], [(start - len(bos), end - len(bos)) for start, end in spans]


@functools.lru_cache(maxsize=8)
def _private(kind: Any, serialised: str) -> Any:
    """A Rust core for our use alone, one for equal tokenizers: each keeps the words that it has met, per thread, and
    for good even when it is gone itself (tokenizers 0.23: 7 MiB for the built-in corpus, every time)."""
    core = kind.from_str(serialised)
    core.no_truncation()
    core.no_padding()
    return core


def _valid(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"document {name!r} is no valid Unicode text: character {error.start} is the lone surrogate "
            f"U+{ord(text[error.start]):04X}. Clean it, for instance with text.encode('utf-8', 'replace').decode()"
        ) from None

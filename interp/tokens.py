"""From text to token ids: what `interp.tokenfile` asks of a Hugging Face tokenizer.

A fast tokenizer is used through a private copy of its Rust core: `encode_batch` is threaded, frees the interpreter
lock, and the copy has no truncation or padding left over from somebody else's call. A slow tokenizer is called as it
is.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

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
            core = type(backend).from_str(backend.to_str())
            core.no_truncation()
            core.no_padding()
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
            Pieces(np.asarray(e.ids, np.int64), None if spans is None else _outside(spans, e.offsets))
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
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError(
                f"document {document.id!r} is a chat, and the tokenizer {self.name!r} has no chat template; "
                "use the instruction-tuned model's tokenizer, or give plain text"
            )
        contents = [message["content"] for message in messages]
        rendered = self._template(messages, contents)
        marks = [f"midlens{index}mark" for index in range(len(contents))]
        skeleton = re.split("|".join(marks), self._template(messages, marks))
        for words in (contents, [content.strip() for content in contents]):
            if len(skeleton) == len(words) + 1 and _woven(skeleton, words) == rendered:
                return rendered, _spans(skeleton, words)
        raise InputError(
            f"document {document.id!r}: the chat template of {self.name!r} rewrites its messages, so template and "
            "content tokens cannot be told apart; give the rendered conversation as plain text instead"
        )

    def _template(self, messages: Sequence[Any], contents: list[str]) -> str:
        chat = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False)
        return text.removeprefix(self.tokenizer.bos_token) if self.strip_bos and self.tokenizer.bos_token else text


def _valid(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"document {name!r} is no valid Unicode text: character {error.start} is the lone surrogate "
            f"U+{ord(text[error.start]):04X}. Clean it, for instance with text.encode('utf-8', 'replace').decode()"
        ) from None


def _woven(skeleton: list[str], words: list[str]) -> str:
    return "".join(piece for pair in zip(skeleton, [*words, ""], strict=True) for piece in pair)


def _spans(skeleton: list[str], words: list[str]) -> list[tuple[int, int]]:
    """Where each message stands between the pieces of the template."""
    spans: list[tuple[int, int]] = []
    at = 0
    for piece, word in zip(skeleton, words, strict=False):
        at += len(piece)
        spans.append((at, at + len(word)))
        at += len(word)
    return spans


def _outside(spans: list[tuple[int, int]], offsets: list[tuple[int, int]]) -> UInt8[np.ndarray, " t"]:
    """1 for the tokens that touch no character of `spans`."""
    inside = np.zeros(max((end for _, end in offsets), default=0) + 1, np.int64)
    for start, end in spans:
        inside[start:end] = 1
    total = np.concatenate([[0], np.cumsum(inside)])
    return np.asarray([total[end] == total[start] for start, end in offsets], np.uint8)

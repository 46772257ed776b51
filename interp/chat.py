"""Text and chats to a padded batch of tokens, with what the chat template wrote told apart from the messages.

    rendered = piece_0 + word_1 + piece_1 + ... + word_n + piece_n      (pieces: template, words: the messages' text)

The pieces are found by rendering the same chat with marks for contents. The whole text is tokenised at once, as the
model saw it in training; a token is content if it covers a character of a message. SAEs of chat models (Gemma Scope's
instruction-tuned suite) are trained without the template's positions.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import InputError

Message = Mapping[str, Any]
Chat = Sequence[Message]


class TokenBatch(NamedTuple):
    """Right-padded tokens. `template` marks what is not the caller's own text: template, BOS and padding."""

    tokens: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    template: Bool[Tensor, "b t"]


class Rendered(NamedTuple):
    """A chat as text, and the character spans of the messages' own words."""

    text: str
    spans: list[tuple[int, int]]


def to_tokens(
    tokenizer: Any,
    texts: str | Sequence[Any],
    *,
    prepend_bos: bool = False,
    generation_prompt: bool = False,
) -> TokenBatch:
    """Tokenise texts and chats (lists of `{"role": ..., "content": ...}`), one or many.

    A chat goes through the tokenizer's template, which writes its own BOS; `prepend_bos` puts one in front where there
    is none. `generation_prompt` ends a chat with the header of the assistant's turn.
    """
    if tokenizer is None:
        raise InputError("this model came without a tokenizer; give one to `wrap`, or pass token ids")
    items: list[Any] = [texts] if isinstance(texts, str) or _is_chat(texts) else list(texts)
    if not items:
        raise InputError("no texts: expected a text, a chat, or a list with at least one of them")
    bos = tokenizer.bos_token_id
    if prepend_bos and bos is None:
        raise InputError(f"prepend_bos: the tokenizer {_name(tokenizer)!r} has no beginning-of-sequence token")
    rows, masks = [], []
    for i, item in enumerate(items):
        ids, mask = _encode(tokenizer, item, generation_prompt)
        if prepend_bos and ids[:1] != [bos]:
            ids, mask = [bos, *ids], [True, *mask]
        if not ids:
            raise InputError(f"text {i} has no tokens ({item!r}); leave empty texts out")
        rows.append(ids)
        masks.append(mask)
    lengths = torch.tensor([len(row) for row in rows])
    b, t = len(rows), int(lengths.max())
    tokens = torch.full((b, t), tokenizer.pad_token_id or 0)
    template = torch.ones(b, t, dtype=torch.bool)
    for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        tokens[i, : len(row)] = torch.tensor(row)
        template[i, : len(row)] = torch.tensor(mask)
    return TokenBatch(tokens, lengths, template)


def render(tokenizer: Any, messages: Chat, *, generation_prompt: bool = False) -> Rendered:
    """A chat through the tokenizer's template, with the places of its messages."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"the tokenizer {_name(tokenizer)!r} has no chat template; use an instruction-tuned model, or plain text"
        )
    contents = [_content(message, i) for i, message in enumerate(messages)]
    text = _apply(tokenizer, messages, contents, generation_prompt)
    stem = "midlens"
    while stem in text:  # marks must be found nowhere else
        stem += "x"
    marks = [f"{stem}{i}end" for i in range(len(contents))]
    marked = _apply(tokenizer, messages, marks, generation_prompt)
    pieces = re.split(f"{stem}(\\d+)end", marked)  # piece, index, piece, index, ..., piece
    if {int(index) for index in pieces[1::2]} == set(range(len(contents))):
        for clean in (str, str.strip, str.rstrip, str.lstrip):
            words = [clean(content) for content in contents]
            woven = "".join(words[int(part)] if i % 2 else part for i, part in enumerate(pieces))
            if woven == text:
                return Rendered(text, _spans(pieces, words))
    raise InputError(
        f"the chat template of {_name(tokenizer)!r} rewrites or drops messages, so template and content cannot be told "
        "apart; give the rendered chat as plain text instead"
    )


def outside(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token, whether it covers no character of `spans`."""
    return [not any(max(start, a) < min(end, b) for a, b in spans) for start, end in offsets]


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a BOS in front of plain text by itself."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and tokenizer("a", verbose=False).input_ids[:1] == [bos]


def _encode(tokenizer: Any, item: Any, generation_prompt: bool) -> tuple[list[int], list[bool]]:
    if isinstance(item, str):
        _refuse_surrogates(item)
        ids = tokenizer(item, add_special_tokens=False, verbose=False).input_ids
        return ids, [False] * len(ids)
    if not _is_chat(item):
        raise InputError(f"expected a text or a chat (a list of {{'role', 'content'}}), got {item!r}")
    text, spans = render(tokenizer, item, generation_prompt=generation_prompt)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("chats need a fast tokenizer: its character offsets say which tokens the template wrote")
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return out.input_ids, outside(spans, out.offset_mapping)


def _is_chat(item: Any) -> bool:
    return (
        isinstance(item, Sequence)
        and not isinstance(item, str)
        and len(item) > 0
        and all(isinstance(message, Mapping) for message in item)
    )


def _content(message: Message, i: int) -> str:
    if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
        raise InputError(f"message {i} is {dict(message)!r}; expected a 'role' and a 'content', both text")
    _refuse_surrogates(message["role"], message["content"])
    return message["content"]


def _refuse_surrogates(*texts: str) -> None:
    """Half of a surrogate pair is no character, and no tokenizer takes it."""
    for text in texts:
        if bad := re.search("[\ud800-\udfff]", text):
            raise InputError(f"the text {text!r:.80} has {bad[0]!r} at place {bad.start()}, which is no character")


def _apply(tokenizer: Any, messages: Chat, contents: list[str], generation_prompt: bool) -> str:
    from jinja2.exceptions import TemplateError

    chat = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation_prompt)
    except TemplateError as error:
        raise InputError(f"the chat template of {_name(tokenizer)!r} refuses this chat: {error}") from error


def _spans(pieces: list[str], words: list[str]) -> list[tuple[int, int]]:
    spans, at = [], 0
    for i, part in enumerate(pieces):
        length = len(words[int(part)]) if i % 2 else len(part)
        if i % 2:
            spans.append((at, at + length))
        at += length
    return spans


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)

"""A tiny model with a word tokenizer and a text, in files, for tests of commands."""

import json
from pathlib import Path

from tests.tiny_models import tiny
from tests.toy_store import documents, word_tokenizer


def tiny_folder(folder: Path, *, name: str = "model", lengths: tuple[int, int] = (30, 40)) -> None:
    """`folder/name` with a Llama and its tokenizer; `folder/text.jsonl`: documents of (words, how many)."""
    tokenizer = word_tokenizer()
    tiny("llama", vocab_size=len(tokenizer)).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    words, count = lengths
    rows = [{"id": document.id, "text": document.text} for document in documents([words] * count)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

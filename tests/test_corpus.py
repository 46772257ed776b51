"""Corpora: ids, digests, splits, the built-in text, and every way a file can be bad."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from interp.builtin_corpus import clean
from interp.cache import cache_dir, write_cached
from interp.corpus import Corpus, Document, read_corpus, split
from interp.errors import InputError


@pytest.fixture(scope="module")
def builtin() -> Corpus:
    return read_corpus("builtin")


def test_builtin_is_large_clean_and_split_by_document(builtin: Corpus):
    assert sum(len(d.text) for d in builtin) > 4 * 500_000  # SmolLM2 reads about 4 characters a token
    assert len({d.text for d in builtin}) == len(builtin)
    assert all(len(d.text) >= 200 and d.text == d.text.strip() and "\n\n\n" not in d.text for d in builtin)
    train, held_out = split(builtin)
    assert {d.id for d in train}.isdisjoint(d.id for d in held_out)
    assert len(train) + len(held_out) == len(builtin)
    assert 0.12 < len(held_out) / len(builtin) < 0.18
    sources = {d.id.split("/")[0] for d in builtin}
    assert {"python", "numpy", "scipy", "sklearn", "pandas"} <= sources


def test_builtin_has_the_text_python_itself_shows(builtin: Corpus):
    """An oracle of its own: the docstrings that importing gives, cleaned."""
    import argparse
    import textwrap

    texts = {d.id: d.text for d in builtin}
    assert texts["python/textwrap:TextWrapper"] == clean(textwrap.TextWrapper.__doc__ or "")
    assert texts["python/argparse:ArgumentParser"] == clean(argparse.ArgumentParser.__doc__ or "")


def test_builtin_is_the_same_without_its_cache_and_imports_nothing(builtin: Corpus, tmp_path: Path):
    code = (
        "import sys; from interp.corpus import read_corpus; print(read_corpus('builtin').digest); "
        "sys.exit(str({'pandas', 'sklearn', 'idlelib'} & set(sys.modules)) if 'pandas' in sys.modules else 0)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == builtin.digest
    assert len(list((tmp_path / "midlens").glob("corpus-*.jsonl"))) == 1


def test_a_damaged_cache_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = [[Document("a", "one")], [Document("b", "two")]]
    monkeypatch.setattr("interp.builtin_corpus._collect", lambda: found.pop(0))
    assert [read_corpus("builtin")[0].id for _ in range(2)] == ["a", "a"]
    (cached,) = (tmp_path / "midlens").glob("corpus-*.jsonl")
    cached.write_text("[damaged")
    assert [read_corpus("builtin")[0].id for _ in range(2)] == ["b", "b"]


def test_split_does_not_move_when_documents_are_added():
    few = Corpus(tuple(Document(f"d{i}", "x") for i in range(200)), "few")
    many = Corpus(tuple(Document(f"d{i}", "x") for i in range(400)), "many")
    held = [{d.id for d in split(c)[1]} for c in (few, many)]
    assert held[0] == {i for i in held[1] if int(i[1:]) < 200}


def test_digest_sees_order_ids_and_text():
    docs = (Document("a", "x"), Document("b", "y"))
    other = [docs[::-1], (docs[0], Document("c", "y")), (docs[0], Document("b", "z"))]
    assert len({Corpus(tuple(d), "s").digest for d in (docs, *other)}) == 4
    assert Corpus(docs, "s").digest == Corpus(docs, "t").digest


def test_formats_agree(tmp_path: Path):
    texts = ["one é", "two\nlines"]
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    for source in (folder, tmp_path / "a.jsonl", tmp_path / "a.parquet"):
        assert [d.text for d in read_corpus(source)] == texts
    assert [d.id for d in read_corpus(folder)] == ["0.txt", "1.txt"]
    assert [d.id for d in read_corpus(tmp_path / "a.jsonl")] == ["a.jsonl:1", "a.jsonl:2"]
    assert len(read_corpus(tmp_path / "a.jsonl", limit=1)) == 1


def test_chat_messages(tmp_path: Path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"id": "c", "messages": [{"role": "user", "content": "hi"}]}))
    (document,) = read_corpus(path)
    assert document.id == "c" and document.messages == ({"role": "user", "content": "hi"},)


def test_invalid_utf8(tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "b\xffad"}\n')
    with pytest.raises(InputError, match=r"bad.jsonl, line 2 is not valid UTF-8: byte 11 is 0xff.*on_invalid"):
        read_corpus(path)
    assert [d.text for d in read_corpus(path, on_invalid="replace")] == ["fine", "b�ad"]
    assert [d.text for d in read_corpus(path, on_invalid="skip")] == ["fine"]
    with pytest.raises(InputError, match="'raise', 'replace' or 'skip', got 'ignore'"):
        inspect.unwrap(read_corpus)(path, on_invalid="ignore")  # without the type checker of the tests


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, "no corpus at"),
        ("empty.txt", b"  \n ", "holds no document"),
        ("odd.csv", b"a,b", "ending '.csv'"),
        ("a.jsonl", b'{"text": 3}', r"has the fields \['text'\]"),
        ("a.jsonl", b"[1]", "is a list"),
        ("a.jsonl", b"{", "is not JSON"),
        ("a.parquet", b"PAR1 no", "not a readable parquet"),
        ("a.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": 1}', "repeats document ids: 1"),
    ],
)
def test_bad_sources(tmp_path: Path, name: str, content: bytes | None, says: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_corpus(tmp_path / name)


def test_empty_folder_and_empty_split(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no \.txt file"):
        read_corpus(tmp_path)
    with pytest.raises(InputError, match="side empty"):
        split(Corpus((Document("a", "x"),), "one"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cache_dir() / "a.json"
    write_cached(path, b"old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_cached(path, b"new")
    assert [p.name for p in path.parent.iterdir()] == ["a.json"] and path.read_bytes() == b"old"

"""Token files: what is in them, what stays out, reuse, and what is refused."""

import json

import numpy as np
import pytest

from interp.corpus import Corpus, Document
from interp.errors import InputError
from interp.tokenfile import TokenFile, tokenize
from tests.toy_store import documents, files_of, token_file, word_tokenizer

CHAT = "{% for m in messages %}<s> w0 {{ m['role'] }} w1 {{ m['content'] }} </s> {% endfor %}"


def test_documents_come_back(tmp_path):
    given = documents([3, 0, 7, 1, 0])
    file = tokenize(given, word_tokenizer(), tmp_path / "t")
    assert (len(file), file.n_tokens, file.manifest["n_empty"]) == (3, 11, 2)
    assert file.ids == ["doc-0", "doc-2", "doc-3"]
    assert file.lengths.tolist() == [3, 7, 1]
    for index, document in enumerate(d for d in given if d.text):
        assert file[index].tolist() == [int(word[1:]) + 4 for word in document.text.split()]
    assert file.tokens.dtype == np.dtype("<u2")
    assert file.special_ids == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        file[3]


def test_large_vocabularies_take_four_bytes(tmp_path):
    file = tokenize([Document("a", "w69999 w3")], word_tokenizer(70_000), tmp_path / "t")
    assert file.tokens.dtype == np.dtype("<u4")
    assert file[0].tolist() == [70_003, 7]


def test_the_result_does_not_depend_on_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("interp.tokenwriter._BATCH_CHARACTERS", 300)
    one, four = (token_file(tmp_path / f"t{w}", [40] * 30, workers=w) for w in (1, 4))
    assert files_of(one.path) == files_of(four.path)


def test_truncation_and_padding_of_other_callers_do_not_reach_it(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer(["w1 w2 w3", "w4"], padding=True, truncation=True, max_length=2)
    file = tokenize(documents([9, 4]), tokenizer, tmp_path / "t")
    assert file.lengths.tolist() == [9, 4]
    assert file.digest == token_file(tmp_path / "u", [9, 4]).digest


def test_limits_keep_whole_documents(tmp_path):
    assert token_file(tmp_path / "a", [5, 5, 5], max_tokens=6).lengths.tolist() == [5, 5]
    assert token_file(tmp_path / "b", [5, 5, 5], max_docs=1).lengths.tolist() == [5]
    with pytest.raises(InputError, match="max_tokens must be at least 1, got 0"):
        token_file(tmp_path / "c", [5], max_tokens=0)


def test_the_same_settings_reuse_the_file(tmp_path):
    first = token_file(tmp_path / "t", [5, 6], max_tokens=9)
    before = (first.path / "manifest.json").stat().st_mtime_ns
    again = token_file(tmp_path / "t", [5, 6], max_tokens=9)
    assert again.digest == first.digest
    assert (first.path / "manifest.json").stat().st_mtime_ns == before


def test_other_settings_are_refused_with_both_named(tmp_path):
    token_file(tmp_path / "t", [5, 6])
    with pytest.raises(InputError, match=r"max_tokens: None there, 3 asked for.*another path"):
        token_file(tmp_path / "t", [5, 6], max_tokens=3)
    with pytest.raises(InputError, match=r"corpus: '.*' there, '.*' asked for"):
        token_file(tmp_path / "t", [5, 7])
    with pytest.raises(InputError, match=r"tokenizer: 'toy-words, sha256 .*' there, 'toy-words, sha256 .*' asked for"):
        tokenize(documents([5, 6]), word_tokenizer(90), tmp_path / "t")


def test_the_digest_of_a_corpus_is_taken_over(tmp_path):
    corpus = Corpus(tuple(documents([4, 4])), "here")
    file = tokenize(corpus, word_tokenizer(), tmp_path / "t")
    assert file.manifest["corpus_digest"] == corpus.digest
    assert tokenize(corpus, word_tokenizer(), tmp_path / "t").digest == file.digest


def test_digests_differ_with_content_boundaries_and_bos(tmp_path):
    digests = {
        token_file(tmp_path / "a", [4, 4]).digest,
        token_file(tmp_path / "b", [4, 4], seed=1).digest,
        token_file(tmp_path / "c", [4, 4], prepend_bos=True).digest,
        tokenize([Document("x", "w1 w2"), Document("y", "w3")], word_tokenizer(), tmp_path / "d").digest,
        tokenize([Document("x", "w1"), Document("y", "w2 w3")], word_tokenizer(), tmp_path / "e").digest,
    }
    assert len(digests) == 5


def test_bos_is_recorded_and_not_stored(tmp_path):
    file = token_file(tmp_path / "t", [4], prepend_bos=True)
    assert file.bos == 1
    assert 1 not in file[0]
    tokenizer = word_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(InputError, match="no BOS token"):
        tokenize(documents([4]), tokenizer, tmp_path / "u", prepend_bos=True)


def test_special_tokens_written_in_the_text_are_recognised(tmp_path):
    file = tokenize([Document("a", "w0 </s> w1")], word_tokenizer(), tmp_path / "t")
    assert file[0].tolist() == [4, 2, 5]


def test_chats_are_labelled(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT
    messages = ({"role": "w2", "content": "w0 w1"}, {"role": "w3", "content": "  w1  "})
    file = tokenize([Document("c", "", messages), Document("p", "w9 w9")], tokenizer, tmp_path / "t")
    assert file[0].tolist() == [1, 4, 6, 5, 4, 5, 2, 1, 4, 7, 5, 5, 2]
    assert file.template is not None
    assert file.template.tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0]


def test_a_chat_template_writes_no_second_bos(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "<s> {{ messages[0]['content'] }}"
    chat = [Document("c", "", ({"role": "user", "content": "w5"},))]
    assert tokenize(chat, tokenizer, tmp_path / "a", prepend_bos=True)[0].tolist() == [9]
    assert tokenize(chat, tokenizer, tmp_path / "b")[0].tolist() == [1, 9]


def test_chats_that_cannot_be_labelled_are_refused(tmp_path):
    chat = [Document("c", "", ({"role": "user", "content": "w5"},))]
    with pytest.raises(InputError, match="document 'c': the tokenizer 'toy-words' has no chat template"):
        tokenize(chat, word_tokenizer(), tmp_path / "a")
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(InputError, match="document 'c': the chat template of 'toy-words' rewrites or drops"):
        tokenize(chat, tokenizer, tmp_path / "b")


def test_bad_documents_are_refused_and_nothing_is_left(tmp_path):
    cases = {
        "no token in the 2 documents given": documents([0, 0]),
        "no token in the 0 documents given": [],
        "'doc-0'; ids must be unique": documents([3]) * 2,
        r"'bad' is no valid Unicode text: character 3 is the lone surrogate U\+D800": [Document("bad", "w1 \ud800")],
    }
    for message, given in cases.items():
        with pytest.raises(InputError, match=message):
            tokenize(given, word_tokenizer(), tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="needs a Hugging Face tokenizer, got str"):
        tokenize(documents([3]), "gpt2", tmp_path / "t")


def test_damage_is_noticed(tmp_path):
    file = token_file(tmp_path / "t", [5, 6])
    tokens = (file.path / "tokens.bin").read_bytes()
    (file.path / "tokens.bin").write_bytes(tokens[:-1])
    with pytest.raises(InputError, match="holds 21 bytes where the manifest says 22"):
        TokenFile.open(file.path)
    (file.path / "tokens.bin").write_bytes(tokens)
    (file.path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="is damaged, it is not JSON"):
        TokenFile.open(file.path)
    (file.path / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="no token file of version 1"):
        TokenFile.open(file.path)
    with pytest.raises(InputError, match="no finished token file"):
        TokenFile.open(tmp_path / "nowhere")


def test_a_killed_run_leaves_nothing_in_the_way(tmp_path):
    leftover = tmp_path / ".t.partial"
    leftover.mkdir()
    (leftover / "tokens.bin").write_bytes(b"123")
    assert token_file(tmp_path / "t", [5]).lengths.tolist() == [5]
    assert not leftover.exists()

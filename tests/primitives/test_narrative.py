"""Narrative text: hand-written documents, and stories that are the same however often their writing was cut off."""

from pathlib import Path

import pytest

from interp.corpus import Document
from interp.errors import InputError
from interp.model import HookedModel
from saes.primitives import narrative
from saes.primitives.data import scenes, story_openings
from saes.primitives.narrative import TextFiles, narrative_corpus, own_documents, read_stories, write_stories
from tests.tiny_models import tiny

OPENINGS = ("The door opened, and", "In the morning she", "We had waited for")


@pytest.fixture(scope="module")
def writer(smollm2: HookedModel) -> HookedModel:
    """A tiny Llama with SmolLM2's tokenizer."""
    return HookedModel.wrap(tiny("llama", vocab_size=len(smollm2.tokenizer)), smollm2.tokenizer)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(narrative, "BATCH", 2)


def _stories(writer: HookedModel, path: Path, n: int = 5, **options: int) -> tuple[Document, ...]:
    return write_stories(writer, OPENINGS, path, n=n, tokens=6, **options)


def test_every_own_text_is_there_once_without_its_label():
    found = own_documents()
    assert len({d.id for d in found}) == len(found) == 75 + 2 * (60 + 24 + 100) + 40
    texts = [d.text for d in found]
    assert {s.text for s in scenes()} <= set(texts) and set(story_openings()) <= set(texts)


def test_a_file_takes_the_place_of_the_bundled_one(tmp_path: Path):
    (tmp_path / "fr.jsonl").write_text('{"text": "Il pleuvait sur le port."}\n')
    found = own_documents(TextFiles(openings=tmp_path / "fr.jsonl"))
    assert [d.text for d in found if d.id.startswith("opening")] == ["Il pleuvait sur le port."]


def test_stories_continue_the_openings_in_turn_and_depend_on_the_seed(writer: HookedModel, tmp_path: Path):
    found = _stories(writer, tmp_path / "a.jsonl")
    assert [d.id for d in found] == [f"story-{i}" for i in range(5)]
    assert all(d.text.startswith(OPENINGS[i % 3]) and len(d.text) > len(OPENINGS[i % 3]) for i, d in enumerate(found))
    assert found[0].text != found[3].text, "the same opening, another random stream"
    assert _stories(writer, tmp_path / "b.jsonl", seed=7) != found


@pytest.mark.parametrize("cut", [0, 1, 130, 400, -1])
def test_writing_that_was_cut_off_anywhere_comes_to_the_same_stories(writer: HookedModel, tmp_path: Path, cut: int):
    path = tmp_path / "a.jsonl"
    whole, kept = _stories(writer, path), path.read_bytes()
    path.write_bytes(kept[:cut])
    assert _stories(writer, path) == whole
    assert path.read_bytes() == kept


def test_what_is_there_is_not_written_again(writer: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.jsonl"
    four, real, batches = _stories(writer, path, n=4), narrative.generate_texts, []
    monkeypatch.setattr(narrative, "generate_texts", lambda *a, **k: (batches.append(1), real(*a, **k))[1])
    assert _stories(writer, path, n=3) == four[:3] and not batches
    assert _stories(writer, path, n=6)[:4] == four and len(batches) == 1


def test_stories_of_other_settings_are_refused(writer: HookedModel, tmp_path: Path):
    _stories(writer, tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"holds stories of other settings \(seed: 0 there, 1 asked for\)"):
        _stories(writer, tmp_path / "a.jsonl", seed=1)
    with pytest.raises(InputError, match="expected n of at least 0, tokens of at least 1 and an opening"):
        write_stories(writer, (), tmp_path / "b.jsonl", n=1)


def test_a_line_out_of_order_ends_what_is_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "story-0", "text": "a"}\n{"id": "story-2", "text": "b"}\n')
    assert [d.id for d in read_stories(path)] == ["story-0"]


def test_own_documents_stand_in_front_of_the_corpus_behind():
    mine = (Document("mine", "Once."),)
    corpus = narrative_corpus(mine)
    assert corpus[0] == mine[0] and len(corpus) > 100
    assert narrative_corpus(mine, behind=None).documents == mine

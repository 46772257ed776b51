"""The bundled categories and texts of the literary primitives, their readers, and what these refuse."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InputError
from interp.resources import data_path
from saes.primitives.categories import CATEGORY_SETS, Categories, categories
from saes.primitives.data import (
    TECHNIQUES,
    ContrastPair,
    PersonPair,
    Scene,
    TechniquePair,
    person_pairs,
    scenes,
    show_tell,
    story_openings,
    technique_pairs,
)

PNAS, PRESS = (categories(name) for name in CATEGORY_SETS)
SIDES: dict[str, list[tuple[str, str]]] = {
    "show-tell": [(pair.show, pair.tell) for pair in show_tell()],
    "technique": [(pair.marked, pair.plain) for pair in technique_pairs()],
    "person": [(pair.first, pair.third) for pair in person_pairs()],
}
ITEMS: list[tuple[str, ...]] = [
    *(pair for pairs in SIDES.values() for pair in pairs),
    *((scene.text,) for scene in scenes()),
    *((opening,) for opening in story_openings()),
]
"""Every text, those of one pair together."""


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’]+", text.lower())


# ---- categories and word lists


def test_the_two_lists_have_27_and_differ_where_they_are_known_to():
    assert len(PNAS) == len(PRESS) == 27 == len(set(PNAS.names)) == len(set(PRESS.names))
    assert set(PNAS.names) - set(PRESS.names) == {"anger", "relief", "surprise", "empathic pain"}
    assert set(PRESS.names) - set(PNAS.names) == {"envy", "sympathy", "triumph", "empathetic pain"}
    assert list(PNAS.names) == sorted(PNAS.names) and PNAS.index("joy") == PNAS.names.index("joy")
    assert PNAS.words["empathic pain"] == PRESS.words["empathetic pain"]


@pytest.mark.parametrize("emotions", [PNAS, PRESS], ids=CATEGORY_SETS)
def test_word_lists_are_of_like_size_and_disjoint(emotions: Categories):
    for category, words in emotions.words.items():
        assert 8 <= len(words) == len(set(words)) <= 20, category
        assert category in words and all(word.strip() == word for word in words)
    for (one, a), (other, b) in combinations(emotions.words.items(), 2):
        assert not {word.casefold() for word in a} & {word.casefold() for word in b}, (one, other)


@pytest.mark.parametrize("emotions", [PNAS, PRESS], ids=CATEGORY_SETS)
def test_every_listed_word_names_its_category_and_no_other(emotions: Categories):
    """Not even as part of a phrase: a phrase that holds another category's word would name both."""
    for category, words in emotions.words.items():
        for word in words:
            assert emotions.named_in(f"It was {word.upper()}.") == (category,), word


def _naive_named_in(emotions: Categories, text: str) -> tuple[str, ...]:
    """Slow and obvious: the phrase's words, one after another among the text's."""
    tokens = re.findall(r"\w+|[^\w\s]", text.casefold())

    def occurs(phrase: str) -> bool:
        wanted = re.findall(r"\w+|[^\w\s]", phrase.casefold())
        return any(tokens[i : i + len(wanted)] == wanted for i in range(len(tokens)))

    return tuple(c for c in emotions.names if any(occurs(word) for word in emotions.words[c]))


_PIECES = ("joy", "joyride", "killjoy", "in", "love", "On\n edge", "the", "hook", "off", "SAD", "sadness", "on", "edge")


@given(st.lists(st.sampled_from([*_PIECES, *(w for words in PRESS.words.values() for w in words)]), max_size=8))
def test_words_are_found_whole_and_in_any_case(pieces: list[str]):
    text = " ".join(pieces)
    for emotions in (PNAS, PRESS):
        assert emotions.named_in(text) == _naive_named_in(emotions, text)


# ---- the bundled texts


def test_counts_and_balance():
    shown, drawn = (Counter(item.emotion for item in items) for items in (show_tell(), scenes()))
    assert len(shown) == 12 and len(drawn) == 15 and set(shown.values()) == set(drawn.values()) == {5}
    assert set(shown) | set(drawn) == set(PNAS.names)
    assert Counter(pair.technique for pair in technique_pairs()) == dict.fromkeys(TECHNIQUES, 12)
    assert len(person_pairs()) == 100 and len(story_openings()) == 40


def test_tell_names_its_emotion_alone_and_what_shows_names_none():
    """Held to both sets: what evokes fear must not say "excited" either, or a word would give the label away."""
    for emotions in (PNAS, PRESS):
        for pair in show_tell():
            assert emotions.named_in(pair.show) == (), pair.show
            assert emotions.named_in(pair.tell) == ((pair.emotion,) if pair.emotion in emotions.names else ()), pair
        for text in (*(s.text for s in scenes()), *(o for o in story_openings()), *sum(SIDES["technique"], ())):
            assert emotions.named_in(text) == (), text


def test_scenes_are_of_two_to_five_sentences():
    for scene in scenes():
        ends = re.findall(r"[.!?]+[\"”]?(?=\s|$)", scene.text)
        assert 2 <= len(ends) <= 6 and 20 <= len(scene.text.split()) <= 60, scene.text


def test_no_text_resembles_another():
    """No two texts of different items share four in ten of their words, or six words in a row."""
    bags = [[set(_words(text)) for text in item] for item in ITEMS]
    for i, j in combinations(range(len(ITEMS)), 2):
        for a in bags[i]:
            assert all(len(a & b) < 0.4 * len(a | b) for b in bags[j]), (ITEMS[i], ITEMS[j])
    runs: dict[tuple[str, ...], int] = {}
    for i, item in enumerate(ITEMS):
        for text in item:
            words = _words(text)
            for start in range(len(words) - 5):
                run = tuple(words[start : start + 6])
                assert runs.setdefault(run, i) == i, (" ".join(run), ITEMS[runs[run]], item)


def test_texts_are_clean():
    for text in (text for item in ITEMS for text in item):
        assert text == text.strip() and "  " not in text and not set(text) & set("{}|*_#\t\n…“”"), text
        assert text[0].isupper() or text[0] == '"', text
        assert text[-1] in '.!?"' and text.count('"') % 2 == 0, text


_PERSON = {
    "i": {"he", "she"}, "i'm": {"he's", "she's"}, "me": {"him", "her"}, "my": {"his", "her"}, "mine": {"his", "hers"},
    "myself": {"himself", "herself"}, "we": {"they"}, "us": {"them"}, "our": {"their"}, "ourselves": {"themselves"},
    "am": {"is"}, "have": {"has"}, "do": {"does"}, "don't": {"doesn't"},
}  # fmt: skip


def test_in_person_pairs_nothing_but_the_person_changes():
    for pair in person_pairs():
        first, third = _words(pair.first), _words(pair.third)
        assert len(first) == len(third), pair
        changed = [(a, b) for a, b in zip(first, third, strict=True) if a != b]
        assert changed and all(b in _PERSON.get(a, {a + "s"}) for a, b in changed), pair
        assert not set(third) & {"i", "i'm", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"}, pair
        assert re.sub(r"[\w'’]", "", pair.first) == re.sub(r"[\w'’]", "", pair.third), "punctuation stays"
    subjects = Counter(next(w for w in _words(p.third) if w in ("he", "she", "they", "his", "her", "their", "she's"))
                       for p in person_pairs())  # fmt: skip
    assert subjects["he"] + subjects["his"] >= 30 and subjects["she"] + subjects["her"] >= 30
    assert subjects["they"] + subjects["their"] >= 12
    lengths = [len(p.first.split()) for p in person_pairs()]
    assert min(lengths) < 10 and max(lengths) >= 40 and np.std(lengths) > 6


def _counts(texts: Sequence[str]) -> np.ndarray:
    return np.array([[len(text), len(text.split())] for text in texts], float)


def _held_out_accuracy(x: np.ndarray, y: np.ndarray, groups: np.ndarray, *, intercept: bool) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(with_mean=intercept), LogisticRegression(fit_intercept=intercept))
    return float(np.mean(cross_val_predict(fitted, x, y, groups=groups, cv=GroupKFold(10)) == y))


@pytest.mark.parametrize("name", SIDES)
def test_numbers_of_characters_and_words_do_not_give_the_side_away(name: str):
    """Fitted on nine tenths of the pairs, tested on the last; and the majority of pairs leans to neither side."""
    one, two = (_counts(texts) for texts in zip(*SIDES[name], strict=True))
    y, groups = np.repeat([0, 1], len(one)), np.tile(np.arange(len(one)), 2)
    assert _held_out_accuracy(np.vstack([one, two]), y, groups, intercept=True) < 0.65
    for pair, a, b in zip(SIDES[name], one, two, strict=True):
        assert (np.abs(a - b) <= (16, 8)).all(), pair
    if name == "person":
        return  # "she" is longer than "I"; the number of words, which is what a reader of tokens meets, is equal
    between = np.vstack([one - two, two - one])
    assert _held_out_accuracy(between, y, groups, intercept=False) < 0.65
    for kind in (0, 1):
        longer, shorter = (one[:, kind] > two[:, kind]).mean(), (one[:, kind] < two[:, kind]).mean()
        assert max(longer, shorter) < 0.65


def test_the_length_test_finds_texts_of_different_length():
    rng = np.random.default_rng(0)
    one = rng.integers(150, 220, (60, 1)) * [1.0, 0.2]
    y, groups = np.repeat([0, 1], 60), np.tile(np.arange(60), 2)
    between = np.vstack([[[-4.0, -1.0]] * np.ones((60, 1)), [[4.0, 1.0]] * np.ones((60, 1))])
    assert _held_out_accuracy(np.vstack([one, one + np.array([60.0, 12.0])]), y, groups, intercept=True) > 0.8
    assert _held_out_accuracy(between, y, groups, intercept=False) == 1


# ---- the readers


def _file(folder: Path, *rows: Any, name: str = "own.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows))
    return path


PAIR = {"emotion": "joy", "show": "She sang on the stairs.", "tell": "She was full of joy."}


def test_a_further_language_is_read_from_files(tmp_path: Path):
    row = {"emotion": "tristesse", "show": "Il mit deux couverts.", "tell": "Il était triste."}
    words = {"joy": ["joie", "heureux", "Heureuse"], "sadness": ["tristesse", "triste"], "fear": ["peur"]}
    own = tmp_path / "fr.json"
    own.write_text(json.dumps({"name": "fr", "words": {"joie": words["joy"], "tristesse": words["sadness"]}}))
    emotions = categories(own)
    assert (emotions.name, emotions.names, len(emotions)) == ("fr", ("joie", "tristesse"), 2)
    assert emotions.named_in("Elle était heureuse, puis TRISTE.") == ("joie", "tristesse")
    pairs = show_tell(_file(tmp_path, row, ""), emotions=emotions)
    assert pairs == (ContrastPair("tristesse", "Il mit deux couverts.", "Il était triste."),)
    assert emotions.named_in(pairs[0].tell) == ("tristesse",) and not emotions.named_in(pairs[0].show)

    named = tmp_path / "mots.json"
    named.write_text(json.dumps({"joie": ["joie", "gai"], "tristesse": ["triste"], "peur": ["peur"]}))
    assert categories(own, words=named).words == {"joie": ("joie", "gai"), "tristesse": ("triste",)}
    with pytest.raises(InputError, match=r"mots\.json has no word list for admiration, adoration"):
        categories(words=named)


def test_other_readers_take_a_path(tmp_path: Path):
    row = {"technique": "deep-pov", "marked": "Zu spät. Natürlich.", "plain": "Er sah, dass es zu spät war."}
    assert technique_pairs(_file(tmp_path, row)) == (TechniquePair(**row),)
    row = {"text": "Nadie se movió.", "emotion": "fear"}
    assert scenes(str(_file(tmp_path, row))) == (Scene("fear", "Nadie se movió."),)
    row = {"first": "Me fui.", "third": "Se fue."}
    assert person_pairs(_file(tmp_path, row)) == (PersonPair("Me fui.", "Se fue."),)
    assert story_openings(_file(tmp_path, {"text": "Llovía."})) == ("Llovía.",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((PAIR, "{not JSON"), r"own\.jsonl, line 2 is not JSON \(.*\); one object a line"),
        ((PAIR, "[1]"), r"line 2: expected an object, got \[1\]"),
        (({"emotion": "joy", "show": "A."},), r"line 1: expected emotion, show, tell, all of them text .* got"),
        (({**PAIR, "split": "train"},), r"line 1: expected emotion, show, tell"),
        (({**PAIR, "tell": " "},), r"none empty, got"),
        (({**PAIR, "show": 3},), r"all of them text"),
        (({**PAIR, "emotion": "hope"},), r"line 1: unknown emotion 'hope'; known: admiration, adoration, .*surprise"),
        ((PAIR, "", {**PAIR, "show": "B."}), r"line 3: the text 'She was full of joy\.' stands in line 1 already"),
        (({**PAIR, "tell": PAIR["show"]},), r"line 1: .* stands in line 1 already; every text once"),
        (("", " "), r"holds no texts; expected lines with emotion, show, tell"),
    ],
)
def test_the_reader_says_what_is_wrong(tmp_path: Path, rows: tuple[Any, ...], message: str):
    with pytest.raises(InputError, match=message):
        show_tell(_file(tmp_path, *rows))


def test_unknown_techniques_absent_and_undecodable_files(tmp_path: Path):
    with pytest.raises(InputError, match=r"unknown technique 'irony'; known: defamiliarisation, deep-pov"):
        technique_pairs(_file(tmp_path, {"technique": "irony", "marked": "A.", "plain": "B."}))
    with pytest.raises(InputError, match=r"unknown emotion 'anger'; known: admiration"):
        scenes(_file(tmp_path, {"emotion": "anger", "text": "A."}), emotions=PRESS)
    with pytest.raises(InputError, match=r"cannot read texts from .*absent\.jsonl"):
        person_pairs(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(InputError, match=r"latin\.jsonl, line 1 is not UTF-8 \(byte 13"):
        story_openings(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"words": {"a": ["x"], "b": ["y"]}}, r'expected \{"name", "words": .*got the keys \[\'words\'\]'),
        ({"name": "n", "words": ["a"]}, r'expected \{"name", "words"'),
        ({"name": "n", "words": {"a": ["x"]}}, r"at least two categories to tell apart, got 1"),
        ({"name": "n", "words": {"a": ["x"], "b": []}}, r"a list of words for 'b', none of them empty, got \[\]"),
        ({"name": "n", "words": {"a": ["x"], "b": ["y", " "]}}, r"list of words for 'b', none of them empty"),
        ({"name": "n", "words": {"a": ["x"], "b": "y"}}, r"expected a list of words for 'b'"),
        ({"name": "n", "words": {"a": ["x"], "b": ["X"]}}, r"the word 'X' stands for 'a' and for 'b'; a word belongs"),
        ({"name": "n", "words": {"a": ["x", "x"], "b": ["y"]}}, r"the word 'x' stands twice for 'a'"),
        ([1], r"expected an object of categories, got \[1\]"),
    ],
)  # fmt: skip
def test_categories_of_ones_own_are_checked(tmp_path: Path, own: Any, message: str):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    with pytest.raises(InputError, match=message):
        categories(path)


def test_unknown_categories_and_damaged_files(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"no categories 'plutchik': .* published sets are cowen-keltner-2017, press-rel"
    ):
        categories("plutchik")
    with pytest.raises(InputError, match=r"unknown category 'envy' in cowen-keltner-2017; known: admiration"):
        PNAS.index("envy")
    (tmp_path / "own.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read categories or words from .*own\.json"):
        categories(tmp_path / "own.json")
    with pytest.raises(InputError, match=r"cannot read categories or words from .*absent\.json"):
        categories(words=tmp_path / "absent.json")


@pytest.mark.parametrize("read", [show_tell, technique_pairs, scenes, person_pairs, story_openings])
def test_the_default_is_the_bundled_file(read: Callable[..., tuple[Any, ...]]):
    assert read() == read(data_path(f"primitives/{read.__name__}.jsonl"))

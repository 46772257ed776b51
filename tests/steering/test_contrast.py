"""The bundled contrast sets, their templates, the reader and what it refuses."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from interp.errors import InputError
from interp.resources import data_path
from interp.steering.contrast import SETS, ContrastSet, read_contrast
from interp.steering.templates import expand, write_lines

FOLDER = data_path("contrast/sentiment.jsonl").parent
LARGE = ("sentiment", "formality", "horse-motorcycle")


def _texts(contrast: ContrastSet) -> tuple[list[str], list[str]]:
    train = [*contrast.train.source, *contrast.train.target]
    return train, [*contrast.held_out.source, *contrast.held_out.target]


@pytest.mark.parametrize("name", [*SETS, "unrelated"])
def test_the_bundled_lines_are_what_the_templates_say(name: str, tmp_path: Path):
    write_lines(expand(FOLDER / "templates" / f"{name}.json"), tmp_path / "made.jsonl")
    assert (tmp_path / "made.jsonl").read_text() == (FOLDER / f"{name}.jsonl").read_text()


@pytest.mark.parametrize("name", SETS)
def test_bundled_sets_are_paired_balanced_and_large_enough(name: str):
    contrast = read_contrast(name)
    for split in (contrast.train, contrast.held_out):
        assert len(split.source) == len(split.target) == len(split.pairs) >= 20
        assert [i for i, _ in split.pairs] == list(range(len(split.source)))
        assert all(split.source[i] != split.target[j] for i, j in split.pairs)
    total = len(contrast.train.source) + len(contrast.held_out.source)
    assert total >= (200 if name in LARGE else 60) and len(contrast.unrelated) >= 200
    assert len(contrast.held_out.unrelated) >= 60
    assert contrast.source.description and contrast.target.description
    assert not set(contrast.source.words) & set(contrast.target.words)


@pytest.mark.parametrize("name", SETS)
def test_held_out_texts_are_unlike_those_of_training(name: str):
    """No two texts of different splits share 7 in 10 of their words; no text occurs in two sets' splits."""
    train, held = _texts(read_contrast(name))
    words = [set(text.lower().split()) for text in train]
    for text in held:
        own = set(text.lower().split())
        assert max(len(own & other) / len(own | other) for other in words) < 0.7, text
    unrelated = set(read_contrast(name).unrelated)
    assert not unrelated & set(chain(train, held))


@pytest.mark.parametrize("name", SETS)
def test_numbers_of_characters_and_words_do_not_give_the_side_away(name: str):
    """A classifier of the two counts, fitted on one split, on both: what it finds is length, not the concept."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    contrast = read_contrast(name)
    counts = [np.array([[len(text), len(text.split())] for text in texts]) for texts in _texts(contrast)]
    sides = [np.repeat([0, 1], len(split.source)) for split in (contrast.train, contrast.held_out)]
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(counts[0], sides[0])
    assert fitted.score(counts[0], sides[0]) < 0.65 and fitted.score(counts[1], sides[1]) < 0.65


def test_unrelated_prompts_name_no_concept():
    """None has a word of a topic set's lists; words of mood and grammar are everywhere and do not count."""
    topics = [read_contrast(name) for name in ("horse-motorcycle", "dog-cat")]
    named = set(chain.from_iterable(c.source.words + c.target.words for c in topics))
    for text in topics[0].unrelated:
        assert not named & set("".join(c if c.isalnum() else " " for c in text.lower()).split()), text


def test_reversing_exchanges_the_sides():
    contrast = read_contrast("dog-cat")
    turned = contrast.reversed()
    assert turned.source.name == "cats" and turned.train.source == contrast.train.target
    i, j = turned.held_out.pairs[3]
    assert (j, i) == contrast.held_out.pairs[3] and turned.held_out.target[j] == contrast.held_out.source[j]
    assert turned.reversed() == contrast


def test_openings_leave_the_concept_open():
    contrast = read_contrast("sentiment")
    assert len(contrast.held_out.open) >= 12 and not set(contrast.held_out.open) & set(contrast.train.open)
    assert read_contrast("horse-motorcycle").held_out.open == ()


GOOD = [
    {"text": "a b", "side": "source", "template": "1", "split": "train", "pair": "p"},
    {"text": "a c", "side": "target", "template": "1", "split": "train", "pair": "p"},
    {"text": "d b", "side": "source", "template": "2", "split": "held_out"},
    {"text": "d c", "side": "target", "template": "2", "split": "held_out"},
]


def _write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_file_of_ones_own(tmp_path: Path):
    own = read_contrast(_write(tmp_path / "mine.jsonl", GOOD))
    assert own.name == "mine" and own.form == "text" and own.source.name == "source" and own.source.words == ()
    assert own.train.source == ("a b",) and own.train.pairs == ((0, 0),) and own.held_out.pairs == ()
    assert own.unrelated == read_contrast("tense").unrelated, "the bundled ones, where the file has none"
    header = {"set": {"form": "prompt", "source": {"name": "bees", "words": ["bee"]}}}
    extra = {"text": "x", "side": "unrelated", "template": "3", "split": "train"}
    own = read_contrast(_write(tmp_path / "mine.jsonl", [header, *GOOD, "", extra]))
    assert own.form == "prompt" and own.source.words == ("bee",) and own.target.name == "target"
    assert own.unrelated == ("x",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{oops", r"line 5 is not JSON"),
        ("[1]", r"line 5: expected an object"),
        ({"text": "x"}, "line 5: expected text, side, template, split and optionally pair"),
        ({**GOOD[0], "text": " "}, "none empty"),
        ({**GOOD[0], "colour": "x"}, "line 5: expected text, side"),
        ({**GOOD[0], "side": "left"}, "unknown side 'left'; known: source, target, open, unrelated"),
        ({**GOOD[0], "text": "new", "split": "test"}, "unknown split 'test'; known: train, held_out"),
        ({**GOOD[0], "side": "target"}, "'a b' occurs twice, as source in train and as target in train"),
        ({**GOOD[0], "split": "held_out"}, "'a b' occurs twice, as source in train and as source in held_out"),
        ({**GOOD[0], "text": "new", "split": "held_out"}, "the template '1' is in train and in held_out"),
    ],
)
def test_malformed_lines_are_refused_with_their_place(tmp_path: Path, change, message: str):
    with pytest.raises(InputError, match=message):
        read_contrast(_write(tmp_path / "mine.jsonl", [*GOOD, change]))


def test_other_refusals(tmp_path: Path):
    with pytest.raises(InputError, match=r"no contrast set 'colour'.*sentiment, formality, person"):
        read_contrast("colour")
    with pytest.raises(InputError, match="the held_out split has no source text"):
        read_contrast(_write(tmp_path / "a.jsonl", GOOD[:2]))
    with pytest.raises(InputError, match="holds no texts"):
        read_contrast(_write(tmp_path / "a.jsonl", [""]))
    with pytest.raises(InputError, match="unknown form 'poem'; known: text, prompt"):
        read_contrast(_write(tmp_path / "a.jsonl", [{"set": {"form": "poem"}}, *GOOD]))
    with pytest.raises(InputError, match="lower-case words"):
        read_contrast(_write(tmp_path / "a.jsonl", [{"set": {"source": {"name": "x", "words": ["Bee"]}}}, *GOOD]))


def test_templates_fill_in_parallel_and_refuse_what_does_not_fit(tmp_path: Path):
    template = {"id": "t", "split": "train", "source": "{a} is {b}.", "target": "not {b} is {a}."}
    slots = {"a": ["one", "two"], "b": [["red", "blue"], "green"]}

    def made(**change) -> list[dict]:
        spec = {"form": "text", "templates": [{**template, "slots": slots, **change}]}
        path = tmp_path / "spec.json"
        path.write_text(json.dumps(spec))
        return expand(path)

    assert [row["text"] for row in made()[1:]] == [
        "One is red.",
        "Not blue is one.",
        "Two is green.",
        "Not green is two.",
    ]
    assert [row["pair"] for row in made()[1:]] == ["t-0", "t-0", "t-1", "t-1"]
    for wrong in ({"slots": {"a": ["one"]}}, {"slots": {**slots, "b": ["red"]}}, {"slots": {**slots, "c": ["x", "y"]}}):
        with pytest.raises(InputError, match=r"template 't': the sentences use the slots \['a', 'b'\]"):
            made(**wrong)
    with pytest.raises(InputError, match=r'expected a template with "id", "split"'):
        made(split="dev")
    with pytest.raises(InputError, match="cannot read templates"):
        expand(tmp_path / "none.json")

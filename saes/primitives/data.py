"""Readers of the hand-written texts by which features are found: contrast pairs, scenes, paraphrases, openings.

    show_tell()         emotion, show, tell: the same feeling, evoked by a scene or named
    technique_pairs()   technique, marked, plain: the same content, with the technique and without
    scenes()            emotion, text: scenes that evoke an emotion and do not name it
    person_pairs()      first, third: the same text told by I or we, and of her, him or them
    story_openings()    neutral first lines of stories, to be continued by a model

Each reads the bundled English file, or with `path` another of the same form (one JSON object a line), for instance in
another language. The fields are those of the value, in any order. Emotions go by the names of `emotions`, whatever the
language of the texts; without it those of Cowen and Keltner 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from interp.errors import InputError
from interp.jsonlines import json_objects
from interp.resources import data_path
from saes.primitives.categories import Categories, categories

TECHNIQUES = ("defamiliarisation", "deep-pov")


@dataclass(frozen=True)
class ContrastPair:
    """One feeling twice: `show` evokes it by a scene, `tell` names it."""

    emotion: str
    show: str
    tell: str


@dataclass(frozen=True)
class TechniquePair:
    """One content twice: `marked` by the technique, and in `plain` or distant narration."""

    technique: str
    marked: str
    plain: str


@dataclass(frozen=True)
class Scene:
    """A scene that evokes an emotion without naming it."""

    emotion: str
    text: str


@dataclass(frozen=True)
class PersonPair:
    """One text in the first person and in the third."""

    first: str
    third: str


@dataclass(frozen=True)
class Opening:
    """The first lines of a story."""

    text: str


Item = TypeVar("Item", ContrastPair, TechniquePair, Scene, PersonPair, Opening)


def show_tell(path: str | Path | None = None, *, emotions: Categories | None = None) -> tuple[ContrastPair, ...]:
    """Show-don't-tell pairs; the bundled 60 are five for each of twelve emotions."""
    return _read(ContrastPair, path or data_path("primitives/show_tell.jsonl"), {"emotion": _names(emotions)})


def technique_pairs(path: str | Path | None = None) -> tuple[TechniquePair, ...]:
    """Minimal pairs of a literary technique; the bundled 24 are twelve for each of `TECHNIQUES`."""
    return _read(TechniquePair, path or data_path("primitives/technique_pairs.jsonl"), {"technique": TECHNIQUES})


def scenes(path: str | Path | None = None, *, emotions: Categories | None = None) -> tuple[Scene, ...]:
    """Scenes; the bundled 75 are five for each of the fifteen emotions that the show-don't-tell pairs leave out."""
    return _read(Scene, path or data_path("primitives/scenes.jsonl"), {"emotion": _names(emotions)})


def person_pairs(path: str | Path | None = None) -> tuple[PersonPair, ...]:
    """First-person texts and the same in the third person; 100 are bundled."""
    return _read(PersonPair, path or data_path("primitives/person_pairs.jsonl"), {})


def story_openings(path: str | Path | None = None) -> tuple[str, ...]:
    """Openings of stories; 40 are bundled."""
    return tuple(o.text for o in _read(Opening, path or data_path("primitives/story_openings.jsonl"), {}))


def _names(emotions: Categories | None) -> tuple[str, ...]:
    return (emotions or categories()).names


def _read(kind: type[Item], path: str | Path, labels: dict[str, Sequence[str]]) -> tuple[Item, ...]:
    """Every line as a `kind`; `labels` are its fields that are no texts, with their known values."""
    items: list[Item] = []
    lines: dict[str, int] = {}
    keys = [field.name for field in fields(kind)]
    for number, row in json_objects(Path(path), "texts"):
        place = f"{path}, line {number}"
        if set(row) != set(keys) or not all(isinstance(value, str) and value.strip() for value in row.values()):
            raise InputError(f"{place}: expected {', '.join(keys)}, all of them text and none empty, got {row!r}")
        for label, known in labels.items():
            if row[label] not in known:
                raise InputError(f"{place}: unknown {label} {row[label]!r}; known: {', '.join(known)}")
        for text in (row[key] for key in keys if key not in labels):
            if text in lines:
                raise InputError(f"{place}: the text {text!r} stands in line {lines[text]} already; every text once")
            lines[text] = number
        items.append(kind(**row))
    if not items:
        raise InputError(f"{path} holds no texts; expected lines with {', '.join(keys)}")
    return tuple(items)

"""Contrast sets: texts with and without a concept, for fitting an edit (train) and for judging it (held out).

    contrast = read_contrast("sentiment")                # or a path to a .jsonl file
    contrast.train.source, contrast.train.target         # fit on these
    contrast.held_out.source, contrast.held_out.unrelated   # judge on these: no template of theirs occurs in train

The file has one object a line:

    {"text": ..., "side": "source" | "target" | "open" | "unrelated", "template": ..., "split": "train" | "held_out",
     "pair": ...}                                                                  (pair: optional)
    {"set": {"form": "text" | "prompt", "source": {"name", "description", "words"}, "target": {...}}}
                                                                                   (optional, the first line)

`source` has the concept to be moved away from, `target` the one to be moved to. `open` texts leave it to the model;
`unrelated` ones have nothing to do with either: covariance is estimated on them, side effects are measured on them. A
file without such lines gets the bundled ones. `form` says what the texts are: a `prompt` is to be put to the model as
an instruction, a `text` is read as it stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from interp.errors import InputError
from interp.jsonlines import json_objects
from interp.resources import data_path
from interp.steering.templates import SIDES, SPLITS

Form = Literal["text", "prompt"]
SETS = ("sentiment", "formality", "person", "tense", "horse-motorcycle", "dog-cat", "refusal")
FORMS = ("text", "prompt")
_KEYS = {"text", "side", "template", "split", "pair"}


@dataclass(frozen=True)
class Concept:
    """What one side has and the other has not, in words: judges are asked about it by name and description."""

    name: str
    description: str = ""
    words: tuple[str, ...] = ()
    """Words that speak for the concept; lower case. For lexicons, not for fitting."""


@dataclass(frozen=True)
class Split:
    """The texts of one split, by side."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    open: tuple[str, ...]
    unrelated: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    """(place in `source`, place in `target`) of the two halves of each minimal pair."""


@dataclass(frozen=True)
class ContrastSet:
    """A concept's two sides, in two splits; see the module's docstring."""

    name: str
    form: Form
    concepts: tuple[Concept, Concept]
    """Of the source side, of the target side."""
    train: Split
    held_out: Split

    @property
    def source(self) -> Concept:
        """The concept to be moved away from."""
        return self.concepts[0]

    @property
    def target(self) -> Concept:
        """The concept to be moved to."""
        return self.concepts[1]

    @property
    def unrelated(self) -> tuple[str, ...]:
        """The unrelated texts of both splits."""
        return self.train.unrelated + self.held_out.unrelated

    def reversed(self) -> "ContrastSet":
        """The same set with source and target exchanged."""

        def turned(split: Split) -> Split:
            pairs = tuple((j, i) for i, j in split.pairs)
            return replace(split, source=split.target, target=split.source, pairs=pairs)

        concepts = (self.target, self.source)
        return replace(self, concepts=concepts, train=turned(self.train), held_out=turned(self.held_out))


def read_contrast(name: str | Path) -> ContrastSet:
    """A bundled contrast set by name, or a .jsonl file of one's own."""
    path = Path(name)
    if str(name) in SETS:
        path = data_path(f"contrast/{name}.jsonl")
    elif not path.is_file():
        raise InputError(
            f"there is no contrast set {str(name)!r}: no file of that name, and the bundled ones are {', '.join(SETS)}"
        )
    header, rows = _checked(path)
    if not any(row["side"] == "unrelated" for row in rows):
        rows += _checked(data_path("contrast/unrelated.jsonl"))[1]
    train, held_out = (_split([row for row in rows if row["split"] == split]) for split in SPLITS)
    for split, side in ((split, side) for split in (train, held_out) for side in ("source", "target")):
        if not getattr(split, side):
            raise InputError(
                f"{path}: the {'train' if split is train else 'held_out'} split has no {side} text; expected both "
                "sides in both splits"
            )
    return ContrastSet(path.stem, header["form"], header["concepts"], train, held_out)


def _split(rows: list[dict[str, Any]]) -> Split:
    sides = {side: [row for row in rows if row["side"] == side] for side in SIDES}
    place = {row["pair"]: i for i, row in enumerate(sides["target"]) if "pair" in row}
    pairs = tuple((i, place[p]) for i, row in enumerate(sides["source"]) if (p := row.get("pair")) in place)
    return Split(**{side: tuple(row["text"] for row in sides[side]) for side in SIDES}, pairs=pairs)


def _checked(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and texts of a file; refuses what would make a fit or its evaluation wrong."""
    header: dict[str, Any] = {"form": "text", "concepts": (Concept("source"), Concept("target"))}
    rows: list[dict[str, Any]] = []
    texts: dict[str, dict[str, Any]] = {}
    templates: dict[str, str] = {}
    for number, row in json_objects(path, "a contrast set"):
        place = f"{path}, line {number}"
        if "set" in row and not rows:
            header = _header(row, place)
            continue
        _check_row(row, place)
        if (twin := texts.get(row["text"])) is not None:
            raise InputError(
                f"{place}: the text {row['text']!r} occurs twice, as {twin['side']} in {twin['split']} and as "
                f"{row['side']} in {row['split']}; a text is on one side, in one split, once"
            )
        if (split := templates.setdefault(row["template"], row["split"])) != row["split"]:
            raise InputError(
                f"{place}: the template {row['template']!r} is in {split} and in {row['split']}; its texts are alike, "
                "so they belong to one split"
            )
        texts[row["text"]] = row
        rows.append(row)
    if not rows:
        raise InputError(f'{path} holds no texts; expected lines {{"text", "side", "template", "split"}}')
    return header, rows


def _check_row(row: Mapping[str, Any], place: str) -> None:
    required = _KEYS - {"pair"}
    if not required <= set(row) <= _KEYS or not all(isinstance(value, str) and value.strip() for value in row.values()):
        raise InputError(
            f"{place}: expected text, side, template, split and optionally pair, all of them text and none empty, got "
            f"{dict(row)!r}"
        )
    for key, known in (("side", SIDES), ("split", SPLITS)):
        if row[key] not in known:
            raise InputError(f"{place}: unknown {key} {row[key]!r}; known: {', '.join(known)}")


def _header(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    about = row["set"]
    if not isinstance(about, dict) or set(row) != {"set"} or not set(about) <= {"form", "source", "target"}:
        raise InputError(f'{place}: expected {{"set": {{"form", "source", "target"}}}} alone, got {dict(row)!r}')
    form = about.get("form", "text")
    if form not in FORMS:
        raise InputError(f"{place}: unknown form {form!r}; known: {', '.join(FORMS)}")
    concepts = tuple(_concept(about.get(side, {"name": side}), place) for side in ("source", "target"))
    return {"form": form, "concepts": concepts}


def _concept(about: Any, place: str) -> Concept:
    words = about.get("words", []) if isinstance(about, dict) else None
    if words is None or not set(about) <= {"name", "description", "words"} or not isinstance(about.get("name"), str):
        raise InputError(f'{place}: expected {{"name", "description", "words"}} of a concept, got {about!r}')
    if not isinstance(words, list) or not all(isinstance(word, str) and word == word.lower() for word in words):
        raise InputError(f"{place}: the words of {about['name']!r} must be a list of lower-case words, got {words!r}")
    return Concept(about["name"], about.get("description", ""), tuple(words))

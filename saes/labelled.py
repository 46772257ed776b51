"""Labelled text for probing: what comes with the package, what the corpus itself says, and the user's own.

A text has a label and a group. Texts of one group are never split between training and test: the two halves of a
minimal pair, the fillings of one template, docstrings of one module. Otherwise a probe would be tested on what it has
seen under another name.

    bundled(task)           `language`, `person`, `sentiment`, `tense`, `topic`: data/labelled_texts.jsonl
    from_corpus(corpus)     which package a document of the built-in corpus comes from, equally many words of each
    read_labelled(path)     .jsonl with {"text", "label"} and optionally "group" a line
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from interp.corpus import Document, id_hash
from interp.errors import InputError
from interp.jsonlines import json_objects
from interp.resources import data_path

TASKS = ("language", "person", "sentiment", "tense", "topic")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts, their labels and their groups, of equal length; without groups every text is one by itself."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", tuple(map(str, range(len(self.texts)))))
        if not len(self.texts) == len(self.labels) == len(self.groups):
            raise InputError(
                f"{self.name}: {len(self.texts)} texts, {len(self.labels)} labels and {len(self.groups)} groups; "
                "expected equally many"
            )
        if empty := [i for i, text in enumerate(self.texts) if not text.strip()]:
            raise InputError(f"{self.name}: text {empty[0]} is empty; leave it out")
        counts = Counter(self.labels)
        if len(counts) < 2 or min(counts.values()) < 4:
            raise InputError(
                f"{self.name}: expected two classes or more with at least 4 texts each, got {dict(counts)}"
            )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def classes(self) -> tuple[str, ...]:
        """The distinct labels, sorted."""
        return tuple(sorted(set(self.labels)))

    def is_test(self, *, share: float = 0.3, seed: int = 0) -> Bool[np.ndarray, " n"]:
        """Which texts are held out: whole groups, about `share` of the groups of each combination of labels."""
        if not 0 < share < 1:
            raise InputError(f"the share of test groups must lie between 0 and 1, got {share}")
        kinds: dict[str, set[str]] = {}
        for group, label in zip(self.groups, self.labels, strict=True):
            kinds.setdefault(group, set()).add(label)
        strata: dict[tuple[str, ...], list[str]] = {}
        for group, found in kinds.items():
            strata.setdefault(tuple(sorted(found)), []).append(group)
        held: set[str] = set()
        for members in strata.values():
            members.sort(key=lambda group: id_hash(f"{seed}:{group}"))
            held.update(members[: max(1, round(share * len(members)))] if len(members) > 1 else [])
        test = np.array([group in held for group in self.groups])
        for name, side in (("training", ~test), ("test", test)):
            seen = {label for label, inside in zip(self.labels, side, strict=True) if inside}
            if missing := sorted(set(self.classes) - seen):
                raise InputError(
                    f"{self.name}: the {name} side has no text of {', '.join(missing)}: "
                    "their groups are too few to be divided; give more groups, or smaller ones"
                )
        return test


def bundled(task: str) -> LabelledTexts:
    """One of the tasks that come with the package."""
    if task not in TASKS:
        raise InputError(f"there is no bundled task {task!r}; known: {', '.join(TASKS)}")
    rows = [row for _, row in json_objects(data_path("labelled_texts.jsonl"), "labelled texts") if row["task"] == task]
    return _of_rows(task, rows)


def read_labelled(path: str | Path) -> LabelledTexts:
    """Read a .jsonl file of {"text", "label"} and optionally "group"."""
    path = Path(path)
    rows = []
    for number, row in json_objects(path, "labelled texts"):
        if not isinstance(row.get("text"), str) or "label" not in row:
            raise InputError(f'{path}, line {number}: expected {{"text": ..., "label": ...}}, got {row!r:.200}')
        rows.append(row)
    return _of_rows(path.stem, rows)


def from_corpus(documents: Iterable[Document], *, per_class: int = 60, words: int = 30) -> LabelledTexts:
    """Which package a docstring comes from; every text is `words` consecutive words from the middle of a document.

    Groups are modules. Documents shorter than that are skipped, classes with fewer than 4 texts left out.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for document in documents:
        package, _, rest = document.id.partition("/")
        parts = document.text.split()
        kept = found.setdefault(package, [])
        if len(parts) >= words and len(kept) < per_class:
            start = (len(parts) - words) // 2
            kept.append((" ".join(parts[start : start + words]), f"{package}/{rest.split(':')[0]}"))
    rows = [
        {"text": text, "label": package, "group": group}
        for package, kept in sorted(found.items())
        if len(kept) >= 4
        for text, group in kept
    ]
    return _of_rows("package", rows)


def _of_rows(name: str, rows: Sequence[dict[str, Any]]) -> LabelledTexts:
    columns = zip(*((r["text"], str(r["label"]), str(r.get("group", i))) for i, r in enumerate(rows)), strict=True)
    texts, labels, groups = columns if rows else ((), (), ())
    return LabelledTexts(name, texts, labels, groups)

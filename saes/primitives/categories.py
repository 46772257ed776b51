"""The 27 categories of emotion in both published forms, and the words that name each.

    emotions = categories("cowen-keltner-2017")          # or "press-release", or a .json file of one's own
    emotions.words["boredom"]                            # ("boredom", "bored", "tedium", ..., "ennui")
    emotions.named_in("She was bored to tears.")         # ("boredom",)
    categories("cowen-keltner-2017", words="mots.json")  # the same categories, named in another language

`cowen-keltner-2017` is the list of Cowen and Keltner (PNAS 2017, doi 10.1073/pnas.1702247114); `press-release` is the
one that circulates in reports on that paper: envy, sympathy and triumph in place of anger, relief and surprise, and
"empathetic" for "empathic". The names are theirs; the word lists are our own. A word belongs to one category of a set,
whatever its case, since a word of two would speak for neither.

A file of one's own is `{"name": ..., "words": {category: [word, ...]}}`; `words` is a file `{category: [word, ...]}`
that has a list for each category, and may have more.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.resources import data_path
from interp.sealing import NOT_JSON

CATEGORY_SETS = ("cowen-keltner-2017", "press-release")


@dataclass(frozen=True)
class Categories:
    """Categories in their published order, and for each the words and phrases that name it."""

    name: str
    names: tuple[str, ...]
    words: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.names)

    def index(self, category: str) -> int:
        """The place of a category in `names`."""
        if category not in self.words:
            raise InputError(f"unknown category {category!r} in {self.name}; known: {', '.join(self.names)}")
        return self.names.index(category)

    def named_in(self, text: str) -> tuple[str, ...]:
        """The categories of which a word or phrase occurs in `text`, whole and in any case."""
        return tuple(category for category in self.names if self._patterns[category].search(text))

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        return {category: _any_of(words) for category, words in self.words.items()}


def categories(name: str | Path = "cowen-keltner-2017", *, words: str | Path | None = None) -> Categories:
    """A published set by name, or a file of one's own; `words` replaces the word lists by those of another file."""
    if str(name) in CATEGORY_SETS:
        names = tuple(_object(data_path("primitives/categories.json"))[str(name)])
        return _checked(str(name), names, Path(words) if words else data_path("primitives/emotion_words.json"))
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"there are no categories {str(name)!r}: no file of that name, and the published sets are "
            f"{', '.join(CATEGORY_SETS)}"
        )
    own = _object(path)
    lists = own.get("words")
    if set(own) != {"name", "words"} or not isinstance(own["name"], str) or not isinstance(lists, dict):
        raise InputError(f'{path}: expected {{"name", "words": {{category: [word, ...]}}}}, got the keys {sorted(own)}')
    if words:
        return _checked(own["name"], tuple(lists), Path(words))
    return _checked(own["name"], tuple(lists), path, lists)


def _checked(name: str, names: tuple[str, ...], path: Path, lists: dict[str, Any] | None = None) -> Categories:
    lists = _object(path) if lists is None else lists
    if len(names) < 2:
        raise InputError(f"{path}: a set needs at least two categories to tell apart, got {len(names)}")
    if missing := [category for category in names if category not in lists]:
        raise InputError(f"{path} has no word list for {', '.join(missing)}; {name} needs one for each category")
    owner: dict[str, str] = {}
    for category in names:
        entries = lists[category]
        if not isinstance(entries, list) or not entries or not all(isinstance(w, str) and w.strip() for w in entries):
            raise InputError(f"{path}: expected a list of words for {category!r}, none of them empty, got {entries!r}")
        for word in entries:
            if (other := owner.setdefault(word.casefold(), category)) != category or entries.count(word) > 1:
                where = f"twice for {category!r}" if other == category else f"for {other!r} and for {category!r}"
                raise InputError(f"{path}: the word {word!r} stands {where}; a word belongs to one category, once")
    return Categories(name, names, {category: tuple(lists[category]) for category in names})


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON) as error:
        raise InputError(f"cannot read categories or words from {path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object of categories, got {value!r:.80}")
    return value


def _any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    """Whole words only; a space stands for any white space."""
    spelled = (r"\s+".join(map(re.escape, word.split())) for word in words)
    return re.compile(rf"(?<!\w)(?:{'|'.join(spelled)})(?!\w)", re.IGNORECASE)

"""Narrative text: this project's own scenes, pairs and openings, and stories that the model writes from the openings.

    documents = own_documents(texts)                                     # hand-written, none of them with its label
    stories = write_stories(model, openings, out / "stories.jsonl", n=80, seed=0)
    corpus = narrative_corpus([*documents, *stories])                    # these first, the built-in corpus behind them

    stories.jsonl     {"id": "story-17", "text": opening and continuation}     a line each, in order, batch by batch

Story i continues opening i mod n with a random stream of its own (`seed + i`), so it is a function of (model, openings,
seed, i). Batches are fixed, and whole ones are kept: a run that was cut off writes what is missing, and the same texts
come out (in other batch shapes a model rounds differently, and one other draw makes another story). Stories are as the
model writes them: they bring its own narrative states into the dictionary, and with them its tics.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.corpus import Corpus, Document, read_corpus
from interp.errors import InputError
from interp.model import HookedModel
from interp.sealing import NOT_JSON, differences, read_json, write_json, write_sealed
from interp.steering.generation import Writing, generate_texts
from interp.steering.prompts import Prompt
from saes.primitives.categories import Categories
from saes.primitives.data import person_pairs, scenes, show_tell, story_openings, technique_pairs

BATCH = 16
TEMPERATURE, TOP_P = 0.9, 0.95


@dataclass(frozen=True)
class TextFiles:
    """Files in place of the bundled English ones, for instance in another language; None: the bundled one."""

    scenes: Path | None = None
    show_tell: Path | None = None
    technique_pairs: Path | None = None
    person_pairs: Path | None = None
    openings: Path | None = None


def own_documents(files: TextFiles | None = None, *, emotions: Categories | None = None) -> tuple[Document, ...]:
    """Every hand-written text as a document: scenes, both sides of the pairs, openings.

    `emotions` are those that files of one's own label their texts with.
    """
    f = files or TextFiles()
    shown = show_tell(f.show_tell, emotions=emotions if f.show_tell else None)
    texts = {
        "scene": [s.text for s in scenes(f.scenes, emotions=emotions if f.scenes else None)],
        "show": [side for pair in shown for side in (pair.show, pair.tell)],
        "technique": [side for pair in technique_pairs(f.technique_pairs) for side in (pair.marked, pair.plain)],
        "person": [side for pair in person_pairs(f.person_pairs) for side in (pair.first, pair.third)],
        "opening": list(story_openings(f.openings)),
    }
    return tuple(Document(f"{kind}-{i}", text) for kind, some in texts.items() for i, text in enumerate(some))


def write_stories(
    model: HookedModel,
    openings: Sequence[str],
    path: Path,
    *,
    n: int,
    tokens: int = 120,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> tuple[Document, ...]:
    """`n` stories of at most `tokens` new tokens each, kept in `path`; called again, it writes what is missing."""
    if n < 0 or tokens < 1 or not openings:
        raise InputError(
            f"stories: expected n of at least 0, tokens of at least 1 and an opening or more, got {n}, {tokens} and "
            f"{len(openings)} openings"
        )
    settings = {"model": model.name, "openings": list(openings), "tokens": tokens, "seed": seed, "batch": BATCH,
                "temperature": TEMPERATURE, "top_p": TOP_P}  # fmt: skip
    _claim(path, settings)
    kept = read_stories(path)[:n]
    if len(kept) < n:  # whole batches only, without what a kill cut off
        kept = kept[: len(kept) // BATCH * BATCH]
        write_sealed(path, "".join(map(_line, kept)))
    for start in range(len(kept), n, BATCH):
        ids = range(start, min(start + BATCH, n))
        asked = [Prompt(openings[i % len(openings)], instruction=False) for i in ids]
        writing = Writing(tokens, TEMPERATURE, TOP_P, BATCH, seed + start)
        made = generate_texts(model, asked, writing=writing)
        new = [Document(f"story-{i}", p.text + t) for i, p, t in zip(ids, asked, made.texts, strict=True)]
        with path.open("ab") as file:
            file.write("".join(map(_line, new)).encode())
            file.flush()
            os.fsync(file.fileno())
        kept += new
        if progress is not None:
            progress(sum(made.n_tokens))
    return tuple(kept)


def read_stories(path: Path) -> list[Document]:
    """The whole lines of a file of stories; a line that a kill cut off, and what follows it, does not count."""
    found: list[Document] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            row = json.loads(line)
        except NOT_JSON:
            break
        whole = line.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("text"), str)
        if not whole or row.get("id") != f"story-{len(found)}":
            break
        found.append(Document(row["id"], row["text"]))
    return found


def narrative_corpus(documents: Sequence[Document], *, behind: str | None = "builtin") -> Corpus:
    """The documents, and behind them another corpus (None: nothing), so that a limit on tokens never cuts them off."""
    rest = () if behind is None else read_corpus(behind).documents
    return Corpus((*documents, *rest), f"narrative, {behind}" if behind else "narrative")


def _line(document: Document) -> str:
    return json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) + "\n"


def _claim(path: Path, settings: dict[str, object]) -> None:
    """Stories of other settings are never mixed with these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = path.with_suffix(".json")
    if not facts.exists():
        write_json(facts, settings)
    elif wrong := differences(read_json(facts, "file of stories"), settings):
        raise InputError(f"{path} holds stories of other settings ({wrong:.300}); give another path")

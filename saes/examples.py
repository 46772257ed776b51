"""Features as a reader meets them: where they fire most, how often and how strongly, and which tokens they promote.

One pass over the stores fills the rankings and counts (`saes.ranking`, `saes.firing`), a second one fetches the windows
around the strongest examples (`saes.contexts`). Examples come from different documents; ties are in order of the rows.

`features.jsonl`: one `Feature` a line, by field name, activations rounded to four significant digits.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError
from interp.jsonlines import json_objects
from interp.lens import Lens, token_strings
from interp.progress import bar
from interp.sealing import discard, disk_error, partial_name, publish
from interp.sites import Site
from interp.store import ActivationStore
from interp.tokenfile import TokenFile
from interp.typed import built
from saes.contexts import Contexts, check_tokens, contexts
from saes.fires import FireLog
from saes.firing import Firing, FiringFitter
from saes.ranking import Ranked, Ranking
from saes.sae import SAE

Scored = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Example:
    """One place where a feature fires, with the text around it."""

    doc_id: str
    position: int
    """Of the token that fires, in its document."""
    activation: float
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """Of this feature on each of `tokens`; 0 also on tokens that are kept out of the store."""
    peak: int
    """Index of the token that fires in `tokens`."""


@dataclass(frozen=True)
class Feature:
    """One feature of an SAE."""

    index: int
    density: float
    """Fires per token."""
    max_activation: float
    mean_activation: float
    """Over the tokens on which it fires; 0 if it never does."""
    histogram: tuple[int, ...]
    """Fires by activation, in bins a quarter of an octave wide."""
    edges: tuple[float, ...]
    """Of the bins: one more than there are bins."""
    promoted: Scored
    """Tokens whose logits the decoder row raises most, with the amount."""
    suppressed: Scored
    examples: tuple[Example, ...]
    """Strongest first, each from another document."""


class Source(NamedTuple):
    """A store and the token file it was made from."""

    store: ActivationStore
    tokens: TokenFile


def read_features(
    sae: SAE,
    sources: Sequence[Source],
    site: Site | str,
    *,
    tokenizer: Any,
    lens: Lens | None = None,
    n_examples: int = 8,
    before: int = 16,
    after: int = 8,
    n_tokens: int = 10,
    threshold: float = math.inf,
    cache_bytes: int = 2**30,
    force: bool = False,
    show: bool | None = False,
) -> Iterator[Feature]:
    """Every feature of `sae`, in order, read from all rows of `sources`; the work is done before this returns.

    `lens` gives promoted and suppressed tokens, `n_tokens` of each; `threshold` is the norm above which a row is
    massive and left out (see `saes.evaluate.threshold_of`); `cache_bytes` bounds the memory that saves
    encoding rows twice. An SAE made for another model or site is refused unless `force` is given.
    """
    for source in sources:
        check_tokens(*source)
    if not sources or min(before, after) < 0:
        raise InputError(
            f"got {len(sources)} stores, before={before}, after={after}: expected one or more, and windows >= 0"
        )
    logs = [
        FireLog(sae, source.store, site, threshold=threshold, cache_bytes=cache_bytes // len(sources), force=force)
        for source in sources
    ]
    firing, ranked = _count(logs, sources, sae, n_examples, show)
    scored = lens.read(sae.W_dec.detach().float(), tokenizer, k=n_tokens) if lens else [((), ())] * len(ranked.rows)
    windows = _windows(logs, sources, ranked, before=before, after=after)
    used = torch.cat([window.tokens.unique() for window in windows]).unique()
    strings = token_strings(tokenizer, used[used >= 0].tolist())
    return _features(firing, ranked, scored, sources, windows, strings, before)


def _count(
    logs: Sequence[FireLog], sources: Sequence[Source], sae: SAE, n_examples: int, show: bool | None
) -> tuple[Firing, Ranked]:
    """The pass over all rows; rows and documents are numbered through all sources."""
    firing, ranking = FiringFitter(sae.config.d_sae), Ranking(sae.config.d_sae, n_examples)
    first_row = first_doc = 0
    with bar(sum(len(source.store) for source in sources), "features", show=show) as progress:
        for log, source in zip(logs, sources, strict=True):
            for start, stop, fires in log:
                docs = source.store.keys(start, stop).doc.long()[fires.rows - start] + first_doc
                firing.update(fires.features, fires.values, n_tokens=0)
                ranking.update(fires.features, fires.values, fires.rows + first_row, docs)
                progress.update(stop - start)
            firing.update(*_NOTHING, n_tokens=log.n_rows_kept)
            first_row, first_doc = first_row + len(source.store), first_doc + len(source.tokens)
    return firing.result(), ranking.result()


_NOTHING = torch.empty(0, dtype=torch.int64), torch.empty(0)


def _windows(
    logs: Sequence[FireLog], sources: Sequence[Source], ranked: Ranked, *, before: int, after: int
) -> list[Contexts]:
    """The windows of all examples, source by source; within each in the order of (feature, rank)."""
    windows, first = [], 0
    for log, source in zip(logs, sources, strict=True):
        own = (ranked.rows >= first) & (ranked.rows < first + len(source.store))
        feature, _ = torch.nonzero(own, as_tuple=True)
        windows.append(contexts(log, source.tokens, ranked.rows[own] - first, feature, before=before, after=after))
        first += len(source.store)
    return windows


def _features(
    firing: Firing,
    ranked: Ranked,
    scored: Sequence[tuple[Scored, Scored]],
    sources: Sequence[Source],
    windows: Sequence[Contexts],
    strings: dict[int, str],
    before: int,
) -> Iterator[Feature]:
    ends = torch.tensor([len(source.store) for source in sources]).cumsum(0)
    streams = [
        _examples(window, source.tokens.ids, strings, before) for window, source in zip(windows, sources, strict=True)
    ]
    for index, rows in enumerate(ranked.rows):
        histogram, edges = firing.bins(index)
        promoted, suppressed = scored[index]
        yield Feature(
            index=index,
            density=float(firing.density[index]),
            max_activation=float(firing.maximum[index]),
            mean_activation=float(firing.mean[index]),
            histogram=histogram,
            edges=edges,
            promoted=promoted,
            suppressed=suppressed,
            examples=tuple(next(streams[i]) for i in _source_of(rows, ends)),
        )


def _source_of(rows: Int[Tensor, " k"], ends: Int[Tensor, " s"]) -> list[int]:
    return torch.searchsorted(ends, rows[rows >= 0], right=True).tolist()


def _examples(windows: Contexts, ids: Sequence[str], strings: dict[int, str], before: int) -> Iterator[Example]:
    for doc, position, tokens, activations in zip(*(column.numpy() for column in windows), strict=True):
        inside = (tokens >= 0).nonzero()[0]
        first, last = int(inside[0]), int(inside[-1]) + 1
        yield Example(
            doc_id=ids[int(doc)],
            position=int(position),
            activation=float(activations[before]),
            tokens=tuple(strings[token] for token in tokens[first:last].tolist()),
            activations=tuple(activations[first:last].tolist()),
            peak=before - first,
        )


def write_features(path: str | Path, features: Iterable[Feature]) -> int:
    """Write `features.jsonl`, whole or not at all; returns how many features were written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with partial_name(path).open("w", encoding="utf-8") as file:
            for feature in features:
                file.write(json.dumps(_plain(feature), ensure_ascii=False, separators=(",", ":")) + "\n")
                count += 1
        publish(partial_name(path), path)
    except OSError as error:
        discard(partial_name(path))
        raise disk_error(error, path.parent) from error
    return count


def load_features(path: str | Path) -> Iterator[Feature]:
    """Read what `write_features` wrote, one feature at a time."""
    for number, row in json_objects(Path(path), "features"):
        feature = built(Feature, row, f"{path}, line {number}")
        if not _is_whole(feature):
            raise InputError(
                f"{path}, line {number}: lists of feature {feature.index} do not go together; read the features again"
            )
        yield feature


def _is_whole(feature: Feature) -> bool:
    """Whether edges belong to the histogram, and activations to the tokens of each example."""
    bins = len(feature.histogram) + 1 if feature.histogram else 0
    sound = (len(e.tokens) == len(e.activations) and 0 <= e.peak < len(e.tokens) for e in feature.examples)
    return len(feature.edges) == bins and all(sound)


def _plain(value: Any) -> Any:
    """A record as JSON can hold it. `dataclasses.asdict` copies every leaf: ten times the time of all the rest."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if value else 0
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Feature | Example):
        return {name: _plain(item) for name, item in vars(value).items()}
    return value

"""How far a `HookedModel` is from independent implementations of its family, site by site, as a table.

For every site, with a the model's tensor and b the opinion's, over all real positions of all prompts:

    absolute = max |a − b|          relative = max |a − b| / max |b|

Attention scores are compared where a query may look; a mask that differs anywhere counts as an infinite deviation, and
so does a value that is not a number. The model runs once over the right-padded batch, every opinion (`interp.opinions`)
runs each sequence alone and unpadded, so that padding is under test too.
"""

import math
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.compat import all_sites
from interp.errors import InputError
from interp.model import HookedModel
from interp.opinions import LOGITS, OPINIONS, Ask, Opinion, Values, opinion
from interp.parity_table import Deviation, ParityRow, ParityTable
from interp.resources import data_path
from interp.sites import Point, Site

# Implementations spell "masked" as −inf or as the lowest finite number; no score comes near this.
_MASKED = -1e30


def parity(
    model: HookedModel,
    tokens: Int[Tensor, "b t"],
    *,
    lengths: Int[Tensor, " b"] | None = None,
    sites: Collection[Site | str] | None = None,
    opinions: Sequence[Opinion] = OPINIONS,
    dtype: torch.dtype = torch.float64,
) -> ParityTable:
    """Compare `sites` (all the model has, by default) and the logits with every opinion; `dtype` is that of `plain`."""
    if unknown := [name for name in opinions if name not in OPINIONS]:
        raise InputError(f"unknown opinions {unknown}; expected some of {', '.join(OPINIONS)}")
    wanted = all_sites(model) if sites is None else sorted(Site.parse(site) for site in sites)
    if lengths is None:
        lengths = torch.full((tokens.shape[0],), tokens.shape[1])
    own = _own(model, tokens, lengths, wanted)
    tallies: dict[str, dict[str, _Tally]] = {}
    absent: dict[str, str] = {}
    for name in opinions:
        try:
            ask = opinion(name, model, wanted, dtype=dtype)
        except (ImportError, InputError, NotImplementedError) as error:
            absent[name] = f"{type(error).__name__}: {error}"
            continue
        tallies[name] = _compare(own, ask, tokens, lengths)
    rows = tuple(
        ParityRow(key, {name: tally[key].deviation for name, tally in tallies.items() if key in tally}) for key in own
    )
    return ParityTable(
        model=model.name,
        family=model.cfg.family,
        dtype=str(model.dtype).removeprefix("torch."),
        plain_dtype=str(dtype).removeprefix("torch."),
        sequences=tokens.shape[0],
        tokens=int(lengths.sum()),
        rows=rows,
        absent=absent,
    )


def prompt_tokens(
    model: HookedModel, lines: Sequence[str] | None = None
) -> tuple[Int[Tensor, "b t"], Int[Tensor, " b"]]:
    """Right-padded tokens and lengths of `lines`, by default the project's own parity prompts."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, so prompts cannot be read; give `parity` token ids")
    if lines is None:
        lines = data_path("parity_prompts.txt").read_text(encoding="utf-8").splitlines()
    ids = [torch.tensor(model.tokenizer(line)["input_ids"], dtype=torch.int64) for line in lines]
    lengths = torch.tensor([len(row) for row in ids])
    return nn.utils.rnn.pad_sequence(ids, batch_first=True), lengths


def _own(model: HookedModel, tokens: Tensor, lengths: Tensor, wanted: list[Site]) -> Values:
    with torch.no_grad():
        logits, captured = model.run_recorded(tokens, wanted, lengths=lengths)
    own = {str(site): captured[site] for site in wanted}
    return own if logits is None else own | {LOGITS: logits}


class _Tally:
    """Running maxima over sequences."""

    def __init__(self) -> None:
        self._gap, self._size = 0.0, 0.0

    def add(self, own: Tensor, other: Tensor, *, masked: bool) -> None:
        if own.shape != other.shape:
            self._gap = math.inf
            return
        a, b = own.double(), other.to(own.device).double()
        if masked:
            seen = a > _MASKED
            if not torch.equal(seen, b > _MASKED):
                self._gap = math.inf
                return
            a, b = a[seen], b[seen]
        gap, size = (a - b).abs().max().item(), b.abs().max().item()
        self._gap = max(self._gap, gap if math.isfinite(gap) else math.inf)
        self._size = max(self._size, size)

    @property
    def deviation(self) -> Deviation:
        relative = self._gap / self._size if self._size else (math.inf if self._gap else 0.0)
        return Deviation(self._gap, relative)


def _compare(own: Values, ask: Ask, tokens: Tensor, lengths: Tensor) -> dict[str, _Tally]:
    tallies: dict[str, _Tally] = {}
    for i, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            answers = ask(tokens[i : i + 1, :length])
        for key, other in answers.items():
            if key in own:
                row = _real(key, own[key][i : i + 1], length)
                masked = key.split("[")[0].endswith(Point.ATTN_SCORES.value)
                tallies.setdefault(key, _Tally()).add(row, other, masked=masked)
    return tallies


def _real(key: str, row: Tensor, length: int) -> Tensor:
    """One sequence's row without its padding."""
    if key != LOGITS and Site.parse(key).point in (Point.ATTN_SCORES, Point.PATTERN):
        return row[..., :length, :length]
    return row[:, :length]

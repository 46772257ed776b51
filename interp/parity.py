"""How far a `HookedModel` is from independent implementations of its family, site by site, as a table.

For every site, with a the model's tensor, b the opinion's, and t over all real positions of all prompts:

    absolute = max_t ‖a_t − b_t‖∞          relative = max_t ‖a_t − b_t‖∞ / ‖b_t‖∞

(‖·‖∞ over heads, dimensions and sources). Each position is measured against itself: in a language model a few positions
carry activations hundreds of times the usual size, and against their size no fault at the others would show.

Attention scores are compared where a query may look; a mask that differs anywhere counts as an infinite deviation, and
so does a value that is not a number. The model runs once over the right-padded batch, every opinion (`interp.opinions`)
runs each sequence alone and unpadded, so that padding is under test too. A model in 16 bits can be compared with itself
in float32 as well.
"""

import math
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.compat import all_sites
from interp.errors import InputError
from interp.model import HookedModel
from interp.opinions import LOGITS, OPINIONS, Ask, Opinion, Unavailable, Values, opinion
from interp.parity_table import Deviation, ParityRow, ParityTable
from interp.resources import data_path
from interp.sites import Point, Site

# Implementations spell "masked" as −inf or as the lowest finite number; no score comes near this.
_MASKED = -1e30
FLOAT32 = "float32"
_BY_SOURCE = (Point.ATTN_SCORES, Point.PATTERN)


def parity(
    model: HookedModel,
    tokens: Int[Tensor, "b t"],
    *,
    lengths: Int[Tensor, " b"] | None = None,
    sites: Collection[Site | str] | None = None,
    opinions: Sequence[Opinion] = OPINIONS,
    dtype: torch.dtype = torch.float64,
    float32: HookedModel | None = None,
) -> ParityTable:
    """Compare `sites` (all the model has, by default) and the logits with every opinion; `dtype` is that of `plain`.

    `float32` is the same model loaded in float32: its column says what computing (and rounding weights) in `model`'s
    own dtype costs, where the opinions say whether it computes the right thing.
    """
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
            heard = _compare(own, opinion(name, model, wanted, dtype=dtype), tokens, lengths)
            if not heard:
                raise Unavailable(f"it has none of {', '.join(list(own)[:5])}")
            tallies[name] = heard
        except Unavailable as error:
            absent[name] = str(error)
    if float32 is not None:
        tallies[FLOAT32] = _compare(own, lambda row: _own(float32, row, None, wanted), tokens, lengths)
    if not tallies:
        raise InputError("nothing was compared. " + "; ".join(f"{name}: {why}" for name, why in absent.items()))

    def far(key: str) -> dict[str, Deviation]:
        return {name: Deviation(t[key].absolute, t[key].relative) for name, t in tallies.items() if key in t}

    return ParityTable(
        model=model.name,
        family=model.cfg.family,
        dtype=str(model.dtype).removeprefix("torch."),
        plain_dtype=str(dtype).removeprefix("torch."),
        sequences=tokens.shape[0],
        tokens=int(lengths.sum()),
        opinions=tuple(tallies),
        rows=tuple(ParityRow(key, far(key)) for key in own),
        absent=absent,
    )


def default_tolerance(dtype: torch.dtype) -> float:
    """The relative deviation to expect at most of a model in `dtype`, whatever its depth."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2


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


def _own(model: HookedModel, tokens: Tensor, lengths: Tensor | None, wanted: list[Site]) -> Values:
    with torch.no_grad():
        logits, captured = model.run_recorded(tokens, wanted, lengths=lengths)
    own = {str(site): captured[site] for site in wanted}
    return own if logits is None else own | {LOGITS: logits}


class _Tally:
    """Running maxima over sequences."""

    def __init__(self) -> None:
        self.absolute, self.relative = 0.0, 0.0

    def add(self, own: Tensor, other: Tensor, site: Site | None) -> None:
        """Compare one sequence; `site` is None for logits."""
        if own.shape != other.shape:
            self.absolute = self.relative = math.inf
            return
        a, b = own.double(), other.to(own.device).double()
        if site is not None and site.point is Point.ATTN_SCORES:
            seen = a > _MASKED
            if not torch.equal(seen, b > _MASKED):
                self.absolute = self.relative = math.inf
                return
            a, b = a.where(seen, 0.0), b.where(seen, 0.0)
        position = a.ndim - 2 if site is not None and site.point in _BY_SOURCE else 1
        gap, size = (x.abs().movedim(position, 0).flatten(1).amax(1) for x in (a - b, b))
        # Not a number compares false with everything, so it is turned into the worst there is.
        gap = gap.nan_to_num(nan=math.inf, posinf=math.inf)
        relative = torch.where(gap == 0, 0.0, gap / size)
        self.absolute = max(self.absolute, gap.max().item())
        self.relative = max(self.relative, relative.nan_to_num(nan=math.inf, posinf=math.inf).max().item())


def _compare(own: Values, ask: Ask, tokens: Tensor, lengths: Tensor) -> dict[str, _Tally]:
    tallies: dict[str, _Tally] = {}
    for i, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            answers = ask(tokens[i : i + 1, :length])
        for key, other in answers.items():
            if key in own:
                site = None if key == LOGITS else Site.parse(key)
                tallies.setdefault(key, _Tally()).add(_real(own[key][i : i + 1], site, length), other, site)
    return tallies


def _real(row: Tensor, site: Site | None, length: int) -> Tensor:
    """One sequence's row without its padding."""
    by_source = site is not None and site.point in _BY_SOURCE
    return row[..., :length, :length] if by_source else row[:, :length]

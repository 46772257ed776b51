"""Is the probed board the one the model plays on? Patching along the directions of the probes for "digit in unit".

    B1: the clues' board, read at END_CLUES;   (c, d): the model's first move, legal;   B2: the board after it
    x_B1 += sum over the row, column, box S of c:  (w_Sd · x_B2 - w_Sd · x_B1) w_Sd          after block l

w_Sd is the probe's direction for "S holds d", of norm 1. If the model reads its board off them, it now takes d for
placed: the logit of its first move falls, and what conflicts with that move falls with it. As in the code published
with arXiv 2605.18847: the three are added at once, without orthogonalising. Ours are the controls and the other
measures; each change below has the norm of the substructure patch of its puzzle:

    orthogonalised    x_B1 takes over x_B2's projection on the span of the three directions (its own norm)
    other puzzle      the substructure patch of another puzzle (with another move)
    random            a direction drawn uniformly from the sphere, several draws

    drop          clean logit of the first move - patched                valid      patched top token legal on B1
    changed       patched top token is another one                       illegal    probability of tokens illegal on B1
    conflicting   mean drop of the logits of other moves that are legal on B1 and no longer on B2
    others        mean drop of the logits of moves legal on both: what of a drop is no effect of the digit

`changed` says little for a model that holds several moves for equally good: any change of its state changes the first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import InputError
from interp.probe_metrics import Estimate
from interp.probes import LinearProbe, fit_logistic
from interp.sites import Point, Site
from interp.sudoku.board import Rules
from interp.sudoku.labels import labels
from interp.sudoku.model import SudokuModel
from interp.sudoku.reads import States, at_read, clue_states, legal_tokens, mean_of, read
from interp.sudoku.records import Record
from interp.sudoku.traces import TraceSet

PATCHES = ("substructure", "orthogonalised", "other puzzle", "random")


@dataclass(frozen=True)
class Effect(Record):
    """What one kind of patch does, mean over puzzles."""

    drop: Estimate
    changed: Estimate
    valid: Estimate
    illegal: Estimate
    conflicting: Estimate
    others: Estimate


@dataclass(frozen=True)
class LayerPatches(Record):
    """Behind block `layer` (from 1)."""

    layer: int
    norm: Estimate
    """Of the substructure patch."""
    relative_norm: Estimate
    """The same over the norm of x_B1."""
    effects: dict[str, Effect]
    """By name of the patch, as in `PATCHES`."""
    excess: Estimate
    """Drop of the substructure patch less that of the random one, puzzle by puzzle."""
    excess_other: Estimate
    """The same against another puzzle's patch."""


@dataclass(frozen=True)
class PatchStudy(Record):
    """Patches behind every block."""

    n: int
    """Puzzles."""
    draws: int
    clean: Effect
    layers: tuple[LayerPatches, ...]


def probe_sites(model: SudokuModel) -> tuple[Site, ...]:
    """The stream behind each block."""
    return tuple(Site(Point.RESID_POST, layer) for layer in range(model.config.n_layers))


def fit_substructure(model: SudokuModel, traces: TraceSet, *, C: float = 1.0) -> dict[Site, LinearProbe]:
    """Probes for "unit holds digit" at END_CLUES, behind each block."""
    states = clue_states(traces)
    _, found = read(model, states, probe_sites(model))
    target = labels(model.rules, states.boards, "substructure")
    return {site: fit_logistic(x, target.y, mask=target.mask, classes=target.classes, C=C) for site, x in found.items()}


def unit_directions(rules: Rules, probe: LinearProbe) -> Float[Tensor, "units digits d"]:
    """The probe's weights for (unit, digit), each of norm 1."""
    q, expected = len(probe.weight), 3 * rules.n * rules.n
    if probe.classes is not None or q != expected:
        raise InputError(
            f"a probe of {q} outputs: expected the binary ones of {expected} (unit, digit) pairs of a board of side "
            f"{rules.n}, in the order of `labels(..., 'substructure')`"
        )
    w = probe.weight[:, 0].float().reshape(3 * rules.n, rules.n, -1)
    return w / w.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def substructure_patch(
    w: Float[Tensor, "n s d"], before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]
) -> Float[Tensor, "n d"]:
    """sum_S (w_S · after - w_S · before) w_S, simultaneously."""
    return torch.einsum("ns,nsd->nd", torch.einsum("nsd,nd->ns", w, after - before), w)


def orthogonal_patch(
    w: Float[Tensor, "n s d"], before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]
) -> Float[Tensor, "n d"]:
    """The projection of after - before on the span of the directions."""
    basis = torch.linalg.qr(w.double().transpose(1, 2)).Q
    return torch.einsum("nds,nes,ne->nd", basis, basis, (after - before).double()).float()


def patch_study(
    model: SudokuModel,
    traces: TraceSet,
    probes: Mapping[Site, LinearProbe],
    *,
    samples: int = 300,
    draws: int = 8,
    seed: int = 42,
) -> PatchStudy:
    """Patch the model's own traces of puzzles that the probes have not seen."""
    first = _first_moves(model, traces, samples, seed)
    second = clue_states(first.traces, after=1)
    sites = list(probe_sites(model))
    if missing := [str(site) for site in sites if site not in probes]:
        raise InputError(f"no probe for {', '.join(missing)}; expected one for the stream behind each block")
    clean, before = read(model, first, sites)
    _, after = read(model, second, sites)
    judge = _Judge.of(first, second, clean)
    rng = torch.Generator().manual_seed(seed)
    cell, digit = first.next_token // model.rules.n, first.next_token % model.rules.n

    def layer(site: Site) -> LayerPatches:
        w = unit_directions(model.rules, probes[site])[model.rules.units_of[cell], digit[:, None]]
        delta = substructure_patch(w, before[site], after[site])
        norm = delta.norm(dim=-1, keepdim=True)
        changes = {
            "substructure": [delta],
            "orthogonalised": [orthogonal_patch(w, before[site], after[site])],
            "other puzzle": [_rescaled(delta[_others(first.next_token, seed)], norm)],
            "random": [_rescaled(torch.randn(delta.shape, generator=rng), norm) for _ in range(draws)],
        }
        measured = {
            name: judge.rows([_patched(model, first, site, change) for change in many])
            for name, many in changes.items()
        }
        drop = {name: rows["drop"] for name, rows in measured.items()}
        assert site.layer is not None
        return LayerPatches(
            layer=site.layer + 1,
            norm=mean_of(norm[:, 0].numpy()),
            relative_norm=mean_of((norm / before[site].norm(dim=-1, keepdim=True))[:, 0].numpy()),
            effects={name: _effect(rows) for name, rows in measured.items()},
            excess=mean_of(drop["substructure"] - drop["random"]),
            excess_other=mean_of(drop["substructure"] - drop["other puzzle"]),
        )

    return PatchStudy(len(first), draws, _effect(judge.rows([clean])), tuple(layer(site) for site in sites))


def _first_moves(model: SudokuModel, traces: TraceSet, samples: int, seed: int) -> States:
    """END_CLUES of the traces whose first token is a legal placement, at most `samples` of them."""
    words = model.vocabulary
    usable = np.flatnonzero(traces.lengths > traces.n_clues + 1)
    states = clue_states(traces[usable])
    move = states.next_token
    legal = legal_tokens(model.rules, states.boards)[np.arange(len(states)), move] & (move < words.n_placements)
    chosen = usable[legal]
    if len(chosen) < 2:
        raise InputError(
            f"{len(chosen)} of {len(traces)} traces begin with a legal placement; expected at least 2: is the model "
            f"trained, and are there empty cells?"
        )
    if len(chosen) > samples:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, samples, replace=False))
    return clue_states(traces[chosen])


def _others(moves: np.ndarray, seed: int) -> Tensor:
    """For each puzzle another one, with another first move where there is one."""
    order = np.random.default_rng(seed).permutation(len(moves))
    rank = np.argsort(order)
    for shift in range(1, len(moves)):
        given = order[(rank + shift) % len(moves)]
        if (moves[given] != moves).all():
            break
    else:
        given = order[(rank + 1) % len(moves)]
    return torch.from_numpy(given)


def _rescaled(x: Float[Tensor, "n d"], norm: Float[Tensor, "n 1"]) -> Float[Tensor, "n d"]:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) * norm


def _patched(model: SudokuModel, states: States, site: Site, change: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
    def edits(part: slice) -> dict:
        add: Callable[[Tensor], Tensor] = lambda x: x + change[part].to(x)  # noqa: E731
        return {site: at_read(add, states.at[part])}

    return read(model, states, edits=edits)[0]


@dataclass(frozen=True)
class _Judge:
    """Boards and clean logits that patched logits are held against."""

    clean: Float[Tensor, "n v"]
    top: Float[Tensor, " n"]
    """The clean top token's logit; it is the first move, for traces are greedy."""
    move: Tensor
    legal: Bool[Tensor, "n v"]
    conflicting: Bool[Tensor, "n v"]
    free: Bool[Tensor, "n v"]

    @classmethod
    def of(cls, first: States, second: States, clean: Float[Tensor, "n v"]) -> "_Judge":
        legal, later = (torch.from_numpy(legal_tokens(s.rules, s.boards)) for s in (first, second))
        move = clean.argmax(-1)
        if not np.array_equal(move.numpy(), first.next_token):
            raise InputError(
                "the traces' first moves are not this model's own; make them with `own_traces` of the same model"
            )
        placements = torch.arange(clean.shape[1]) < first.rules.n_cells * first.rules.n
        lost = legal & ~later & placements
        lost[torch.arange(len(move)), move] = False
        return cls(clean, clean.max(-1).values, move, legal, lost, legal & later & placements)

    def rows(self, patched: list[Float[Tensor, "n v"]]) -> dict[str, np.ndarray]:
        """Each measure per puzzle, mean over draws."""
        each = [self._one(logits) for logits in patched]
        return {name: np.mean([rows[name] for rows in each], axis=0) for name in each[0]}

    def _one(self, logits: Float[Tensor, "n v"]) -> dict[str, np.ndarray]:
        rows, top, p = torch.arange(len(logits)), logits.argmax(-1), logits.softmax(-1)
        fall = self.clean - logits
        found = {
            "drop": self.top - logits[rows, self.move],
            "changed": top != self.move,
            "valid": self.legal[rows, top],
            "illegal": torch.where(self.legal, 0.0, p).sum(-1),
            "conflicting": torch.where(self.conflicting, fall, 0.0).sum(-1) / self.conflicting.sum(-1),
            "others": torch.where(self.free, fall, 0.0).sum(-1) / self.free.sum(-1),
        }
        return {name: value.double().numpy() for name, value in found.items()}


def _effect(rows: dict[str, np.ndarray]) -> Effect:
    return Effect(**{name: mean_of(values) for name, values in rows.items()})

"""Settings and results of the probing study, as values that go to JSON and come back."""

import math
from dataclasses import dataclass

from interp.errors import InputError
from interp.probe_metrics import Estimate
from interp.probes import PROBE_KINDS
from interp.sudoku.labels import TARGETS
from interp.sudoku.records import Record

SOURCES = ("trained", "random", "uniform", "shuffled")
UNTRAINED = ("random", "uniform")
"""Models of the same config that were never trained; `uniform`: with queries of 0, so that every head takes the mean of
the tokens. What a trained model is compared with depends on this: random queries and keys add noise to the clues."""
ORACLES = ("substructure", "cell", "substructure projected", "cell projected")
"""Codes that stand for a whole model; the projected ones have the width of the models."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Record):
    """Settings of `probe_study`."""

    puzzles: int = 4000
    """Unseen ones, of the kind the first model was trained on."""
    kind: str = "dense"
    test_share: float = 0.2
    seed: int = 42
    """Of puzzles, split, random models and shuffled labels."""
    targets: tuple[str, ...] = TARGETS
    probes: tuple[str, ...] = PROBE_KINDS
    C: float = 1.0
    alpha: float = 1.0
    tol: float = 1e-4
    """Of the largest entry of a logistic probe's gradient."""
    max_iter: int = 1000
    transfer: bool = True
    """Score the logistic probes of trained models on the other layers and on later positions."""
    empties: tuple[int, ...] = ()
    """Later positions: the first with so many empty cells; by default eight from half the board to 0."""
    draws: int = 500
    """Of the bootstrap."""
    min_gap: float = 0.05
    """Hypotheses whose ceilings of cell-state accuracy are closer than this are not told apart."""

    def __post_init__(self) -> None:
        for name, known in (("targets", TARGETS), ("probes", PROBE_KINDS)):
            given = getattr(self, name)
            if not given or not set(given) <= set(known):
                raise InputError(f"{name}={given!r}: expected one or more of {', '.join(known)}")
        if not 0 < self.test_share < 1 or self.puzzles * min(self.test_share, 1 - self.test_share) < 20:
            raise InputError(
                f"puzzles={self.puzzles}, test_share={self.test_share}: expected at least 20 puzzles on either side"
            )
        for name in ("C", "alpha", "tol", "draws", "min_gap", "max_iter"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)}: expected a number above 0")


@dataclass(frozen=True)
class ProbeRow(Record):
    """One target read from one layer of one source."""

    model: str
    """Its name; "oracle" for codes."""
    source: str
    layer: int
    """0: what goes into the first block; l: behind block l - 1. 0 for codes."""
    target: str
    probe: str
    accuracy: Estimate
    exact: Estimate
    auc: Estimate
    mse: Estimate
    gradient: float
    """Largest entry, over outputs."""


@dataclass(frozen=True)
class TransferRow(Record):
    """A probe fitted at END_CLUES on one layer, scored elsewhere."""

    model: str
    target: str
    layer: int
    """Fitted on."""
    to_layer: int
    empties: int | None
    """Scored at the first position with so many empty cells; none: at END_CLUES."""
    accuracy: Estimate
    exact: Estimate
    auc: Estimate
    mse: Estimate
    n: int
    """Boards scored."""


@dataclass(frozen=True)
class GeometryRow(Record):
    """Cosines of a group of pairs, and what the two hypotheses say (NaN where they say nothing)."""

    group: str
    cosine: Estimate
    pairs: int
    substructure: float = math.nan
    cell_wise: float = math.nan


@dataclass(frozen=True)
class LayerGeometry(Record):
    """Of the candidate probes of one layer."""

    model: str
    source: str
    layer: int
    rows: tuple[GeometryRow, ...]


@dataclass(frozen=True)
class ModelGeometry(Record):
    """Of a model's unembedding."""

    model: str
    source: str
    rows: tuple[GeometryRow, ...]


@dataclass(frozen=True)
class CurvePoint(Record):
    """A damaged code and what is read from it."""

    code: str
    """"substructure" or "cell"."""
    damage: str
    """"noise": so many deviations on each of the model's width; "loss": a share of its bits (or cells) left out."""
    amount: float
    substructure_auc: float
    cell_state: float


@dataclass(frozen=True)
class Verdict(Record):
    """Which code a layer's activations are of, as far as cell states tell."""

    model: str
    source: str
    layer: int
    cell_state: Estimate
    substructure_auc: float
    if_substructure: float
    """Cell-state accuracy of a substructure code damaged to the same substructure AUC; of either damage the larger."""
    if_cell_wise: float
    """The same of a cell-wise code; the smaller."""
    position: Estimate
    """Of `cell_state` between the two: 0 at substructure, 1 at cell-wise."""
    verdict: str
    """"substructure", "cell-wise" or "undecided"."""
    reason: str


@dataclass(frozen=True)
class CrossingRow(Record):
    """What training changed in one layer: differences of trained and untrained model on the same puzzles."""

    model: str
    """Its name, or "all": the mean over models."""
    reference: str
    """The untrained model: "random" or "uniform"."""
    layer: int
    cell_state: Estimate
    substructure: Estimate
    """Exact match."""
    candidates: Estimate
    """Exact match."""
    from_ceiling: Estimate
    """Cell-state accuracy of the trained model less that of the noiseless substructure code."""


@dataclass(frozen=True)
class Crossing(Record):
    """Training lowers cell states towards the substructure ceiling and raises the structure probes, or not."""

    reference: str
    rows: tuple[CrossingRow, ...]
    raised: tuple[int, ...]
    """Layers in which, for every model, both structure probes rise, the intervals without 0."""
    crossed: tuple[int, ...]
    """Those of them in which cell states fall as well."""
    holds: bool
    """Crossed for two models or more, in one layer at least."""
    statement: str


@dataclass(frozen=True)
class ProbeStudy(Record):
    """The whole study."""

    config: ProbeConfig
    n: int
    """Side of the board."""
    shape: dict[str, int]
    """Config of the models."""
    models: tuple[str, ...]
    fitted_on: int
    scored_on: int
    mean_filled: float
    """Cells of a puzzle."""
    rows: tuple[ProbeRow, ...]
    transfer: tuple[TransferRow, ...]
    geometry: tuple[LayerGeometry, ...]
    unembedding: tuple[ModelGeometry, ...]
    curve: tuple[CurvePoint, ...]
    verdicts: tuple[Verdict, ...]
    crossings: tuple[Crossing, ...]
    """One for each kind of untrained model."""

    def row(self, model: str, source: str, layer: int, target: str, probe: str = "logistic") -> ProbeRow:
        """One of the rows."""
        wanted = (model, source, layer, target, probe)
        for found in self.rows:
            if (found.model, found.source, found.layer, found.target, found.probe) == wanted:
                return found
        names = ("model", "source", "layer", "target", "probe")
        have = "; ".join(
            f"{name}: {', '.join(map(str, sorted({getattr(r, name) for r in self.rows})))}" for name in names
        )
        raise InputError(
            f"no {probe} probe of {target!r} from layer {layer} of {model}, {source}, in this probing study, which has "
            f"{have}. Ask for one of these, or make the study again with `midlens sudoku probe`"
        )

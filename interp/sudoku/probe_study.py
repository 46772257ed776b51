"""The probing study of trained Sudoku models, with every control beside it.

    for each source, layer, target:  activations at END_CLUES -> probes -> accuracy, exact, AUC, MSE on test puzzles

    trained     the models                      random     models of the same config, never trained
    uniform     the same with uniform attention     shuffled   trained activations, labels of other puzzles' boards
    oracle      codes of known kind: unit bits, cell one-hot, both also projected at random to the models' width

To these: probes of one layer on the others and on later positions (trained models); cosines of candidate probes and of
the unembedding; the verdict "cells or units" of each layer; and what training changed (`interp.sudoku.worldmodel`). The
paper (arXiv 2605.18847) has trained models alone; controls, oracles, verdict and intervals are our own.

All sources see the same puzzles, of the side of the split that training never saw, clues in the order of a trace.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from interp.errors import InputError
from interp.probes import LinearProbe
from interp.progress import bar
from interp.sealing import digest
from interp.sudoku.drawing import unseen_puzzles
from interp.sudoku.geometry import candidate_geometry, unembedding_geometry
from interp.sudoku.labels import Labels, labels
from interp.sudoku.model import SudokuModel
from interp.sudoku.probe_parts import (
    Activations,
    Parts,
    Split,
    activations,
    counts,
    counts_of,
    fit_and_score,
    metrics,
    oracle_codes,
    scored,
    states_with,
    untrained,
)
from interp.sudoku.probe_records import (
    ORACLES,
    SOURCES,
    UNTRAINED,
    Crossing,
    CurvePoint,
    LayerGeometry,
    ModelGeometry,
    ProbeConfig,
    ProbeRow,
    ProbeStudy,
    TransferRow,
    Verdict,
)
from interp.sudoku.reads import States, clue_states
from interp.sudoku.solving import own_traces
from interp.sudoku.traces import TraceSet, make_traces
from interp.sudoku.worldmodel import CROSSED, CURVE, Sides, crossing, damaged, decide

Part = dict[str, Any]


def probe_study(
    models: Mapping[str, SudokuModel],
    config: ProbeConfig | None = None,
    *,
    traces: TraceSet | None = None,
    out: str | Path | None = None,
    show: bool | None = None,
) -> ProbeStudy:
    """Probe models (by name) of one config. `traces` replace the unseen puzzles that would be drawn.

    With `out`, parts that are done are kept there, and a study that was cut off goes on with them.
    """
    config = config or ProbeConfig()
    shapes = {str(model.config.to_json()) for model in models.values()}
    if len(shapes) != 1 or "oracle" in models:
        raise InputError(
            f"models {', '.join(models) or '(none)'} of {len(shapes)} configs; expected one or more of the same "
            f"config, none of them called oracle"
        )
    study = _Study(dict(models), config, traces, None if out is None else Path(out))
    with bar(study.total(), "probes", unit="fit", show=show) as shown:
        return study.run(shown)


class _Study:
    """The models, the puzzles, and the parts that are done."""

    def __init__(
        self, models: dict[str, SudokuModel], config: ProbeConfig, traces: TraceSet | None, out: Path | None
    ) -> None:
        self.models, self.config = models, config
        self.any = next(iter(models.values()))
        self.rules = self.any.rules
        self.n_layers, self.d = self.any.config.n_layers, self.any.config.d_model
        if traces is None:
            found = unseen_puzzles(self.rules, config.puzzles, kind=config.kind, seed=config.seed)  # pyright: ignore
            traces = make_traces(self.rules, found.puzzles, seed=config.seed)
        elif traces.rules != self.rules:
            raise InputError(f"traces of a board of side {traces.rules.n} for models of side {self.rules.n}")
        self.traces, self.split = traces, Split.of(len(traces), config)
        self.states = clue_states(traces)
        self.labels = {target: labels(self.rules, self.states.boards, target) for target in config.targets}
        weights = {name: _fingerprint(model) for name, model in models.items()}
        settings = {**config.to_json(), "model": self.any.config.to_json(), "weights": weights}
        self.parts = Parts(out, settings | {"boards": digest(self.states.boards.tolist())})
        self._activations: dict[tuple[str, str], Activations] = {}

    @cached_property
    def fits(self) -> list[tuple[str, str, int, str, str]]:
        """(model, source, layer, target, probe) of all fits."""
        layers = range(self.n_layers + 1)
        sources = [("oracle", name, 0) for name in ORACLES]
        sources += [(model, source, layer) for model in self.models for source in SOURCES for layer in layers]
        return [
            (*one, target, probe) for one in sources for target in self.config.targets for probe in self.config.probes
        ]

    @property
    def judged(self) -> bool:
        """Whether there is what verdicts are made of."""
        return {"cell state", "substructure"} <= set(self.config.targets) and "logistic" in self.config.probes

    def total(self) -> int:
        """Fits, noisy codes among them."""
        return len(self.fits) + (len(CURVE) if self.judged else 0)

    def run(self, shown: tqdm) -> ProbeStudy:
        """All parts, then what follows from them."""

        def part(name: str, make: Callable[[], Part]) -> Part:
            found = self.parts.get(name, make)
            shown.update(1)
            return found

        fits = {fit: part("_".join(map(str, fit)), lambda fit=fit: self._fit(*fit)) for fit in self.fits}
        rows = tuple(ProbeRow.from_json(one["row"]) for one in fits.values())
        curve = tuple(
            CurvePoint.from_json(part("_".join(map(str, ("curve", *one))), lambda one=one: self._curve(*one)))
            for one in (CURVE if self.judged else ())
        )
        heads = [(source, name) for source in ("trained", "random") for name in self.models]
        return ProbeStudy(
            config=self.config,
            n=self.rules.n,
            shape=self.any.config.to_json(),
            models=tuple(self.models),
            fitted_on=len(self.split.train),
            scored_on=len(self.split.test),
            mean_filled=float((self.states.boards > 0).sum(1).mean()),
            rows=rows,
            transfer=tuple(TransferRow.from_json(row) for one in fits.values() for row in one["transfer"]),
            geometry=tuple(LayerGeometry.from_json(one["geometry"]) for one in fits.values() if one["geometry"]),
            unembedding=tuple(
                ModelGeometry(name, source, tuple(unembedding_geometry(self._model(name, source))))
                for source, name in heads
            ),
            curve=curve,
            verdicts=self._verdicts(rows, curve),
            crossings=self._crossings(fits),
        )

    def _model(self, name: str, source: str) -> SudokuModel:
        if source not in UNTRAINED:
            return self.models[name]
        seed = self.config.seed + 1 + list(self.models).index(name)
        return untrained(self.models[name], seed=seed, uniform=source == "uniform")

    def _at(self, model: str, source: str, layer: int) -> Float[Tensor, "n d"]:
        """Activations of a source; those of one model at a time are held."""
        key = (model, "trained" if source == "shuffled" else source if model != "oracle" else "")
        if key not in self._activations:
            self._activations.clear()
            if model == "oracle":
                self._activations[key] = oracle_codes(self.rules, self.states.boards, self.d, seed=self.config.seed)
            else:
                self._activations[key] = activations(self._model(model, source), self.states)
        return self._activations[key][ORACLES.index(source) if model == "oracle" else layer]

    def _fit(self, model: str, source: str, layer: int, target: str, probe: str) -> Part:
        x, own = self._at(model, source, layer), self.labels[target]
        made, found = fit_and_score(x, own, self.split, probe, self.config, shuffle=source == "shuffled")
        row = ProbeRow(model, source, layer, target, probe, **metrics(found), gradient=float(made.gradient.max()))
        part: Part = {"row": row.to_json(), **counts(found), "transfer": [], "geometry": None}
        if probe == "logistic" and self.config.transfer and source == "trained":
            part["transfer"] = [row.to_json() for row in self._transfer(model, layer, target, made)]
        if probe == "logistic" and target == "candidates" and model != "oracle" and source != "shuffled":
            groups = tuple(candidate_geometry(self.rules, made))
            part["geometry"] = LayerGeometry(model, source, layer, groups).to_json()
        return part

    def _transfer(self, model: str, layer: int, target: str, probe: LinearProbe) -> list[TransferRow]:
        """The probe on other layers of the test puzzles, and on later positions of the model's own traces of them."""

        def row(to_layer: int, empties: int | None, x: Tensor, own: Labels) -> TransferRow:
            found = scored(probe, x, own, self.config)
            return TransferRow(model, target, layer, to_layer, empties, **metrics(found), n=len(x))

        test = self.split.test
        rows = [
            row(to, None, self._at(model, "trained", to)[test], self.labels[target].rows(test))
            for to in range(self.n_layers + 1)
        ]
        for empties, states, found in self._later(model):
            rows.append(row(layer, empties, found[layer], labels(self.rules, states.boards, target)))
        return rows

    def _later(self, model: str) -> list[tuple[int, States, Activations]]:
        """Positions with so many empty cells, where 20 puzzles or more have one."""
        if getattr(self, "_later_of", None) != model:
            traces = own_traces(self.models[model], self.traces.puzzles[self.split.test], seed=self.config.seed)
            half = self.rules.n_cells // 2
            wanted = self.config.empties or tuple(sorted({round(half * k / 7) for k in range(8)}, reverse=True))
            chosen = [(empties, states_with(traces, empties)) for empties in wanted]
            self._later_of = model
            self._later_found = [(e, s, activations(self.models[model], s)) for e, s in chosen if len(s) >= 20]
        return self._later_found

    def _curve(self, code: str, damage: str, amount: float) -> Part:
        x = damaged(self.rules, self.states.boards, self.d, code, damage, amount, seed=self.config.seed)
        found = {
            target: fit_and_score(x, self.labels[target], self.split, "logistic", self.config)[1].scores
            for target in ("substructure", "cell state")
        }
        auc, cells = found["substructure"].auc.value, found["cell state"].accuracy.value
        return CurvePoint(code, damage, amount, auc, cells).to_json()

    def _verdicts(self, rows: tuple[ProbeRow, ...], curve: tuple[CurvePoint, ...]) -> tuple[Verdict, ...]:
        """Of every layer of trained and random models, and of the projected codes (which must come out as they are)."""
        if not self.judged:
            return ()
        read = {(row.model, row.source, row.layer, row.target): row for row in rows if row.probe == "logistic"}
        return tuple(
            decide(
                name,
                read[(*name, "cell state")].accuracy,
                read[(*name, "substructure")].auc.value,
                curve,
                min_gap=self.config.min_gap,
            )
            for name in dict.fromkeys(key[:3] for key in read)
            if name[1] != "shuffled" and (name[0] == "oracle" or name[2] > 0)
        )

    def _crossings(self, fits: Mapping[tuple[str, str, int, str, str], Part]) -> tuple[Crossing, ...]:
        if not set(CROSSED) <= set(self.config.targets) or "logistic" not in self.config.probes:
            return ()

        def sides(source: str) -> dict[tuple[str, int], Sides]:
            return {
                (model, layer): {t: counts_of(fits[model, source, layer, t, "logistic"]) for t in CROSSED}
                for model in self.models
                for layer in range(1, self.n_layers + 1)
            }

        ceiling = counts_of(fits["oracle", "substructure", 0, "cell state", "logistic"])
        options = {"draws": self.config.draws, "seed": self.config.seed}
        return tuple(crossing(one, sides("trained"), sides(one), ceiling, **options) for one in UNTRAINED)


def _fingerprint(model: SudokuModel) -> float:
    """Tells models apart well enough to refuse to mix their parts."""
    with torch.no_grad():
        return float(sum(p.double().abs().sum() * (i + 1) for i, p in enumerate(model.hooked.hf.parameters())))

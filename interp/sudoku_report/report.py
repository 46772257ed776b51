"""The page of a Sudoku study: what was trained, what it holds of the board, what moves it, beside the paper's figures.

write_report("report.html", read_results(["runs/sudoku-demo/results"]))
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from interp.errors import InputError
from interp.page.numbers import number
from interp.sudoku.interventions import PatchStudy
from interp.sudoku.jobs import CircuitFindings
from interp.sudoku.probe_records import ProbeStudy
from interp.sudoku.records import Record
from interp.sudoku.solving_study import SolvingStudy
from interp.sudoku.study_files import Result
from interp.sudoku_report.numbers import interval
from interp.sudoku_report.probes import AGAINST

if TYPE_CHECKING:
    from interp.page import Section, Tile

R = TypeVar("R", bound=Record)
_FOOTER = (
    "In the manner of arXiv 2605.18847. Controls, ceilings, intervals, the verdict and the small boards are this "
    "project's own."
)


def write_report(path: str | os.PathLike[str], results: Sequence[Result]) -> Path:
    """Write the page of what there is; sections without a result are left out."""
    from interp.page import Page
    from interp.sudoku_report.circuit import circuit_sections
    from interp.sudoku_report.geometry import geometry_section
    from interp.sudoku_report.interventions import intervention_section
    from interp.sudoku_report.paper import paper_section
    from interp.sudoku_report.probes import crossing_section, probe_section, verdict_section
    from interp.sudoku_report.solving import solving_section
    from interp.sudoku_report.transfer import transfer_section

    if not results:
        raise InputError("there is nothing to report: expected results of `midlens sudoku`")
    solving, circuits = held(results, SolvingStudy), held(results, CircuitFindings)
    patches, studies = held(results, PatchStudy), list(held(results, ProbeStudy).values())
    if len(studies) > 1:
        raise InputError(f"{len(studies)} probing studies for one page; expected one, of all models together")
    study = studies[0] if studies else None
    sections: list[Section | None] = [_summary(solving, study, patches, circuits)]
    sections.append(solving_section(solving) if solving else None)
    if study is not None:
        sections += [probe_section(study), crossing_section(study), verdict_section(study)]
        sections += [transfer_section(study), geometry_section(study)]
    sections.append(intervention_section(patches) if patches else None)
    sections += circuit_sections(circuits, _side(study, solving)) if circuits else []
    sections += [paper_section(study, patches), _provenance(results)]
    names = ", ".join(dict.fromkeys(one.name for one in results if one.part != "probes")) or results[0].name
    return Page("A Sudoku solver's world model", names, [s for s in sections if s is not None], footer=_FOOTER).write(
        path
    )


def held(results: Sequence[Result], kind: type[R]) -> dict[str, R]:
    """The values of a kind by the name of their model."""
    found: dict[str, R] = {}
    for one in results:
        if isinstance(one.value, kind):
            if one.name in found:
                raise InputError(f"two results of {one.part} are both of {one.name}; give one of them")
            found[one.name] = one.value
    return found


def _side(study: ProbeStudy | None, solving: dict[str, SolvingStudy]) -> int | None:
    if study is not None:
        return study.n
    return next((one.n for one in solving.values()), None)


def _summary(
    solving: dict[str, SolvingStudy],
    study: ProbeStudy | None,
    patches: dict[str, PatchStudy],
    circuits: dict[str, CircuitFindings],
) -> "Section":
    from interp.page import Metrics, Section

    tiles = [*_solved_tiles(solving), *_probe_tiles(study), *_patch_tiles(patches), *_neuron_tiles(circuits)]
    lead = (
        "A transformer was trained to write moves, given clues; nobody told it what a board is. Three questions: what "
        "of the board can be read off its activations, does it play by what is read there, and which parts choose the "
        "move. Intervals are 95 %."
    )
    return Section("Summary", [Metrics(tiles)], lead=lead)


def _solved_tiles(solving: dict[str, SolvingStudy]) -> "list[Tile]":
    from interp.page import Tile

    return [
        Tile(
            f"{name}: unseen puzzles solved",
            number(one.rate, ".4f"),
            f"{one.solved:,} of {one.puzzles:,}, {number(one.interval.low, '.4f')} to "
            f"{number(one.interval.high, '.4f')} (Wilson)",
            headline=True,
        )
        for name, one in solving.items()
    ]


def _probe_tiles(study: ProbeStudy | None) -> "list[Tile]":
    from interp.page import Tile

    tiles: list[Tile] = []
    for met in study.crossings if study is not None else ():
        where = ", ".join(map(str, met.crossed)) or "none"
        note = f"training lowers cell states and raises units and candidates in every model; layers: {where}"
        tiles.append(Tile(f"Crossing against {AGAINST[met.reference]}", "seen" if met.holds else "not seen", note))
    if study is not None and study.verdicts:
        own = [v for v in study.verdicts if v.source == "trained"]
        by = {layer: sorted({v.verdict for v in own if v.layer == layer}) for layer in sorted({v.layer for v in own})}
        said = "; ".join(f"layer {layer}: {' or '.join(found)}" for layer, found in by.items())
        tiles.append(Tile("Code, as cell states tell", _common([v.verdict for v in own]), said))
    return tiles


def _common(verdicts: Sequence[str]) -> str:
    return verdicts[0] if len(set(verdicts)) == 1 else "mixed"


def _patch_tiles(patches: dict[str, PatchStudy]) -> "list[Tile]":
    from interp.page import Tile

    tiles = []
    for name, one in patches.items():
        best = max(one.layers, key=lambda layer: layer.excess.value)
        note = f"drop of the first move's logit beyond random directions of equal size: {interval(best.excess, '.2f')}"
        tiles.append(Tile(f"{name}: unit patch, layer {best.layer}", number(best.excess.value, "+.2f"), note))
    return tiles


def _neuron_tiles(circuits: dict[str, CircuitFindings]) -> "list[Tile]":
    from interp.page import Tile

    tiles = []
    for name, one in circuits.items():
        scan, fresh = one.study.scan.naked, one.study.untrained.naked
        note = (
            f"neurons for {int(scan.found.sum())} of {scan.tested} (cell, digit) pairs; mean AUC "
            f"{number(scan.mean_auc)}, {number(fresh.mean_auc)} untrained"
        )
        tiles.append(Tile(f"{name}: naked-single neurons", str(scan.distinct), note))
    return tiles


def _provenance(results: Sequence[Result]) -> "Section":
    from interp.page import KeyValues, Row, Section

    parts = [KeyValues({k: _said(v) for k, v in one.settings.items()}, f"{one.part}: {one.name}") for one in results]
    lead = "The settings of every result; weights are named by the first digits of their file's SHA-256."
    return Section("Provenance", [Row(parts, least=400)], lead=lead)


def _said(value: object) -> str:
    """Lists and groups of settings in words."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {_said(item)}" for key, item in value.items())
    return (", ".join(map(_said, value)) or "by default") if isinstance(value, list) else str(value)

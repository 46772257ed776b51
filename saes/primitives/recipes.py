"""The recipes of a finished run, ready to steer with.

    recipes = load_recipes("runs/primitives")                   # reads catalogue.json and coverage.json
    with model.edited(recipes["joy"].hooks(sae, site)):
        tokens = model.generate(...)

A recipe holds feature numbers, strengths as fractions of the mean residual norm, and that norm, so it means something
for one SAE at one site of one model: those named in catalogue.json. The same model, SAE, prompt, seed and settings
write the same text, bit for bit, as during the run. `passed` keeps those that the judges confirmed.
"""

import os
from pathlib import Path
from typing import Literal, get_args

from interp.errors import InputError
from interp.sealing import read_json
from saes.primitives.catalogue import Catalogue
from saes.primitives.results import Cell, Coverage
from saes.primitives.specs import SteeringSpec

CATALOGUE_FILE, COVERAGE_FILE = "catalogue.json", "coverage.json"
Passed = Literal["any", "soft", "strict"]


def load_recipes(run_folder: str | os.PathLike[str], *, passed: Passed = "any") -> dict[str, SteeringSpec]:
    """Of every emotion that has one, the recipe that the run chose.

    `passed`: "strict" and "soft" keep the emotions whose steered texts passed so; "any" keeps all that were tried.
    """
    if passed not in get_args(Passed):
        raise InputError(f"unknown passed={passed!r}; known: {', '.join(get_args(Passed))}")
    catalogue, coverage = load_run(run_folder)
    width = catalogue.facts["features"]
    found: dict[str, SteeringSpec] = {}
    for cell in coverage.cells:
        if cell.chosen is None or not _holds(cell, passed):
            continue
        if beyond := [term.feature for term in cell.chosen.terms if not 0 <= term.feature < width]:
            raise InputError(
                f"{run_folder}: the recipe of {cell.emotion} uses features {beyond}, but the SAE of {CATALOGUE_FILE} "
                f"has {width:,}; expected files of one run"
            )
        found[cell.emotion] = cell.chosen
    return found


def load_run(run_folder: str | os.PathLike[str]) -> tuple[Catalogue, Coverage]:
    """Catalogue and coverage of a run's folder; refuses files that are not of one run."""
    folder = Path(run_folder)
    missing = [name for name in (CATALOGUE_FILE, COVERAGE_FILE) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} has no {' and no '.join(missing)}; expected the folder of a finished run of midlens primitives"
        )
    catalogue = Catalogue.from_json(read_json(folder / CATALOGUE_FILE, "a catalogue of literary primitives"))
    coverage = Coverage.from_json(read_json(folder / COVERAGE_FILE, "a coverage of emotions"))
    if not isinstance(catalogue.facts.get("features"), int):
        raise InputError(f"{folder / CATALOGUE_FILE} does not say how many features the SAE has (facts: features)")
    if catalogue.facts.get("categories") != coverage.categories:
        raise InputError(
            f"{folder}: {CATALOGUE_FILE} is of the categories {catalogue.facts.get('categories')!r}, {COVERAGE_FILE} "
            f"of {coverage.categories!r}; expected files of one run"
        )
    return catalogue, coverage


def _holds(cell: Cell, passed: Passed) -> bool:
    if passed == "any":
        return True
    return any(one.name == "steered" and getattr(one, passed) for one in cell.conditions)

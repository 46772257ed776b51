"""The stages of a Sudoku study, each from folders of models to one JSON file; a file that is there is not made again.

    train -> MODEL/        solve -> solving      probe -> probes      intervene -> interventions      circuit -> circuit

All puzzles are unseen ones (`interp.sudoku.splitting`), of the kind that the model was trained on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.heap import trimmed
from interp.progress import bar
from interp.sudoku.circuit import CircuitStudy, circuit_study
from interp.sudoku.generate import Kind
from interp.sudoku.interventions import PatchStudy, fit_substructure, patch_study
from interp.sudoku.model import WEIGHTS, load_model
from interp.sudoku.neuron_pages import NeuronPage, neuron_pages
from interp.sudoku.neuron_scan import scan_sample
from interp.sudoku.presets import preset
from interp.sudoku.probe_records import ProbeConfig, ProbeStudy
from interp.sudoku.records import Record
from interp.sudoku.solving_study import TEST_SEED, SolvingStudy, solving_study, tested
from interp.sudoku.study_files import kept, weights_digest
from interp.sudoku.train import settings_of, train_sudoku


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run of a preset, and the puzzles that it is tried on afterwards."""

    preset: str = "4x4-dense"
    """4x4-dense (a core, minutes), 6x6-dense (a core, hours), 9x9-paper (a GPU)."""
    seed: int = 0
    """Of the weights and the puzzles."""
    steps: int | None = None
    """Other than the preset's."""
    test_puzzles: int = 2000
    """Unseen puzzles to solve when training is done."""
    workers: int = 1
    """Processes that make puzzles."""


@dataclass(frozen=True, kw_only=True)
class InterveneConfig:
    """Patches along the probes' directions."""

    puzzles: int = 4000
    """Unseen ones: half to fit the probes, half to patch."""
    samples: int = 300
    """Puzzles patched, at most."""
    draws: int = 8
    """Random directions for each puzzle."""
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class CircuitConfig:
    """Heads and neurons."""

    puzzles: int = 8000
    """Unseen ones: half to find neurons, half to try them on."""
    per_trace: int = 1
    """States of each trace in the scan."""
    draws: int = 100
    """Permutations of the null."""
    head_puzzles: int = 1000
    """On which heads are ablated."""
    pages: int = 6
    """Neurons described one by one."""
    seed: int = 42


@dataclass(frozen=True)
class CircuitFindings(Record):
    """The study, and its best neurons one by one."""

    study: CircuitStudy
    neurons: tuple[NeuronPage, ...]


@trimmed()
def train_job(config: TrainConfig, folder: Path, *, device: Any = None) -> Path:
    """Train, or go on; the file of the weights."""
    changes = {} if config.steps is None else {"steps": config.steps}
    settings = preset(config.preset, seed=config.seed, **changes)
    train_sudoku(settings, folder, device=device, workers=config.workers)
    return folder / WEIGHTS


@trimmed()
def solve_job(folder: Path, path: Path, *, puzzles: int = 2000, device: Any = None) -> SolvingStudy:
    """Solve unseen puzzles."""
    settings = {**identity(folder), "puzzles": puzzles, "seed": TEST_SEED}

    def make() -> SolvingStudy:
        kind = kind_of(folder)
        return solving_study(load_model(folder, device=device), kind=kind, puzzles=puzzles, folder=folder)

    return kept(path, "solving", folder.name, settings, make)


@trimmed()
def probe_job(
    folders: Sequence[Path], path: Path, config: ProbeConfig, *, device: Any = None, show: bool | None = None
) -> ProbeStudy:
    """Probe models of one shape beside random-initialised ones, with all controls; parts are kept beside the result."""
    from interp.sudoku.probe_study import probe_study

    if not folders:
        raise InputError("no model was given; name at least one folder of `midlens sudoku train`")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"two models have the same name ({', '.join(names)}); rename a folder")
    settings = {"models": {folder.name: identity(folder) for folder in folders}, **config.to_json()}

    def make() -> ProbeStudy:
        models = {folder.name: load_model(folder, device=device) for folder in folders}
        return probe_study(models, config, out=parts_folder(path), show=show)

    return kept(path, "probes", ", ".join(names), settings, make)


@trimmed()
def intervene_job(
    folder: Path, path: Path, config: InterveneConfig, *, device: Any = None, show: bool | None = None
) -> PatchStudy:
    """Fit probes for the units' digits on half of the puzzles, patch along them on the other half."""

    def make() -> PatchStudy:
        with bar(3, f"{folder.name}: interventions", unit="stage", show=show) as progress:
            model = load_model(folder, device=device)
            traces = tested(model, kind=kind_of(folder), puzzles=config.puzzles, seed=config.seed)
            progress.update(1)
            probes = fit_substructure(model, traces[: len(traces) // 2])
            progress.update(1)
            rest = traces[len(traces) // 2 :]
            found = patch_study(model, rest, probes, samples=config.samples, draws=config.draws, seed=config.seed)
            progress.update(1)
        return found

    return kept(path, "interventions", folder.name, {**identity(folder), **asdict(config)}, make)


@trimmed()
def circuit_job(
    folder: Path, path: Path, config: CircuitConfig, *, device: Any = None, show: bool | None = None
) -> CircuitFindings:
    """Heads that suppress held digits, neurons of forced moves, margins."""

    def make() -> CircuitFindings:
        with bar(2, f"{folder.name}: circuit", unit="stage", show=show) as progress:
            model = load_model(folder, device=device)
            traces = tested(model, kind=kind_of(folder), puzzles=config.puzzles, seed=config.seed)
            progress.update(1)
            options: dict[str, int] = {"per_trace": config.per_trace, "seed": config.seed}
            study = circuit_study(model, traces, draws=config.draws, head_puzzles=config.head_puzzles, **options)
            sample = scan_sample(model, traces[: len(traces) // 2], **options)
            pages = neuron_pages(model, study.scan, sample, count=config.pages)
            progress.update(1)
        return CircuitFindings(study, pages)

    return kept(path, "circuit", folder.name, {**identity(folder), **asdict(config)}, make)


def parts_folder(path: Path) -> Path:
    """Where the parts of a probing study are kept."""
    return path.with_name(f"{path.stem}-parts")


def kind_of(folder: Path) -> Kind:
    """The kind of puzzles that a run was trained on; dense where the folder holds a model alone."""
    return settings_of(folder).kind if (folder / "run.json").exists() else "dense"


def identity(folder: Path) -> dict[str, str]:
    """What a result says of its model: its weights and its puzzles."""
    return {"weights": weights_digest(folder), "kind": kind_of(folder)}


def report_job(paths: Sequence[Path], page: Path) -> Path:
    """The page of all results in files and folders."""
    from interp.sudoku.study_files import read_results
    from interp.sudoku_report.report import write_report

    return write_report(page, read_results(paths))

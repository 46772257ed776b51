"""`midlens sudoku generate`, `train`, `probe`, `intervene`, `circuit`, `report`, `demo`: a solver's world model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from interp.sudoku.demo import DemoConfig
from interp.sudoku.generate_files import PuzzleConfig
from interp.sudoku.jobs import CircuitConfig, InterveneConfig, TrainConfig
from interp.sudoku.probe_records import ProbeConfig
from midlens.console import Command, Planned, finish, say


@dataclass(frozen=True, kw_only=True)
class Generate(PuzzleConfig, Command):
    """Puzzles with one solution each, and traces that solve them; the same command again goes on where it was."""

    example: ClassVar[str] = "midlens sudoku generate --out runs/puzzles"

    out: Path
    """Folder of the puzzles."""
    workers: int = 1
    """Processes."""

    def run(self) -> int:
        """Make them; the folder is the last line."""
        from interp.sudoku.generate_files import write_puzzles

        config = self.settings(PuzzleConfig)
        write_puzzles(config, self.out, workers=self.workers)
        return finish(self.out)


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig, Command):
    """Train a solver, then let it solve unseen puzzles; the same command again goes on after a kill."""

    example: ClassVar[str] = "midlens sudoku train --out runs/solver"
    figures: ClassVar[str] = "solved, puzzles, rate, low, high"

    out: Path
    """Folder of the model."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""

    def run(self) -> int:
        """Train and try; the folder of the model is the last line."""
        from interp.loading import parse_device
        from interp.sudoku.jobs import solve_job, train_job

        config = self.settings(TrainConfig)
        device = parse_device(self.device)
        train_job(config, self.out, device=device)
        found = solve_job(self.out, self.out / "solving.json", puzzles=config.test_puzzles, device=device)
        low, high = found.interval
        say(f"solved {found.solved:,} of {found.puzzles:,} unseen puzzles: {found.rate:.4f} ({low:.4f} to {high:.4f})")
        figures = {"solved": found.solved, "puzzles": found.puzzles, "rate": found.rate, "low": low, "high": high}
        return finish(self.out, figures=figures)


@dataclass(frozen=True, kw_only=True)
class Probe(ProbeConfig, Command):
    """Probe trained models for cells, candidates and units, beside random weights, shuffled labels and known codes."""

    example: ClassVar[str] = "midlens sudoku probe runs/solver --out runs/probes.json"

    models: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of `midlens sudoku train`, of one board."""
    out: Path
    """The result, a JSON file."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""

    def run(self) -> int:
        """Probe; the path of the result is the last line."""
        from interp.loading import parse_device
        from interp.sudoku.jobs import probe_job

        config = self.settings(ProbeConfig)
        probe_job(self.models, self.out, config, device=parse_device(self.device))
        return finish(self.out)


@dataclass(frozen=True, kw_only=True)
class Intervene(InterveneConfig, Command):
    """Patch the stream along the probes' directions, beside random directions of the same size."""

    example: ClassVar[str] = "midlens sudoku intervene runs/solver --out runs/intervene.json"

    model: Annotated[Path, tyro.conf.Positional]
    """Folder of `midlens sudoku train`."""
    out: Path
    """The result, a JSON file."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""

    def run(self) -> int:
        """Patch; the path of the result is the last line."""
        from interp.loading import parse_device
        from interp.sudoku.jobs import intervene_job

        config = self.settings(InterveneConfig)
        intervene_job(self.model, self.out, config, device=parse_device(self.device))
        return finish(self.out)


@dataclass(frozen=True, kw_only=True)
class Circuit(CircuitConfig, Command):
    """Find heads that suppress held digits and neurons of forced moves, and ablate them."""

    example: ClassVar[str] = "midlens sudoku circuit runs/solver --out runs/circuit.json"

    model: Annotated[Path, tyro.conf.Positional]
    """Folder of `midlens sudoku train`."""
    out: Path
    """The result, a JSON file."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""

    def run(self) -> int:
        """Find; the path of the result is the last line."""
        from interp.loading import parse_device
        from interp.sudoku.jobs import circuit_job

        config = self.settings(CircuitConfig)
        circuit_job(self.model, self.out, config, device=parse_device(self.device))
        return finish(self.out)


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """One offline page of results."""

    example: ClassVar[str] = "midlens sudoku report runs/probes.json runs/circuit.json --out runs/sudoku.html"

    results: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Files of `train`, `probe`, `intervene`, `circuit`, or folders that hold such."""
    out: Path
    """The page, an HTML file."""

    def run(self) -> int:
        """Write it; its path is the last line."""
        from interp.sudoku.jobs import report_job

        return finish(report_job(self.results, self.out))


@dataclass(frozen=True, kw_only=True)
class Demo(DemoConfig, Planned):
    """Train two 4x4 solvers side by side, study them and write the page; the same command again goes on."""

    example: ClassVar[str] = "midlens sudoku demo --out runs/sudoku"

    out: Path
    """Folder of the demonstration."""

    def plan(self) -> Mapping[str, object]:
        """What is there and what is missing."""
        from interp.study_outline import demo_outline

        return demo_outline(self.out, self.settings(DemoConfig))

    def run(self) -> int:
        """All of it; the path of the page is the last line."""
        from interp.sudoku.demo import demo

        config = self.settings(DemoConfig)
        return finish(demo(self.out, config, announce=say))

"""`midlens sudoku generate`, `train`, `probe`, `intervene`, `circuit`, `report`, `demo`: a solver's world model."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from interp.sudoku.demo import DemoConfig
from interp.sudoku.generate_files import PuzzleConfig
from interp.sudoku.jobs import CircuitConfig, InterveneConfig, TrainConfig
from interp.sudoku.probe_records import ProbeConfig
from midlens.console import say

_sub = tyro.conf.subcommand


@dataclass(frozen=True, kw_only=True)
class Generate(PuzzleConfig):
    """Puzzles with one solution each, and traces that solve them; the same command again goes on where it was."""

    out: Path
    """Folder of the puzzles."""
    workers: int = 1
    """Processes."""

    def run(self) -> int:
        """Make them; the folder is the last line."""
        from interp.sudoku.generate_files import write_puzzles

        config = PuzzleConfig(**{field.name: getattr(self, field.name) for field in fields(PuzzleConfig)})
        write_puzzles(config, self.out, workers=self.workers)
        say(str(self.out.resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train a solver, then let it solve unseen puzzles; the same command again goes on after a kill."""

    out: Path
    """Folder of the model."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""

    def run(self) -> int:
        """Train and try; the folder of the model is the last line."""
        from interp.loading import parse_device
        from interp.sudoku.jobs import solve_job, train_job

        config = TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})
        device = parse_device(self.device)
        train_job(config, self.out, device=device)
        found = solve_job(self.out, self.out / "solving.json", puzzles=config.test_puzzles, device=device)
        low, high = found.interval
        say(f"solved {found.solved:,} of {found.puzzles:,} unseen puzzles: {found.rate:.4f} ({low:.4f} to {high:.4f})")
        say(str(self.out.resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Probe(ProbeConfig):
    """Probe trained models for cells, candidates and units, beside random weights, shuffled labels and known codes."""

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

        config = ProbeConfig(**{field.name: getattr(self, field.name) for field in fields(ProbeConfig)})
        probe_job(self.models, self.out, config, device=parse_device(self.device))
        say(str(self.out.resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Intervene(InterveneConfig):
    """Patch the stream along the probes' directions, beside random directions of the same size."""

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

        config = InterveneConfig(**{field.name: getattr(self, field.name) for field in fields(InterveneConfig)})
        intervene_job(self.model, self.out, config, device=parse_device(self.device))
        say(str(self.out.resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Circuit(CircuitConfig):
    """Find heads that suppress held digits and neurons of forced moves, and ablate them."""

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

        config = CircuitConfig(**{field.name: getattr(self, field.name) for field in fields(CircuitConfig)})
        circuit_job(self.model, self.out, config, device=parse_device(self.device))
        say(str(self.out.resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """One offline page of results."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Files of `train`, `probe`, `intervene`, `circuit`, or folders that hold such."""
    out: Path
    """The page, an HTML file."""

    def run(self) -> int:
        """Write it; its path is the last line."""
        from interp.sudoku.jobs import report_job

        say(str(report_job(self.results, self.out).resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Demo(DemoConfig):
    """Train two 4x4 solvers side by side, study them and write the page; the same command again goes on."""

    out: Path
    """Folder of the demonstration."""

    def run(self) -> int:
        """All of it; the path of the page is the last line."""
        from interp.sudoku.demo import demo

        config = DemoConfig(**{field.name: getattr(self, field.name) for field in fields(DemoConfig)})
        say(str(demo(self.out, config, announce=say).resolve()))
        return 0


_Command = (
    Annotated[Generate, _sub("generate", description="Puzzles with one solution each, and traces that solve them.")]
    | Annotated[Train, _sub("train", description="Train a solver and let it solve unseen puzzles.")]
    | Annotated[Probe, _sub("probe", description="Probe solvers for what they hold of the board, with controls.")]
    | Annotated[Intervene, _sub("intervene", description="Patch along the probes' directions.")]
    | Annotated[Circuit, _sub("circuit", description="Heads and neurons that choose the move.")]
    | Annotated[Report, _sub("report", description="One page of results.")]
    | Annotated[Demo, _sub("demo", description="All of it on two 4x4 solvers, in minutes on two cores.")]
)


@dataclass(frozen=True)
class Sudoku:
    """World models of Sudoku solvers: generate, train, probe, intervene, circuit, report, demo."""

    command: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[_Command]]

    def run(self) -> int:
        """Run the command that was chosen."""
        return self.command.run()

"""The demonstration: two 4x4 solvers trained side by side, all studies of them, one page; minutes on two cores.

    OUT/models/seed0/ ...                     runs of training
    OUT/results/*.json                        studies: `interp.sudoku.study_files`
    OUT/report.html                           the page

Two processes of one thread each are faster than one of two threads: the matrices are small. Everything that is there is
not made again, so a demonstration that was stopped goes on.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.loop import read_metrics
from interp.progress import bar
from interp.sudoku.jobs import (
    CircuitConfig,
    InterveneConfig,
    TrainConfig,
    circuit_job,
    intervene_job,
    probe_job,
    report_job,
    solve_job,
    train_job,
)
from interp.sudoku.presets import preset
from interp.sudoku.probe_records import ProbeConfig, ProbeStudy
from interp.sudoku.solving_study import SolvingStudy
from interp.sudoku.study_files import read_result

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What is trained and studied."""

    preset: str = "4x4-dense"
    """See `midlens sudoku train`."""
    seeds: tuple[int, ...] = (0, 1)
    """One model each; with two or more the crossing is claimed only where every one shows it."""
    steps: int | None = None
    """Other than the preset's."""
    test_puzzles: int = 2000
    """Unseen puzzles that each model solves."""
    probe_puzzles: int = 4000
    """Puzzles of the probes, and of the interventions."""
    circuit_puzzles: int = 8000
    """Puzzles of the circuit."""
    workers: int = 2
    """Processes of one thread each."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or self.workers < 1:
            raise InputError(
                f"seeds={self.seeds}, workers={self.workers}: expected different seeds, at least one, and a worker"
            )


def demo(
    out: str | Path,
    config: DemoConfig | None = None,
    *,
    announce: Callable[[str], None] | None = None,
    show: bool | None = None,
) -> Path:
    """Run what is missing in `out`; the page."""
    config, out = config or DemoConfig(), Path(out)
    announce = announce or (lambda _: None)
    folders = [out / "models" / f"seed{seed}" for seed in config.seeds]
    with _pool(config.workers) as pool:
        _train(pool, config, folders, show)
        _study(pool, config, folders, out / "results", show)
    for folder in folders:
        found = read_result(out / "results" / f"solving-{folder.name}.json").value
        assert isinstance(found, SolvingStudy)
        low, high = found.interval
        announce(
            f"{folder.name}: solved {found.solved:,} of {found.puzzles:,} unseen puzzles, 95 % {low:.4f}-{high:.4f}"
        )
    study = read_result(out / "results" / "probes.json").value
    assert isinstance(study, ProbeStudy)
    for met in study.crossings:
        announce(met.statement)
    return report_job([out / "results"], out / PAGE)


def _train(pool: ProcessPoolExecutor, config: DemoConfig, folders: Sequence[Path], show: bool | None) -> None:
    """Train all models; the bar counts their steps, read from their logs."""
    steps = config.steps or preset(config.preset).steps
    jobs = [
        pool.submit(
            _quietly, train_job, TrainConfig(preset=config.preset, seed=seed, steps=config.steps), folder, device="cpu"
        )
        for seed, folder in zip(config.seeds, folders, strict=True)
    ]
    done = sum(map(_steps_done, folders))
    with bar(steps * len(folders), "training", unit="step", done=done, show=show) as progress:
        for _ in _until_done(jobs):
            now = sum(map(_steps_done, folders))
            progress.update(now - done)
            done = now


def _study(
    pool: ProcessPoolExecutor, config: DemoConfig, folders: Sequence[Path], results: Path, show: bool | None
) -> None:
    probes = ProbeConfig(puzzles=config.probe_puzzles)
    patches, circuit = InterveneConfig(puzzles=config.probe_puzzles), CircuitConfig(puzzles=config.circuit_puzzles)
    # The longest first.
    jobs = [pool.submit(_quietly, probe_job, folders, results / "probes.json", probes, device="cpu")]
    for folder in folders:
        paths = [results / f"{part}-{folder.name}.json" for part in ("circuit", "interventions", "solving")]
        jobs += [
            pool.submit(_quietly, circuit_job, folder, paths[0], circuit, device="cpu"),
            pool.submit(_quietly, intervene_job, folder, paths[1], patches, device="cpu"),
            pool.submit(_quietly, solve_job, folder, paths[2], puzzles=config.test_puzzles, device="cpu"),
        ]
    with bar(len(jobs), "studies", unit="study", show=show) as progress:
        for done in _until_done(jobs):
            progress.update(done)


def _until_done(jobs: Sequence["Future[Any]"]) -> Iterator[int]:
    """How many ended since the last look, each second; the error of the first that failed."""
    left = set(jobs)
    while left:
        done, left = wait(left, timeout=1.0, return_when=FIRST_COMPLETED)
        for job in done:
            job.result()
        yield len(done)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each; ended at once on an error or an interrupt, for all they do can go on later."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends its children
    torch.set_num_threads(1)


def _quietly(job: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Run a job without its own bars: those of two processes would overwrite each other."""
    held, sys.stderr = sys.stderr, open(os.devnull, "w")
    try:
        job(*arguments, **named)
    finally:
        sys.stderr.close()
        sys.stderr = held


def _steps_done(folder: Path) -> int:
    lines = read_metrics(folder / "metrics.jsonl")
    return lines[-1]["step"] if lines else 0

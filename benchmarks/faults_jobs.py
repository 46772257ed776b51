"""The jobs that faults are put into: each a command, what it promises to write, and what it may not do twice.

    extract     a Llama of three layers over 24 documents into an activation store; "in pieces": an elementwise model,
                whose rows do not depend on how batches are cut (the cuts stand in plan and manifest, which may differ)
    train       an SAE on that store: checkpoints, loss curve, weights
    sweep       three SAEs from one stream of rows, evaluated on held-out rows, with the page
    discover    the pipeline from text to report; report begins where its SAE is trained

Compared is every file of the folder, byte for byte, hidden ones and leftovers included. One thing is held still for it:
`time.perf_counter`, whose readings `timings.json` and the report's table of stages hold (and no other file).

A unit is a batch of an extraction, a step of a training, an evaluation; units that are sealed when a process dies
(their shard is in the ledger, a later checkpoint is whole, their file has its name) may not be done again.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {"d_sae": 32, "k": 3, "batch_size": 32, "lr": 3e-3, "tokens": 640, "dead_after_tokens": 300,
         "sample": 128, "log_every": 2, "checkpoint_every": 4}  # fmt: skip
EXTRACTION: dict[str, Any] = {"max_length": 16, "token_budget": 64, "rows_per_shard": 60, "progress": False}
SITES = ["resid_post.1", "z.0"]
Units = set[str]


@dataclass(frozen=True)
class Job:
    """A command that writes a folder."""

    name: str
    run: Callable[[Path], None]
    sealed: Callable[[Path], Units]
    """The units that need not be done again, from what lies in the folder."""
    begin: Callable[[Path], None]
    """Puts into a folder what is there before the command is first given."""
    unlike: tuple[str, ...] = ()
    """Files that say what happened on the way, and may differ."""


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


class Jobs:
    """All jobs, over a model, texts and a store made in `root`. Everything slow is loaded here, before any fork."""

    def __init__(self, root: Path) -> None:
        from interp.extract import extract
        from interp.model import HookedModel
        from interp.store import ActivationStore
        from tests.tiny_folder import tiny_folder
        from tests.toy_store import ToyModel, token_file

        unshared_progress()
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        tiny_folder(root, lengths=(30, 40))
        self.model = HookedModel.load(str(root / "model"), dtype="float32")
        lengths = [5, 30, 1, 17, 3, 64, 2, 9, 9, 9, 40, 33, 21, 50, 12, 60, 44, 8, 31, 27, 19, 58, 3, 36]
        self.tokens = token_file(root / "tokens", lengths)
        for name in ("store", "held_out"):
            extract(self.model, self.tokens, SITES, root / name, seed=int(name == "store"), **EXTRACTION)
        self.store, self.held_out = (ActivationStore.open(root / name) for name in ("store", "held_out"))
        self.elementwise = ToyModel()
        self.log = root / "log"

    def named(self, name: str) -> Job:
        """One of the jobs."""
        sealed: dict[str, Callable[[Path], Units]] = {
            "extract": of_store,
            "extract in pieces": of_store,
            "train": of_run,
            "sweep": lambda folder: set().union(*(of_run(path) for path in folder.glob("*/"))),
            "discover": of_discovery,
            "report": of_discovery,
        }
        unlike = ("plan.json", "manifest.json") if name == "extract in pieces" else ()
        return Job(name, partial(self._run, name), sealed[name], partial(self._begin, name), unlike)

    def _begin(self, name: str, folder: Path) -> None:
        if name != "report":
            return
        finished = self.root / "discovered"
        if not finished.exists():
            child = os.fork()  # training here would leave threads behind, which no fork survives
            if child == 0:
                self._run("discover", finished)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, "an undisturbed run failed"
        ignored = shutil.ignore_patterns("evaluation.json", "features.jsonl", "report.html")
        shutil.copytree(finished, folder, ignore=ignored, dirs_exist_ok=True)

    def _run(self, name: str, folder: Path) -> None:
        """The command; for a process of its own."""
        record_units(self.log)
        time.perf_counter = lambda: 0.0
        if name.startswith("extract"):
            from interp.extract import extract

            model = self.elementwise if name == "extract in pieces" else self.model
            extract(model, self.tokens, SITES, folder, **EXTRACTION)
        elif name == "train":
            from saes.train import TrainConfig, fit

            fit(self.store, TrainConfig(**SMALL), folder, site=SITES[0])
        elif name == "sweep":
            from saes.sweep import sweep
            from saes.train import TrainConfig

            members = {
                "topk": TrainConfig(**SMALL),
                "wide": TrainConfig(**{**SMALL, "d_sae": 48, "tokens": 320}),
                "jumprelu": TrainConfig(**SMALL, architecture="jumprelu"),
            }
            sweep(self.store, members, folder, site=SITES[0], evaluate_on=self.held_out, show=False)
        else:
            from saes.discover import discover

            discover(self._discovery(folder))

    def _discovery(self, folder: Path) -> Any:
        from saes.discover import DiscoverConfig

        return DiscoverConfig(
            model=str(self.root / "model"),
            corpus=str(self.root / "text.jsonl"),
            out=folder,
            train_tokens=700,
            held_out_tokens=150,
            max_length=16,
            expansion=1,
            k=4,
            epochs=2,
            loss_tokens=60,
            examples=2,
        )

    def units(self) -> list[str]:
        """What was done, in order, since the log was last emptied."""
        return self.log.read_text().splitlines() if self.log.exists() else []


def unshared_progress() -> None:
    """Give every process locks of its own for its bars: one killed while it drew would stop all others for good."""
    from tqdm.std import TqdmDefaultWriteLock, tqdm

    TqdmDefaultWriteLock.mp_lock = None
    tqdm.monitor_interval = 0  # its thread could hold a lock at a fork


def record_units(log: Path) -> None:
    """Write down every unit that this process does, at its beginning."""
    import saes.discover as discover_module
    from interp.extraction import Extraction
    from saes.fitting import Fitting

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    attempt, advance = Extraction._attempt, Fitting.advance

    def attempted(self: Extraction, ready: Any) -> Any:
        os.write(handle, f"{self.path.name} batch {ready.number}\n".encode())
        return attempt(self, ready)

    def advanced(self: Fitting, batch: Any) -> None:
        os.write(handle, f"{self.path.name} step {self.course.step}\n".encode())
        advance(self, batch)

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            os.write(handle, f"{name}\n".encode())
            return real(*arguments, **options)

        return called

    Extraction._attempt, Fitting.advance = attempted, advanced  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("evaluate", "read_features"):
        setattr(discover_module, name, noted(name, getattr(discover_module, name)))


def of_store(folder: Path) -> Units:
    """The batches of shards that manifest or ledger know."""
    from interp.ledger import Progress

    progress = Progress.of(folder)
    if not progress.plans:
        return set()
    plan = progress.plans[0]
    known = [shard for shard in progress.entries if shard < len(plan.shard_rows)]
    return {f"{folder.name} batch {batch}" for shard in known for batch in plan.batches_of(shard)}


def of_run(folder: Path) -> Units:
    """The steps before the newest checkpoint, or all."""
    from interp.loop import checkpoints
    from saes.fitting import is_finished

    steps = 0
    if is_finished(folder):
        steps = json.loads((folder / "training" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    elif found := checkpoints(folder / "training"):
        steps = int(found[-1].name.split("-")[1].split(".")[0])
    return {f"{folder.name} step {step}" for step in range(steps)}


def of_discovery(folder: Path) -> Units:
    """Of both stores, the run, and the two files that follow."""
    files = {"evaluation.json": "evaluate", "features.jsonl": "read_features"}
    found = {unit for name, unit in files.items() if (folder / name).exists()}
    return found.union(*map(of_store, (folder / "store").glob("*/")), of_run(folder / "sae"))

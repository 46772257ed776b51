"""Extraction on a Ray cluster: workers compute shards, the driver plans, hands out, records and seals.

    driver   lock, plan.json, ledger.jsonl, manifest.json
    worker   model; shard k of the plan -> a folder of its own in the store's, from where the driver takes it

The store is the one that a single machine writes, byte for byte (equal plan, hardware, versions and threads). A worker
that dies costs the shard it was at, which goes to the next free worker, and another is started in its place; a driver
that dies costs the shards under way: call again. All workers have to see the store's folder and the token file.

Ray is imported here only, when an extraction starts.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from interp import ledger
from interp.errors import InputError
from interp.extract import Settings
from interp.finishing import joined, seal
from interp.manifest import part_file
from interp.progress import bar
from interp.ray_worker import Done, Load, Planned, Task, Worker
from interp.sealing import only_writer, sync
from interp.sites import Site
from interp.store import ActivationStore

_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Which workers."""

    workers: int | None = None
    """How many; by default one for each GPU of the cluster, without GPUs as many as its CPUs allow."""
    cpus: float = 1.0
    """CPUs, or a fraction of one, for each."""
    gpus: float | None = None
    """GPUs, or a fraction of one, for each; by default 1 if the cluster has any."""
    address: str | None = None
    """Of a running cluster; by default RAY_ADDRESS, else a cluster is started on this machine."""

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.cpus <= 0 or (self.gpus or 0) < 0:
            raise InputError(
                f"expected at least 1 worker of more than 0 CPUs, got {self.workers} of {self.cpus:g} CPUs and "
                f"{self.gpus} GPUs"
            )


def extract_on_ray(
    load: Load,
    sites: Sequence[str | Site],
    path: str | Path,
    *,
    options: RayOptions | None = None,
    announce: Callable[[str], None] | None = None,
    progress: bool | None = None,
    **settings: Unpack[Settings],
) -> ActivationStore:
    """`interp.extract.extract` by the workers of a Ray cluster; `load` gives each of them its model and token file."""
    if settings.get("piece") is not None:
        raise InputError("a piece is computed by one machine: give piece or the Ray engine, not both")
    ray, options, path = _ray(), options or RayOptions(), Path(path).absolute()
    path.mkdir(parents=True, exist_ok=True)
    task = Task(load, [str(Site.parse(site)) for site in sites], path, settings)
    with only_writer(path), _cluster(ray, options):
        ledger.Progress.of(path)  # refuses what is no store before any model is loaded
        ledger.clean(path)
        crew = _Crew(ray, options, task)
        try:
            Driver(crew, path).run(announce, progress)
        finally:
            crew.dismiss()
    return ActivationStore.open(path)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("the Ray engine needs the package ray: pip install 'midlens[ray]'") from None
    return ray


@contextmanager
def _cluster(ray: Any, options: RayOptions) -> Iterator[None]:
    """The cluster that is there, or one for the duration."""
    if ray.is_initialized():
        yield
        return
    local = {} if options.address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    try:
        ray.init(address=options.address, logging_level="ERROR", log_to_driver=False, **local)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"no Ray cluster answers at {options.address!r} ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()


class _Crew:
    """The workers: started, replaced, dismissed."""

    def __init__(self, ray: Any, options: RayOptions, task: Task) -> None:
        self.ray, self.task = ray, task
        there = ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        self.cpus = options.cpus
        self.gpus = options.gpus if options.gpus is not None else float(gpus > 0)
        fit = int(min(cpus / self.cpus, gpus / self.gpus if self.gpus else cpus / self.cpus))
        self.size = options.workers or fit
        if not 1 <= self.size <= fit:
            raise InputError(
                f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, room for {fit} workers of {self.cpus:g} CPUs and "
                f"{self.gpus:g} GPUs; {max(1, self.size)} are asked for"
            )
        self.alive: list[Any] = []

    def start(self) -> Any:
        """A worker, which loads the model before it answers."""
        actor = self.ray.remote(Worker).options(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)
        self.alive.append(actor.remote(self.task))
        return self.alive[-1]

    def plan(self) -> tuple[Any, Planned]:
        """A worker, and the plan it made or found."""
        for _ in range(_TRIES):
            worker = self.start()
            with suppress(self.ray.exceptions.RayActorError):
                return worker, self.get(worker.plan.remote())
            self.alive.remove(worker)
        raise InputError(
            f"{_TRIES} workers died one after the other while they loaded the model or ran its first batch"
        )

    def get(self, answer: Any) -> Any:
        """What a worker answered; its errors are raised as they were there, its death as Ray's RayActorError."""
        try:
            return self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def dismiss(self) -> None:
        """End all workers."""
        for worker in self.alive:
            self.ray.kill(worker)


class Driver:
    """Hands out the missing shards of one extraction."""

    def __init__(self, crew: _Crew, path: Path) -> None:
        self.crew, self.path = crew, path
        self.deaths: Counter[int | None] = Counter()

    def run(self, announce: Callable[[str], None] | None, progress: bool | None) -> None:
        """From plan to manifest."""
        first, planned = self.crew.plan()
        found = ledger.Progress.of(self.path)
        plan, begin = found.plans[planned.part], found.first_shard(planned.part)
        shards = range(begin, begin + len(plan.shard_rows))
        finished = found.finished(shards)
        missing = [shard - begin for shard in shards if shard not in finished]
        if announce is not None:
            announce(f"{planned.text}\n{self._in_words(planned, len(missing), len(finished))}")
        sealed = found.manifest is not None and planned.part < len(found.manifest["parts"])
        if missing or not sealed:
            ledger.rewrite(self.path, finished)
            with bar(len(shards), "extract", unit="shard", done=len(finished), show=progress) as meter:
                for shard, done in self._computed(first, missing):
                    os.replace(done.file, self.path / done.entry["name"])
                    sync(self.path)
                    ledger.record(self.path, begin + shard, done.entry)
                    finished[begin + shard] = done.entry
                    if done.cut is not None and (cut := joined(plan, [([shard], done.cut)])) is not plan:
                        plan = cut
                        plan.save(self.path / part_file(planned.part))
                    meter.update()
            seal(self.path, plan, planned.part, found.manifest, finished, planned.facts)
        ledger.close(self.path)

    def _computed(self, first: Any, missing: Sequence[int]) -> Iterator[tuple[int, Done]]:
        """Each missing shard, as it is done."""
        ray, waiting, idle = self.crew.ray, deque(missing), [first]
        answers: dict[Any, tuple[Any, int | None]] = {}

        def hire() -> None:
            worker = self.crew.start()
            answers[worker.hello.remote()] = worker, None

        for _ in range(min(self.crew.size, len(missing)) - 1):
            hire()
        left = len(missing)
        while left:
            while waiting and idle:
                worker, shard = idle.pop(), waiting.popleft()
                answers[worker.compute.remote(shard)] = worker, shard
            (answer,), _ = ray.wait(list(answers), num_returns=1)
            worker, shard = answers.pop(answer)
            try:
                found = self.crew.get(answer)
            except ray.exceptions.RayActorError as error:
                self._died(worker, shard, error)
                waiting.extendleft([] if shard is None else [shard])
                hire()
                continue
            idle.append(worker)
            if shard is not None:
                left -= 1
                yield shard, found

    def _died(self, worker: Any, shard: int | None, error: Exception) -> None:
        """Count a death; too many at one shard, or while loading, end the run."""
        self.crew.alive.remove(worker)
        self.deaths[shard] += 1
        if self.deaths[shard] >= _TRIES:
            what = "loaded the model" if shard is None else f"computed shard {shard}"
            raise InputError(
                f"{_TRIES} workers died while they {what}; is there memory enough? What is finished is kept: call "
                "again with fewer workers, or start another store with a smaller token_budget. Ray says: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def _in_words(self, planned: Planned, missing: int, finished: int) -> str:
        size, crew = max(1, min(self.crew.size, missing)), self.crew
        each, memory = -(-missing // size), planned.memory / 2**30
        took = "nothing left to compute" if planned.seconds is None else f"about {planned.seconds / size:,.0f} s"
        return (
            f"workers     {size} of {crew.cpus:g} CPUs and {crew.gpus:g} GPUs; the first is on {planned.place}\n"
            f"shards      {missing} to compute, up to {each} a worker; {finished} are there already\n"
            f"memory      about {memory:,.2f} GiB a worker, {memory * size:,.2f} GiB in all\n"
            f"time        {took} with all workers"
        )

"""Many SAEs from one read of the rows: `sweep`, resumable, each the same bytes as if trained alone.

    path/NAME/      each member, as `saes.train.fit` writes it          path/sweep.json   see `saes.sweep_summary`

Members with the same seed and batch size want the same batches: one stream feeds all of them, and also gives the sample
they start from, so that every batch is read once (a model behind an `interp.stream.ActivationStream` runs once).
Members of another seed or batch size have a stream of their own, after the first has ended.

After a kill the stream starts at the batch that the slowest member wants; the others pass over what they have seen.
Members added later are trained, finished ones are not trained again. A member whose training diverges is reported and
dropped. All members of a stream are in memory at once, 12 bytes per parameter (weights, Adam's two moments), and what a
step needs besides, gradients included, of one member at a time (`saes.memory`).
"""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.errors import InputError
from interp.heap import trimmed
from interp.loop import NotFinite, claim
from interp.model import HookedModel
from interp.progress import bar
from interp.sealing import only_writer
from interp.store import ActivationBatch
from interp.to_device import to_device
from interp.tokenfile import TokenFile
from interp.trackers import open_tracker
from saes.fitting import Fitting, Rows, TrainedSites, endless, finished_before, is_finished, settings
from saes.memory import memory_of
from saes.recipe import TrainConfig
from saes.row_quality import Stored
from saes.sweep_config import Grid as Grid
from saes.sweep_config import Members, configs_of, named
from saes.sweep_config import load_grids as load_grids
from saes.sweep_measure import Measure
from saes.sweep_summary import Summary
from saes.sweep_summary import pareto as pareto
from saes.train import DIVERGED, damage
from saes.widths import Shape

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One SAE of a sweep: its name, recipe and folder."""

    name: str
    config: TrainConfig
    path: Path


@trimmed()
def sweep(
    rows: Rows,
    grid: Members,
    path: str | Path,
    *,
    site: Any | Sequence[Any],
    site_out: Any | None = None,
    evaluate_on: Stored | None = None,
    model: HookedModel | None = None,
    tokens: TokenFile | None = None,
    max_ce_tokens: int = 8_000,
    device: str | torch.device = "cpu",
    track: str | None = None,
    announce: Callable[[str], None] | None = None,
    show: bool | None = None,
) -> Summary:
    """Train every member of `grid` on the same rows, evaluate them and write `path/sweep.json` and `path/sweep.html`.

    `grid` is a `Grid`, a list of recipes, or recipes by name. Members are evaluated on the held-out rows `evaluate_on`,
    and with `model` and `tokens` (held-out text) on next-token loss too; without them the summary has only what
    training logged last. `track` is a service for metrics, as for `interp.trackers.open_tracker`; `announce` gets lines
    of text. The same call goes on after an interruption.
    """
    path, sites = Path(path), TrainedSites.parse(site, site_out)
    if len(rows) == 0:
        raise InputError("the store holds no activations; extract some first")
    if (model is None) != (tokens is None) or (model is not None and evaluate_on is None):
        raise InputError("next-token loss needs all three of model, tokens and evaluate_on")
    measure = (
        None if evaluate_on is None else Measure(evaluate_on, sites, model, tokens, max_ce_tokens, device, rows=rows)
    )
    names = named(grid)
    path.mkdir(parents=True, exist_ok=True)
    with only_writer(path):
        with contextlib.ExitStack() as open_streams:
            keys = dict.fromkeys(stream_key(config, len(rows)) for config in configs_of(grid))
            streams = {key: open_streams.enter_context(Shared(rows, sites, *key)) for key in keys}
            shape = next(iter(streams.values())).shape()
            if measure is not None:
                measure.check_widths(shape)
            members = [Member(name, config, path / name) for name, config in names.items()]
            summary = _begun(Summary.open(path, rows, sites), members, shape)
            for key, stream in streams.items():
                own = [member for member in members if stream_key(member.config, len(rows)) == key]
                waiting = [m for m in own if not is_finished(m.path) and not summary.has_diverged(m.name)]
                if waiting and announce is not None:
                    announce(estimate([m.config for m in waiting], shape, stream.size))
                if waiting:
                    _train(waiting, stream, summary, device=device, track=track, show=show)
        summary.complete(measure, show=show)
    return summary


def _begun(summary: Summary, members: Sequence[Member], shape: Shape) -> Summary:
    """The summary with all members in it, and their folders claimed; what cannot be trained is refused first."""
    shapes = [shape.of(member.config) for member in members]
    for member, sae in zip(members, shapes, strict=True):
        wanted = settings(summary.rows, member.config, summary.sites)
        if not finished_before(member.path, wanted):
            claim(member.path / "training", wanted)
        summary.add(member.name, member.config, sae)
    summary.write()
    return summary


def estimate(configs: Sequence[TrainConfig], shape: Shape, batch: int) -> str:
    """In words, the memory that SAEs trained together need."""
    needs = [memory_of(dataclasses.replace(config, batch_size=batch), shape.of(config)) for config in configs]
    held, step = sum(need.held for need in needs), max(need.peak - need.held for need in needs)  # one steps at a time
    what = "1 SAE" if len(configs) == 1 else f"{len(configs)} SAEs from one stream"
    return (
        f"{what}: {held / 2**30:.2f} GiB for weights and Adam's moments (12 bytes per parameter), about "
        f"{step / 2**30:.2f} GiB for a step on {batch:,} rows"
    )


class Shared:
    """The batches of one order, read once however many runs begin with them; for `Fitting`, rows like any other.

    `batches(first=0)` gives the first batches to everyone who asks and remembers them; `stream` takes them over and
    reads on from there. Closed on leaving it as a context.
    """

    def __init__(self, rows: Rows, sites: TrainedSites, seed: int, size: int) -> None:
        self.rows, self.sites, self.seed, self.size = rows, sites, seed, size
        self.manifest = rows.manifest
        self._head: list[ActivationBatch] = []
        self._source = endless(rows, sites.all, size, seed=seed, first=0)

    def __len__(self) -> int:
        return len(self.rows)

    def __enter__(self) -> "Shared":
        return self

    def __exit__(self, *_: object) -> None:
        self._head.clear()
        self._source.close()

    def batches(
        self, sites: Sequence[Any], size: int, *, seed: int, first: int = 0, epoch: int = 0
    ) -> Iterator[ActivationBatch]:
        """The first batches of the run's own order, as a start needs them."""
        assert (list(sites), size, seed, first, epoch) == (self.sites.all, self.size, self.seed, 0, 0)
        for number in itertools.count():
            if number == len(self._head):
                self._head.append(next(self._source))
            yield self._head[number]

    def shape(self) -> Shape:
        """Widths of the sites: from the manifest if it says them, else from the first batch."""
        if (stated := Shape.stated(self.manifest, *self.sites)) is not None:
            return stated
        matrices = self.sites.matrices(next(self.batches(self.sites.all, self.size, seed=self.seed)))
        widths = [x.shape[1] for x in matrices]
        written = widths.pop() if self.sites.written is not None else None
        return Shape(tuple(widths), written)

    def stream(self, first: int) -> Generator[ActivationBatch]:
        """Endless batches from number `first` on; to be taken once."""
        head, self._head = self._head[first:], []
        if not head:
            self._source.close()
            self._source = endless(self.rows, self.sites.all, self.size, seed=self.seed, first=first)
        while head:
            yield head.pop(0)
        yield from self._source


def stream_key(config: TrainConfig, rows: int) -> tuple[int, int]:
    """What decides a recipe's batches: seed and batch size."""
    return config.seed, min(config.batch_size, rows)


def _train(
    members: Sequence[Member],
    stream: Shared,
    summary: Summary,
    *,
    device: str | torch.device,
    track: str | None,
    show: bool | None,
) -> None:
    """Train members that share their batches."""
    with contextlib.ExitStack() as trackers:
        live: dict[str, Fitting] = {}
        for member in members:
            facts = settings(stream, member.config, stream.sites)
            tracker = (
                None if track is None else trackers.enter_context(open_tracker(track, name=member.name, config=facts))
            )
            live[member.name] = Fitting(
                stream, member.config, member.path, stream.sites, device=device, tracker=tracker
            )
        number = min(fitting.course.step for fitting in live.values())
        total = sum(fitting.state.steps for fitting in live.values())
        done = sum(fitting.course.step for fitting in live.values())
        label = f"train {len(live)} SAEs" if len(live) > 1 else "train SAE"
        with (
            contextlib.closing(stream.stream(number)) as source,
            bar(total * stream.size, label, done=done * stream.size, show=show) as progress,
        ):
            _finish(live)
            while live:
                batch = next(source)
                # Rows that are not finite would end every member. A sum tells, at a fraction of the cost of looking.
                sums = [x.sum(dtype=torch.float32).isfinite() for x in batch.acts.values()]
                if not all(sums) and (found := damage(batch, number, stream.sites)):
                    raise InputError(found)
                acts = {site: to_device(x, torch.device(device)).float() for site, x in batch.acts.items()}
                progress.update(stream.size * _advance(live, batch._replace(acts=acts), number, summary))
                _finish(live)
                number += 1


def _advance(live: dict[str, Fitting], batch: ActivationBatch, number: int, summary: Summary) -> int:
    """Give batch `number` to the members that want it; how many did. Those that diverge are dropped."""
    wanting = [name for name, fitting in live.items() if fitting.course.step == number]
    for name in wanting:
        try:
            live[name].advance(batch)
        except NotFinite as error:
            reason = f"{error}, {DIVERGED}"
            _log.warning("%s was dropped: %s", name, reason)
            summary.diverged(name, reason)
            del live[name]
    return len(wanting)


def _finish(live: dict[str, Fitting]) -> None:
    """Save the members whose steps are done and let go of their memory."""
    for name in [name for name, fitting in live.items() if fitting.done]:
        live.pop(name).finish()

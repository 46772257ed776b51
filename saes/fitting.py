"""One SAE being trained from shuffled batches: its start, its run (`interp.loop.Course`), its end.

    fitting = Fitting(rows, config, path, places)        path/training is claimed; resumed if it was begun
    while not fitting.done: fitting.advance(batch)       batch number `fitting.course.step` of `fitting.batches`
    sae = fitting.finish()

`saes.train.fit` drives one; a sweep drives several from one stream of batches. The result is a function of (rows,
config, places): scale, massive threshold and first weights come from the first batches of the run's own order.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.loop import Course, Pace, claim
from interp.sealing import digest
from interp.sites import Site
from interp.store import ActivationBatch
from interp.to_device import to_device
from interp.trackers import Tracker
from saes.beginning import first_state
from saes.finish import finished
from saes.frame import Frame, measure
from saes.optimise import TrainState, refresh, step
from saes.recipe import BATCHED, TrainConfig
from saes.sae import CFG, SAE
from saes.team import ALONE, Team
from saes.team_files import TeamFiles
from saes.widths import Shape


@runtime_checkable
class Rows(Protocol):
    """What training needs of an `interp.store.ActivationStore`, or of anything else that yields activations."""

    manifest: dict[str, Any]

    def __len__(self) -> int: ...

    def batches(
        self, sites: Sequence[Any], size: int, *, seed: int, first: int = 0, epoch: int = 0
    ) -> Iterator[ActivationBatch]:
        """One epoch of shuffled batches, from batch `first` on."""
        ...


class TrainedSites(NamedTuple):
    """The sites read, side by side, and the one written if it is another. Usually `interp.sites.Site`s."""

    read: tuple[Any, ...]
    written: Any | None = None

    @classmethod
    def parse(cls, site: Any, site_out: Any | None = None) -> "TrainedSites":
        """From one site, or a list of them, in any spelling."""
        listed = [site] if isinstance(site, str) or not isinstance(site, Sequence) else list(site)
        if not listed or len(set(map(str, listed))) < len(listed):
            raise InputError(f"a crosscoder reads two or more different sites, got {[str(s) for s in listed]}")
        if site_out is not None and len(listed) > 1:
            raise InputError("a transcoder reads one site; several sites and site_out do not go together")
        read = tuple(Site.parse(s) if isinstance(s, str) else s for s in listed)
        return cls(read, Site.parse(site_out) if isinstance(site_out, str) else site_out)

    @property
    def all(self) -> list[Any]:
        """Every site, those read first."""
        return [*self.read, *([] if self.written is None else [self.written])]

    def matrices(self, batch: ActivationBatch) -> list[Float[Tensor, "n _"]]:
        """One matrix per site; head axes are flattened."""
        return [batch.acts[site].flatten(1).float() for site in self.all]

    def x_y(self, batch: ActivationBatch) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n out"] | None]:
        """What a step takes."""
        matrices = self.matrices(batch)
        y = matrices.pop() if self.written is not None else None
        return (matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim=1)), y


class Fitting:
    """A run on one SAE; see the module's docstring."""

    def __init__(
        self,
        rows: Rows,
        config: TrainConfig,
        path: Path,
        sites: TrainedSites,
        *,
        device: str | torch.device = "cpu",
        tracker: Tracker | None = None,
        team: Team = ALONE,
    ) -> None:
        if len(rows) == 0:
            raise InputError("the store holds no activations; extract some first")
        self.rows, self.config, self.path, self.sites, self.team = rows, config, path, sites, team
        self.state = self._begin(device)
        pace = Pace(steps=self.state.steps, log_every=config.log_every, checkpoint_every=config.checkpoint_every)
        run = _Run(self.state, sites)
        wanted, files = settings(rows, config, sites), None if team is ALONE else TeamFiles(self.state)
        self.course = Course(run, pace, path / "training", settings=wanted, tracker=tracker, files=files)

    @property
    def done(self) -> bool:
        """Whether every step is done."""
        return self.course.done

    @property
    def batch_size(self) -> int:
        """Activations per step."""
        return min(self.config.batch_size, len(self.rows))

    def advance(self, batch: ActivationBatch) -> None:
        """One step, on the batch numbered `course.step`."""
        self.course.advance(batch)

    def batches(self, first: int) -> Generator[ActivationBatch]:
        """Endless batches from step `first` on: epoch after epoch, each in its own order."""
        return endless(self.rows, self.sites.all, self.batch_size, seed=self.config.seed, first=first)

    def finish(self, metadata: Mapping[str, Any] | None = None) -> SAE:
        """Bring the SAE to the units of the activations and save it; its checkpoints have served.

        In a team every process gets the whole SAE, and the first saves it."""
        # through JSON, so that the SAE returned is the one that a later call loads
        sae = finished(self.state, json.loads(json.dumps(self._provenance() | dict(metadata or {}))))
        if self.team.rank == 0:
            sae.save(self.path)
            shutil.rmtree(self.path / "training" / "checkpoints", ignore_errors=True)
        self.team.wait()
        return sae

    def _begin(self, device: str | torch.device) -> TrainState:
        """The state before the first step, from the first rows of the run's own order."""
        config, needed = self.config, min(self.config.sample, len(self.rows))
        taken: list[list[Tensor]] = []
        with contextlib.closing(self.batches(0)) as batches:
            while sum(len(matrices[0]) for matrices in taken) < needed:
                taken.append(self.sites.matrices(next(batches)))
        sample = [torch.cat(parts)[:needed] for parts in zip(*taken, strict=True)]
        scalings = [measure(x, massive=config.massive, norm=config.input_norm) for x in sample]
        widths = tuple(x.shape[1] for x in sample)
        written, y = (scalings.pop(), sample.pop()) if self.sites.written is not None else (None, None)
        read = widths[: len(sample)]
        frame = Frame(tuple(scalings), read, written)
        shape = Shape(read, None if y is None else y.shape[1]).of(config)
        x = torch.cat(sample, dim=1)
        whole = {"steps": config.steps(len(self.rows)), "batch_size": self.batch_size, "team": self.team}
        return first_state(config, shape, frame, x, y, **whole, device=device)

    def _provenance(self) -> dict[str, Any]:
        """Where the SAE comes from, under SAELens's names where it has one."""
        spec = (self.rows.manifest.get("parts") or [{}])[0].get("spec", {})
        sites, state, read = self.sites, self.state, self.state.frame.read
        scalings = [*read, *([state.frame.written] if state.frame.written else [])]
        limits = [scaling.threshold for scaling in scalings]
        names = list(map(str, sites.read))
        return {
            "model_name": spec.get("model"),
            "hook_name": names[0],
            **({"hook_names": names} if len(names) > 1 else {}),
            **({"hook_name_out": str(sites.written)} if sites.written is not None else {}),
            "hook_head_index": getattr(sites.read[0], "head", None),
            "context_size": spec.get("max_length"),
            "prepend_bos": spec.get("bos") is not None,
            "training_architecture": self.config.architecture,
            "massive_norm_threshold": limits[0] if len(limits) == 1 else limits,
            "midlens_store": {name: spec.get(name) for name in ("revision", "corpus", "tokens", "dtype", "excluded")},
            "midlens_training": {
                "recipe": dataclasses.asdict(state.config),
                "rows": len(self.rows),
                "steps": state.steps,
                "input_scale": scalings[0].scale if len(scalings) == 1 else [s.scale for s in scalings],
                "massive_rows_seen": int(state.massive),
                "rows_seen": int(state.seen),
                **({"threshold": state.memory["threshold"].item()} if self.config.architecture in BATCHED else {}),
            },
        }


def settings(rows: Rows, config: TrainConfig, sites: TrainedSites) -> dict[str, Any]:
    """Everything that decides the result of a run, defaults put in: these may be others in another version.

    They depend on widths, so they are missing where the manifest of the rows does not state these."""
    shape = Shape.stated(rows.manifest, *sites)
    recipe = config if shape is None else config.filled(shape.of(config))
    written = {} if sites.written is None else {"site_out": str(sites.written)}
    read = [str(site) for site in sites.read]
    site = read[0] if len(read) == 1 else read
    return {**dataclasses.asdict(recipe), "site": site, **written, "store": digest(rows.manifest)}


def is_finished(path: Path) -> bool:
    """Whether the folder holds a whole SAE: `cfg.json` is written last."""
    return (path / CFG).exists()


def finished_before(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a run under these settings is finished in `path`; a folder of anything else is refused, untouched."""
    begun = (path / "training" / "run.json").exists()
    if is_finished(path) and not begun:
        raise InputError(f"{path} holds an SAE that was not trained there; give this run another folder")
    if not (begun and is_finished(path)):
        return False
    claim(path / "training", wanted)
    shutil.rmtree(path / "training" / "checkpoints", ignore_errors=True)  # left by a kill just after saving
    return True


def endless(rows: Rows, sites: Sequence[Any], size: int, *, seed: int, first: int) -> Generator[ActivationBatch]:
    """Batches from number `first` on, epoch after epoch, each in its own order."""
    epoch, place = divmod(first, math.ceil(len(rows) / size))
    for number in itertools.count(epoch):
        yield from rows.batches(sites, size, seed=seed, first=place if number == epoch else 0, epoch=number)


class _Run:
    """A `TrainState` as `interp.loop` wants it: batches in, figures out."""

    def __init__(self, state: TrainState, sites: TrainedSites) -> None:
        self.state, self.sites = state, sites
        self.device = state.sae.b_dec.device
        self.sums = torch.zeros(6, dtype=torch.float64, device=self.device)

    def step(self, batch: ActivationBatch) -> None:
        x, y = self.sites.x_y(batch)
        log = step(self.state, to_device(x, self.device), None if y is None else to_device(y, self.device))
        self.sums += torch.stack([torch.ones_like(log.loss), *log]).double()

    def metrics(self) -> dict[str, float]:
        steps, loss, aux, penalty, l0, massive = self.sums.tolist()
        self.sums.zero_()
        state = self.state
        refresh(state)
        last = state.step - 1
        return {
            "tokens": int(state.seen),
            "loss": loss / steps,
            "explained_variance": 1 - loss / steps,
            "aux": aux / steps,
            "penalty": penalty / steps,
            "l0": l0 / steps,
            "dead_fraction": state.n_dead / state.whole.d_sae,
            "massive": massive,
            "lr": state.rate(last),
            **self._of_architecture(last),
        }

    def _of_architecture(self, last: int) -> dict[str, float]:
        state, config = self.state, self.state.config
        if config.architecture in BATCHED:
            return {"threshold": state.memory["threshold"].item()}
        return {} if config.sparsity is None else {"sparsity": config.pressure(last, state.steps)}

    def tensors(self) -> dict[str, Tensor]:
        return self.state.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.state.restore(tensors)

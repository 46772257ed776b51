"""From a store of activations to a trained SAE: `fit`, resumable after a kill, bit for bit.

    path/cfg.json, path/sae_weights.safetensors      the SAE, once finished (SAELens v6)
    path/training/                                   settings, metrics and checkpoints, see `interp.loop`

The run sees the store's rows in the order of `store.batches` (seed, epoch), epoch after epoch. Scale, threshold of
massive norms and first weights come from the first rows of that order: the result is a function of (store, config).
"""

import dataclasses
import itertools
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.loop import NotFinite, Pace, claim, train
from interp.sealing import digest
from interp.sites import Site
from interp.store import ActivationBatch
from saes.init import measure, start, unscaled
from saes.optimise import StepLog as StepLog
from saes.optimise import TrainState as TrainState
from saes.optimise import refresh
from saes.optimise import step as step
from saes.recipe import TrainConfig as TrainConfig
from saes.sae import CFG, SAE, SAEConfig


@runtime_checkable
@runtime_checkable
class Rows(Protocol):
    """What training needs of an `interp.store.ActivationStore`."""

    manifest: dict[str, Any]

    def __len__(self) -> int: ...

    def batches(
        self, sites: Sequence[str | Site], size: int, *, seed: int, first: int = 0, epoch: int = 0
    ) -> Iterator[ActivationBatch]:
        """One epoch of shuffled batches, from batch `first` on."""
        ...


def fit(
    store: Rows,
    config: TrainConfig,
    path: str | Path,
    *,
    site: str | Site,
    device: str | torch.device = "cpu",
    metadata: Mapping[str, Any] | None = None,
) -> SAE:
    """Train an SAE on one site of a store and save it in `path`; called again, continue or return what is finished.

    `metadata` is added to the provenance in `cfg.json`.
    """
    site, path = Site.parse(site), Path(path)
    if len(store) == 0:
        raise InputError("the store holds no activations; extract some first")
    settings = {**dataclasses.asdict(config), "site": str(site), "store": digest(store.manifest)}
    claim(path / "training", settings)
    if (path / CFG).exists():
        return SAE.load(path, device=device)
    run = _Run(_begin(store, config, site, device), site)
    try:
        train(
            run,
            lambda first: _batches(store, config, site, first),
            Pace(steps=run.state.steps, log_every=config.log_every, checkpoint_every=config.checkpoint_every),
            path / "training",
            settings=settings,
            label="train SAE",
            unit="tok",
            units_per_step=min(config.batch_size, len(store)),
        )
    except NotFinite as error:
        raise InputError(_diagnosis(error, _batches(store, config, site, error.after), site)) from None
    return _finish(run.state, path, _provenance(store, config, site, run.state) | dict(metadata or {}))


def _begin(store: Rows, config: TrainConfig, site: Site, device: str | torch.device) -> TrainState:
    """The state before the first step, from the first rows of the run's own order."""
    rows, needed = [], min(config.sample, len(store))
    for batch in _batches(store, config, site, 0):
        rows.append(_matrix(batch, site))
        if sum(map(len, rows)) >= needed:
            break
    sample = torch.cat(rows)[:needed]
    scaling = measure(sample, massive=config.massive)
    d = sample.shape[1]
    shape = SAEConfig(d_in=d, d_sae=config.width(d), k=config.k)
    sae = start(shape, sample, scaling, b_dec=config.b_dec, seed=config.seed).to(device)
    return TrainState(sae, config, scaling, config.steps(len(store)))


def _batches(store: Rows, config: TrainConfig, site: Site, first: int) -> Iterator[ActivationBatch]:
    """Endless batches from step `first` on: epoch after epoch, each in its own order."""
    size = min(config.batch_size, len(store))
    epoch, place = divmod(first, math.ceil(len(store) / size))
    for number in itertools.count(epoch):
        yield from store.batches([site], size, seed=config.seed, first=place if number == epoch else 0, epoch=number)


def _matrix(batch: ActivationBatch, site: Site) -> Float[Tensor, "n d"]:
    """The rows of one site; head axes are flattened."""
    return batch.acts[site].flatten(1).float()


class _Run:
    """A `TrainState` as `interp.loop` wants it: batches in, figures out."""

    def __init__(self, state: TrainState, site: Site) -> None:
        self.state, self.site = state, site
        self.device = state.sae.b_dec.device
        self.sums = torch.zeros(5, dtype=torch.float64, device=self.device)

    def step(self, batch: ActivationBatch) -> None:
        log = step(self.state, _matrix(batch, self.site).to(self.device, non_blocking=True))
        self.sums += torch.stack([torch.ones_like(log.loss), *log]).double()

    def metrics(self) -> dict[str, float]:
        steps, loss, aux, l0, massive = self.sums.tolist()
        self.sums.zero_()
        refresh(self.state)
        loss /= steps
        means = {
            "tokens": int(self.state.seen),
            "loss": loss,
            "explained_variance": 1 - loss,
            "aux": aux / steps,
            "l0": l0 / steps,
        }
        rate = self.state.rate(self.state.step - 1)
        dead = len(self.state.dead) / self.state.sae.config.d_sae
        return means | {"dead_fraction": dead, "massive": massive, "lr": rate}

    def tensors(self) -> dict[str, Tensor]:
        return self.state.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.state.restore(tensors)


def _diagnosis(error: NotFinite, batches: Iterator[ActivationBatch], site: Site) -> str:
    """What made a metric non-finite: an activation, or the training itself."""
    kept = "Checkpoints written before are whole."
    for number in range(error.after, error.until):
        batch = next(batches)
        bad = (~_matrix(batch, site).isfinite().all(1)).nonzero()[:, 0]
        if len(bad):
            row = int(bad[0])
            return (
                f"{error}: {len(bad)} activations of step {number + 1} hold NaN or infinite values, the first at "
                f"document {int(batch.doc[row])}, position {int(batch.position[row])}. {kept} If `midlens store "
                "verify` finds the store damaged, repeat its extraction and run this again; if it is whole, the model "
                "produced them: extract in a wider dtype and train in another folder"
            )
    return f"{error}, though all activations are finite: training diverged. {kept} Take a smaller lr and another folder"


def _finish(state: TrainState, path: Path, metadata: Mapping[str, Any]) -> SAE:
    """Bring the SAE to the units of the activations and save it; its checkpoints have served."""
    sae = unscaled(state.sae, state.scaling.scale, dataclasses.replace(state.sae.config, metadata=metadata))
    sae.save(path)
    shutil.rmtree(path / "training" / "checkpoints")
    return sae


def _provenance(store: Rows, config: TrainConfig, site: Site, state: TrainState) -> dict[str, Any]:
    """Where the SAE comes from, under SAELens's names where it has one."""
    parts = store.manifest.get("parts") or [{}]
    spec = parts[0].get("spec", {})
    return {
        "model_name": spec.get("model"),
        "hook_name": str(site),
        "hook_head_index": site.head,
        "context_size": spec.get("max_length"),
        "prepend_bos": spec.get("bos") is not None,
        "massive_norm_threshold": state.scaling.threshold,
        "midlens_store": {name: spec.get(name) for name in ("revision", "corpus", "tokens", "dtype", "excluded")},
        "midlens_training": {
            "recipe": dataclasses.asdict(config),
            "rows": len(store),
            "steps": state.steps,
            "input_scale": state.scaling.scale,
            "massive_rows_seen": int(state.massive),
            "rows_seen": int(state.seen),
        },
    }

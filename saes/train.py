"""From a store of activations to a trained SAE: `fit`, resumable after a kill, bit for bit.

    path/cfg.json, path/sae_weights.safetensors      the SAE, once finished (SAELens v6)
    path/training/                                   settings, metrics and checkpoints, see `interp.loop`

The run sees the store's rows in the order of `store.batches` (seed, epoch), epoch after epoch: the result is a function
of (store, config, sites). Instead of a store, an `interp.stream.ActivationStream` trains without one.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from interp.errors import InputError
from interp.heap import trimmed
from interp.loop import NotFinite
from interp.progress import bar
from interp.sealing import only_writer
from interp.store import ActivationBatch
from interp.trackers import Tracker
from saes.fitting import Fitting, Rows, TrainedSites, finished_before, settings
from saes.optimise import StepLog as StepLog
from saes.optimise import TrainState as TrainState
from saes.optimise import step as step
from saes.recipe import TrainConfig as TrainConfig
from saes.sae import SAE, check_json
from saes.team import Parallel
from saes.team import team as team_of

_KEPT = "Checkpoints written before are whole."
DIVERGED = f"though all activations are finite: training diverged. {_KEPT} Take a smaller lr and another folder"


@trimmed()
def fit(
    store: Rows,
    config: TrainConfig,
    path: str | Path,
    *,
    site: Any | Sequence[Any],
    site_out: Any | None = None,
    device: str | torch.device = "cpu",
    metadata: Mapping[str, Any] | None = None,
    tracker: Tracker | None = None,
    parallel: Parallel | None = None,
) -> SAE:
    """Train an SAE on one site of a store and save it in `path`; called again, continue or return what is finished.

    `store` is an `interp.store.ActivationStore`; activations in memory are a `saes.tensor_rows.TensorRows`.
    With `site_out`, a transcoder from `site` to it; with a list of sites, a crosscoder over them. `metadata` is added
    to the provenance in `cfg.json`; `tracker` gets every line of metrics (`interp.trackers`). Under `torchrun`,
    `parallel` says what the processes divide, see `saes.team`: every one makes this call, and gets the whole SAE.
    """
    if not isinstance(store, Rows):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"fit reads an interp.store.ActivationStore, got {type(store).__name__}. A tensor of activations becomes "
            "rows by saes.tensor_rows.TensorRows({site: x}, model=...)"
        )
    path, sites, team = Path(path), TrainedSites.parse(site, site_out), team_of(parallel)
    if len(store) == 0:
        raise InputError("the store holds no activations; extract some first")
    check_json(metadata or {}, "metadata")
    path.mkdir(parents=True, exist_ok=True)
    with only_writer(path) if team.rank == 0 else contextlib.nullcontext():
        if finished_before(path, settings(store, config, sites)):
            return SAE.load(path, device=device)
        team.wait()  # until all have seen that it isn't finished
        return _fit(Fitting(store, config, path, sites, device=device, tracker=tracker, team=team), metadata)


def _fit(fitting: Fitting, metadata: Mapping[str, Any] | None) -> SAE:
    steps, size, first = fitting.state.steps, fitting.batch_size, fitting.course.step
    try:
        with (
            contextlib.closing(fitting.batches(first)) as source,
            bar(steps * size, "train SAE", unit="tok", done=first * size, show=_shown(fitting)) as progress,
        ):
            while not fitting.done:
                fitting.advance(next(source))
                progress.update(size)
    except NotFinite as error:
        raise InputError(diagnosis(error, fitting)) from None
    return fitting.finish(metadata)


def _shown(fitting: Fitting) -> bool | None:
    return None if fitting.team.rank == 0 else False


def diagnosis(error: NotFinite, fitting: Fitting) -> str:
    """What made a metric non-finite: an activation, or the training itself."""
    batches = fitting.batches(error.after)
    for number in range(error.after, error.until):
        if found := damage(next(batches), number, fitting.sites):
            return f"{error}: {found}"
    return f"{error}, {DIVERGED}"


def damage(batch: ActivationBatch, number: int, sites: TrainedSites) -> str | None:
    """Which activations of batch `number` are not finite, and what to do about them; None if all are."""
    finite = [x.isfinite().all(1) for x in sites.matrices(batch)]
    bad = (~torch.stack(finite).all(0)).nonzero()[:, 0]
    if not len(bad):
        return None
    row = int(bad[0])
    return (
        f"{len(bad)} activations of step {number + 1} hold NaN or infinite values, the first at "
        f"document {int(batch.doc[row])}, position {int(batch.position[row])}. {_KEPT} If `midlens store "
        "verify` finds the store damaged, repeat its extraction and run this again; if it is whole, the model "
        "produced them: extract in a wider dtype and train in another folder"
    )

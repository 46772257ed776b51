"""SAE training: the step against plain autograd, the start, the fold, resume after SIGKILL, bad input."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from interp.errors import InputError
from interp.extract import extract
from interp.loop import checkpoints
from interp.sealing import only_writer
from interp.tensorfile import read_tensors
from midlens.train import Train
from saes import fitting
from saes.finish import finished
from saes.frame import Frame, Scaling, measure
from saes.init import geometric_median, start
from saes.optimise import TrainState, refresh, step
from saes.recipe import TrainConfig
from saes.sae import CFG, SAE, SAEConfig
from saes.train import fit
from tests.killing import begin, kill_where_it_waits
from tests.rows import SITE, MemoryRows, sparse_mixture
from tests.toy_store import SITES, ToyModel, token_file

SMALL = {"d_sae": 32, "k": 3, "batch_size": 64, "lr": 3e-3, "dead_after_tokens": 2000, "checkpoint_every": 20}


def state(d: int = 8, f: int = 24, scale: float = 2.0, dead: tuple[int, ...] = (), **over) -> TrainState:
    config = TrainConfig(**{"d_sae": f, "k": 4, "lr": 1e-2, "warmup": 0.0, **over})
    scaling = Scaling(scale=scale, threshold=50.0, variance=7.0, rows=10, massive=0)
    g = torch.Generator().manual_seed(1)
    rows = functional.normalize(torch.randn(f, d, generator=g), dim=1)
    weights = {
        "W_enc": rows.T,
        "W_dec": rows,
        "b_enc": 0.1 * torch.randn(f, generator=g),
        "b_dec": torch.randn(d, generator=g),
    }
    made = TrainState(SAE.of_weights(config.shape(d), **weights), config, Frame((scaling,), (d,)), steps=100)
    made.dead = torch.tensor(dead, dtype=torch.int64)
    return made


class Plain:
    """The same recipe in dense float64 autograd with PyTorch's plain Adam."""

    def __init__(self, of: TrainState) -> None:
        self.of, sae = of, of.sae
        self.p = {name: t.detach().double().requires_grad_() for name, t in sae.named_parameters()}
        options = {"lr": of.config.lr, "betas": of.config.betas, "eps": 6.25e-10, "foreach": False}
        self.adam = torch.optim.Adam(self.p.values(), **options)

    def loss(self, x: Tensor, dead: Tensor) -> Tensor:
        p, config, scaling = self.p, self.of.config, self.of.frame.read[0]
        x = x[x.norm(dim=1) <= scaling.threshold].double() * scaling.scale  # massive rows simply are not there
        part = 1 - config.mean_read
        pre = (x - part * p["b_dec"]) @ p["encoder"].T + p["b_enc"]
        code = (pre * (pre >= pre.topk(config.k).values[:, -1:])).relu()
        error = x - code @ p["W_dec"] - p["b_dec"]
        loss = error.square().sum(1).mean() / scaling.variance
        if len(dead):
            e = error.detach()
            guess = ((x - part * p["b_dec"].detach()) @ p["encoder"][dead].T + p["b_enc"][dead]).relu() @ p["W_dec"][
                dead
            ]
            loss = loss + config.aux_weight * len(dead) / config.k_aux * (e - guess).square().sum() / e.square().sum()
        return loss

    def step(self, x: Tensor, dead: Tensor) -> None:
        W = self.p["W_dec"]
        self.adam.zero_grad()
        self.loss(x, dead).backward()
        W.grad -= (W.grad * W.detach()).sum(1, keepdim=True) * W.detach()
        torch.nn.utils.clip_grad_norm_(self.p.values(), self.of.config.clip)
        self.adam.step()
        with torch.no_grad():
            W /= W.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("clip", [1e9, 0.05], ids=["free", "clipped"])
@pytest.mark.parametrize("dead", [(), (3, 7, 20)], ids=["alive", "aux"])
def test_steps_equal_dense_autograd(clip, dead):
    """Ten steps, with massive rows in each batch."""
    ours = state(dead=dead, clip=clip, k_aux=10, decay=0.0, decoder_norm="unit")
    plain = Plain(ours)
    g = torch.Generator().manual_seed(2)
    for _ in range(10):
        x = torch.randn(40, 8, generator=g)
        x[5] *= 1000
        log = step(ours, x)
        plain.step(x, torch.tensor(dead, dtype=torch.int64))
        assert log.massive == 1
    for name, parameter in ours.sae.named_parameters():
        torch.testing.assert_close(parameter.double(), plain.p[name], rtol=1e-3, atol=2e-5, msg=name)
    assert int(ours.seen) == 390 and int(ours.massive) == 10


def test_the_auxiliary_loss_moves_the_encoder_row_of_a_dead_feature():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    for dead, moved in (((9,), True), ((), False)):
        s = state(dead=dead, k_aux=4)
        with torch.no_grad():
            s.sae.b_enc[9] = -100.0  # never among the top k
            s.sae.b_enc[9] += 0 if not dead else 100.2  # ... and with a bias that lets the auxiliary loss see it
            s.sae.encoder[9] *= 1e-3
        before = s.sae.encoder[9].clone()
        step(s, x)
        assert (not torch.equal(before, s.sae.encoder[9])) == moved


def test_silence_is_counted_in_tokens_and_dead_features_are_listed():
    s = state(dead_after_tokens=120, mean_read=0.0)
    g = torch.Generator().manual_seed(3)
    expected = torch.zeros(24, dtype=torch.int64)
    for _ in range(4):
        x = torch.randn(40, 8, generator=g)
        x[7] *= 1000
        with torch.no_grad():
            s.sae.b_enc[:5] = -100.0
            fired = (s.sae.activate(x[x.norm(dim=1) <= 50] * 2.0).pruned()).dense().sum(0) > 0
        step(s, x)
        expected = torch.where(fired, 0, expected + 39)
    assert torch.equal(s.silent, expected)
    assert len(s.dead) == 0
    refresh(s)
    assert s.dead.tolist() == (expected >= 120).nonzero()[:, 0].tolist() != []


def test_the_decoder_keeps_unit_rows():
    s = state(decoder_norm="unit")
    for seed in range(5):
        step(s, torch.randn(40, 8, generator=torch.Generator().manual_seed(seed)))
    torch.testing.assert_close(s.sae.W_dec.norm(dim=1), torch.ones(24))


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that moves a value to the host or makes a shape depend on the data."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "lift_fresh")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.FORBIDDEN), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dead", [(), (3, 7, 20)])
def test_a_step_never_waits_for_the_device(dead):
    s = state(dead=dead, k_aux=2)
    x = torch.randn(40, 8)
    with NoWaiting(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(s.adam, "step", lambda: None)  # on CPUs it reads its own step counter, on GPUs it does not
        step(s, x)
        with pytest.raises(AssertionError, match="waits for the device"):
            refresh(s)


def test_nothing_holds_gradients_between_steps():
    """What the statement of a sweep's memory rests on: gradients are there for one member at a time."""
    s = state(dead=(3, 7, 20), k_aux=2)
    step(s, torch.randn(40, 8))
    assert s.parameters and all(parameter.grad is None for parameter in s.parameters.values())


def test_the_learning_rate_rises_stays_and_falls():
    config = TrainConfig(lr=1.0, warmup=0.1, decay=0.2)
    rates = [config.rate(step, 100, 64) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert set(rates[10:80]) == {1.0}
    np.testing.assert_allclose(rates[80:], np.arange(20, 0, -1) / 20)
    assert math.isclose(TrainConfig().rate(50, 100, 2**14), 1.6e-3)
    assert math.isclose(TrainConfig().rate(50, 100, 2**16), 8e-4)
    assert math.isclose(TrainConfig(architecture="jumprelu").rate(50, 100, 2**18), 1.2e-3)


def test_steps_count_epochs_or_tokens():
    assert TrainConfig(epochs=3, batch_size=64).steps(100) == 6  # two batches an epoch, the second smaller
    assert TrainConfig(tokens=1000, batch_size=64).steps(10**6) == 16
    assert TrainConfig(epochs=2, batch_size=64).steps(10) == 2
    assert TrainConfig(batch_size=64).silence(1000) == 4000 and TrainConfig().silence(10**9) == 10_000_000
    assert TrainConfig(dead_after_tokens=7).silence(1000) == 7
    assert TrainConfig(expansion=4).width(6) == 24 and TrainConfig(d_sae=7).width(6) == 7


def test_scale_threshold_and_variance():
    x = torch.randn(1000, 9, dtype=torch.float64) + 2
    x[::100] *= 1e4
    found = measure(x, massive=10.0)
    usual = np.delete(x.numpy(), np.arange(0, 1000, 100), axis=0)
    norms = np.linalg.norm(x.numpy(), axis=1)
    assert found.massive == 10 and found.rows == 1000
    assert math.isclose(found.threshold, 10 * np.sort(norms)[499], rel_tol=1e-12)
    assert math.isclose(found.scale * np.linalg.norm(usual, axis=1).mean(), 3.0, rel_tol=1e-12)
    assert math.isclose(found.variance, found.scale**2 * usual.var(axis=0).sum(), rel_tol=1e-12)


def test_rows_of_zeros_do_not_make_the_rest_massive():
    x = torch.randn(1000, 9)
    x[:600] = 0
    assert measure(x, massive=10.0).massive == 0


def test_geometric_median_against_a_general_optimiser():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:10] += 50  # outliers that drag the mean
    found = geometric_median(x)
    best = minimize(lambda p: np.linalg.norm(x.numpy() - p, axis=1).sum(), x.mean(0).numpy(), tol=1e-10)
    np.testing.assert_allclose(found, best.x, atol=1e-3)


def test_the_start_is_tied_unit_and_centred():
    x = torch.randn(200, 9)
    x[0] *= 1e5
    scaling = measure(x, massive=10.0)
    config, sample = SAEConfig(d_in=9, d_sae=40, k=3), Frame((scaling,), (9,)).scaled(x)
    sae = start(config, sample, b_dec="mean", seed=4)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(sae.encoder, sae.W_dec) and sae.encoder.data_ptr() != sae.W_dec.data_ptr()
    torch.testing.assert_close(sae.b_dec, x[1:].mean(0) * scaling.scale)
    assert torch.equal(start(config, sample, b_dec="mean", seed=4).W_dec, sae.W_dec)
    assert not torch.equal(start(config, sample, b_dec="mean", seed=5).W_dec, sae.W_dec)
    assert not start(config, sample, b_dec="zeros", seed=4).b_dec.any()


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("part", [0.25, 1.0])
def test_reading_a_part_of_the_mean_changes_neither_the_first_activations_nor_the_result_it_is_saved_as(
    part, architecture
):
    """Before a step, what the bias answers to the mean is what would have been subtracted; and the finished SAE, which
    subtracts nothing, gives what the training state gives on its scaled input."""
    torch.manual_seed(0)
    x = torch.randn(200, 9) + 5
    frame = Frame((measure(x, massive=10.0),), (9,))
    config = TrainConfig(architecture=architecture, d_sae=40, k=3, mean_read=part, decoder_norm="weighted")
    shape, sample = config.shape(9), frame.scaled(x)
    assert not shape.apply_b_dec_to_input
    reading = start(shape, sample, b_dec="mean", seed=4, mean_read=part)
    centred = start(SAEConfig(d_in=9, d_sae=40, k=3), sample, b_dec="mean", seed=4)
    state = TrainState(reading, config, frame, steps=10)
    z = state.read(sample.x) @ reading.W_enc + reading.b_enc
    torch.testing.assert_close(z, centred.centred(sample.x) @ centred.W_enc, atol=1e-4, rtol=1e-4)
    with torch.no_grad():  # as after some steps
        for parameter in state.parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
        reading.W_dec.div_(reading.W_dec.norm(dim=1, keepdim=True))
    z = state.read(sample.x) @ reading.W_enc + reading.b_enc
    if architecture == "batchtopk":
        either_side = z.relu().flatten().sort().values[7000:7002]
        state.memory["threshold"] = either_side.double().mean()
    saved, scale = finished(state, {}), frame.read[0].scale
    kept = z.relu()
    if architecture == "batchtopk":
        expected = torch.where(z > state.memory["threshold"], z, 0)
    elif architecture == "jumprelu":
        expected = torch.where(z > state.log_threshold.exp(), z, 0)
    else:
        top = kept.topk(3, dim=1)
        expected = torch.zeros_like(z).scatter(1, top.indices, top.values)
    torch.testing.assert_close(saved.encode(x).dense() * scale, expected.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(saved(x) * scale, expected.float() @ reading.W_dec + reading.b_dec, atol=1e-3, rtol=1e-4)


def test_unscaling_is_exact():
    """Codes and reconstruction of the result are those on scaled activations, divided by the scale."""
    s = state().sae
    config = s.config
    x = torch.randn(50, 8)
    frame = Frame((Scaling(scale=3.7, threshold=50.0, variance=7.0, rows=10, massive=0),), (8,))
    ours = SAE.of_weights(config, **frame.raw(s.weights()))
    torch.testing.assert_close(ours.encode(x).dense(), s.encode(3.7 * x).dense() / 3.7)
    torch.testing.assert_close(ours(x), s(3.7 * x) / 3.7)


def test_it_finds_the_planted_dictionary(tmp_path):
    x, directions = sparse_mixture(4000, d=32, f=48, seed=2)  # the run's own seed would start from these directions
    x[17] *= 1000
    rows = MemoryRows(x)
    sae = fit(rows, TrainConfig(**{**SMALL, "d_sae": 48, "lr": 1e-2}, epochs=20), tmp_path, site=SITE)
    usual = torch.arange(len(x)) != 17
    error = (x - sae(x))[usual].square().sum() / (x[usual] - x[usual].mean(0)).square().sum()
    assert error < 0.05
    assert (directions @ sae.W_dec.T).max(dim=1).values.mean() > 0.95
    kept = sae.config.metadata
    assert kept["hook_name"] == "blocks.3.hook_resid_post" and kept["model_name"] == "toy" and kept["prepend_bos"]
    assert kept["midlens_training"]["massive_rows_seen"] == 20
    assert x.norm(dim=1)[17] > kept["massive_norm_threshold"] > x.norm(dim=1)[usual].max()
    lines = [json.loads(line) for line in (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["massive"] for line in lines) == 20 and lines[-1]["explained_variance"] > 0.9
    assert not (tmp_path / "training" / "checkpoints").exists()


def test_a_finished_run_is_returned_without_training(tmp_path):
    rows = MemoryRows(sparse_mixture(200)[0])
    first = fit(rows, TrainConfig(**SMALL, epochs=1), tmp_path, site=SITE)

    def batches(*_, **__):
        raise AssertionError("a finished run read the store")

    rows.batches = batches
    again = fit(rows, TrainConfig(**SMALL, epochs=1), tmp_path, site=SITE)
    assert torch.equal(first.W_dec, again.W_dec)
    with pytest.raises(InputError, match=r"other settings \(k: 3 there, 4 asked for; k_start: 3 there"):
        fit(rows, TrainConfig(**{**SMALL, "k": 4}, epochs=1), tmp_path, site=SITE)


TRAINING = """
from saes import train
from saes.recipe import TrainConfig
from tests.killing import begin, kill_where_it_waits
from tests.rows import SITE, MemoryRows, sparse_mixture
from tests.test_train import SMALL
train.fit(MemoryRows(sparse_mixture(700)[0]), TrainConfig(**SMALL, tokens=6400), path / "sae", site=SITE)
"""
# Generations of about 300 rows of 1,000: step 40 lies within one, and the run goes through the stream six times.
STREAMED = """
from interp.stream import ActivationStream
from saes import train
from saes.recipe import TrainConfig
from tests.test_train import SMALL
from tests.toy_store import ToyModel, token_file
tokens = token_file(path / "tokens", [20] * 50)
sizes = {"token_budget": 160, "buffer_bytes": 2**14}
stream = ActivationStream(ToyModel(), tokens, ["resid_post.1"], dtype="float32", **sizes)
assert 3 <= stream.material.generations <= 6
train.fit(stream, TrainConfig(**SMALL, tokens=6400), path / "sae", site="resid_post.1")
"""


@pytest.mark.parametrize("training", [TRAINING, STREAMED], ids=["store", "stream"])
def test_a_hundred_steps_equal_fifty_killed_resumed(training, tmp_path):
    """SIGKILL after 55 steps (the checkpoint is of step 40), then again: SAE and metrics are the same bytes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = begin(training, cut, wait=55)
    assert begin(training, whole, wait=1000).wait(timeout=120) == 0
    kill_where_it_waits(process, cut)
    assert [path.name for path in checkpoints(cut / "sae" / "training")] == [
        f"step-{s:09d}.safetensors" for s in (20, 40)
    ]
    assert not (cut / "sae" / CFG).exists()
    assert begin(training, cut, wait=1000).wait(timeout=120) == 0
    for name in (CFG, "sae_weights.safetensors", "training/metrics.jsonl", "training/run.json"):
        assert (cut / "sae" / name).read_bytes() == (whole / "sae" / name).read_bytes(), name
    assert json.loads((whole / "sae/training/metrics.jsonl").read_text().splitlines()[-1])["step"] == 100


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_begun_under_other_defaults_is_not_continued_under_these(tmp_path, monkeypatch, finished):
    """A later version may fill in otherwise what was left open: neither resumed nor taken for what was asked for."""
    rows, config = MemoryRows(sparse_mixture(200)[0]), TrainConfig(**SMALL, architecture="jumprelu", epochs=20)
    with monkeypatch.context() as before:
        before.setattr(TrainConfig, "_mean_read", lambda *_: 0.0)
        if not finished:
            before.setattr(fitting.Fitting, "finish", _stop)
        with contextlib.suppress(KeyboardInterrupt):
            fit(rows, config, tmp_path, site=SITE)
    held = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"with other settings \(mean_read: 0\.0 there, 0\.5 asked for\)"):
        fit(rows, config, tmp_path, site=SITE)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == held
    asked = TrainConfig(**SMALL, architecture="jumprelu", epochs=20, mean_read=0.0)
    assert fit(rows, asked, tmp_path, site=SITE).config.metadata["midlens_training"]["recipe"]["mean_read"] == 0


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_nan_activations_are_named_and_the_checkpoint_is_whole(tmp_path):
    x = sparse_mixture(700)[0]
    config = TrainConfig(**SMALL, tokens=6400, sample=64)
    order = torch.cat([b.doc * 10 + b.position for b in MemoryRows(x).batches([SITE], 64, seed=0, epoch=3)])
    row = int(order[200])  # first met in epoch 3
    rows = MemoryRows(x)

    def batches(sites, size, *, seed, first=0, epoch=0):
        for batch in MemoryRows(x).batches(sites, size, seed=seed, first=first, epoch=epoch):
            if epoch == 3:
                batch.acts[SITE][(batch.doc * 10 + batch.position) == row, 2] = float("nan")
            yield batch

    rows.batches = batches
    expected = (
        rf"loss.* became NaN or infinite in steps 31 to 40: 1 activations of step 37 hold NaN or infinite values, "
        rf"the first at document {row // 10}, position {row % 10}. Checkpoints written before are whole. If `midlens"
    )
    with pytest.raises(InputError, match=expected):
        fit(rows, config, tmp_path, site=SITE)
    (held,) = checkpoints(tmp_path / "training")
    tensors, facts = read_tensors(held, "checkpoint")
    assert facts["step"] == 20 and all(t.isfinite().all() for t in tensors.values())


def test_a_run_that_diverges_is_told_apart_from_bad_activations(tmp_path):
    rows = MemoryRows(sparse_mixture(200)[0])
    with pytest.raises(InputError, match="though all activations are finite: training diverged"):
        fit(rows, TrainConfig(**{**SMALL, "lr": 1e38}, epochs=20), tmp_path, site=SITE)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.full((10, 4), float("nan")),
            "10 of 10 sampled activations hold NaN or infinite values; extract",
        ),
        (torch.zeros(10, 4), "all 10 sampled activations are zero; there is nothing to train on"),
        (torch.ones(10, 4), "all 10 sampled activations are equal"),
        (torch.zeros(0, 4), "the store holds no activations; extract some first"),
    ],
)
def test_stores_without_information_are_refused(tmp_path, x, message):
    with pytest.raises(InputError, match=message):
        fit(MemoryRows(x), TrainConfig(**SMALL), tmp_path, site=SITE)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_short_run_saves_a_threshold_that_fits_its_last_steps(tmp_path, architecture):
    """50 steps: as many features fire in the finished SAE as the recipe says, not as in the first batches."""
    x = sparse_mixture(4000, d=32, f=128)[0]
    recipe = TrainConfig(architecture=architecture, d_sae=128, k=8, batch_size=256, tokens=50 * 256, lr=3e-3)
    sae = fit(MemoryRows(x), recipe, tmp_path, site=SITE)
    active = sae.encode(x).counts.float().mean()
    assert 8 * 0.8 < active < 8 * 1.2, active


def test_thresholds_reach_the_target_in_a_short_run(tmp_path):
    """150 steps by default settings: jumprelu fires as often as it is told to, and explains most of the data."""
    x = sparse_mixture(4000, d=32, f=128)[0]
    recipe = TrainConfig(architecture="jumprelu", d_sae=128, k=8, batch_size=256, tokens=150 * 256, lr=3e-3)
    sae = fit(MemoryRows(x), recipe, tmp_path, site=SITE)
    assert 8 * 0.8 < sae.encode(x).counts.float().mean() < 8 * 1.2
    assert 1 - (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum() > 0.8


def test_a_folder_that_holds_another_sae_is_left_alone(tmp_path):
    SAE(SAEConfig(d_in=99, d_sae=7, k=2)).save(tmp_path)
    with pytest.raises(InputError, match="holds an SAE that was not trained there; give this run another folder"):
        fit(MemoryRows(torch.randn(100, 4)), TrainConfig(**SMALL, epochs=1), tmp_path, site=SITE)
    assert SAE.load(tmp_path).config.d_in == 99 and not (tmp_path / "training").exists()


def test_a_mistake_leaves_the_folder_free(tmp_path):
    """A wrong recipe or metadata is found before the folder is claimed: the corrected call goes through."""
    rows = MemoryRows(sparse_mixture(200)[0])
    with pytest.raises(InputError, match="k=500 active features do not fit"):
        fit(rows, TrainConfig(**{**SMALL, "k": 500}, epochs=1), tmp_path, site=SITE)
    with pytest.raises(InputError, match="skip=True, but no second site was given"):
        fit(rows, TrainConfig(**SMALL, epochs=1, skip=True), tmp_path, site=SITE)
    with pytest.raises(InputError, match="metadata cannot be written as JSON"):
        fit(rows, TrainConfig(**SMALL, epochs=1), tmp_path, site=SITE, metadata={"where": tmp_path})
    assert fit(rows, TrainConfig(**SMALL, epochs=1), tmp_path, site=SITE).config.d_sae == 32


def test_two_runs_in_one_folder_are_refused(tmp_path):
    rows = MemoryRows(sparse_mixture(200)[0])
    with only_writer(tmp_path), pytest.raises(InputError, match="another process is writing"):
        fit(rows, TrainConfig(**SMALL, epochs=1), tmp_path, site=SITE)


def test_k_larger_than_the_width_is_refused(tmp_path):
    with pytest.raises(InputError, match="k=33 active features do not fit an SAE of d_sae=32 features"):
        fit(MemoryRows(torch.randn(100, 4)), TrainConfig(**{**SMALL, "k": 33}), tmp_path, site=SITE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b_dec": "median"}, "b_dec is one of 'geometric_median', 'mean', 'zeros', got 'median'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": -1.0}, "lr must be positive, got -1.0"),
        ({"decay": 2.0}, "decay is a part, between 0 and 1, got 2.0"),
        ({"k": 2.5}, "k is a whole number, got 2.5"),
        ({"k": True}, "k is a whole number, got True"),
        ({"skip": "no"}, "skip is True or False, got 'no'"),
        ({"betas": (0.9,)}, r"betas is 2 numbers, got \(0.9,\)"),
        ({"epochs": math.inf}, "epochs is a finite number, got inf"),
        ({"massive": math.nan}, "massive is a finite number, got nan"),
        ({"architecture": "standard", "p_start": 1.0}, r"p_start=1\.0 leaves no steps to p-annealing"),
        ({"architecture": "standard", "p_end": 2.0}, "p_end, the penalty's last exponent, .* at most 1, got 2.0"),
        ({"architecture": "jumprelu", "penalty": "step"}, "penalty='step' needs sparsity: how much one active feature"),
        ({"architecture": "matryoshka_batchtopk", "groups": ()}, r"groups are parts of the features: .*got \(\)"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(options, message):
    recipe = TrainConfig(**{name: options[name] for name in ("architecture",) if name in options})
    for name, value in options.items():
        object.__setattr__(recipe, name, value)  # past the type checks that run in tests alone
    with pytest.raises(InputError, match=message):
        recipe.__post_init__()


def test_a_real_store_and_the_command_line(tmp_path, capsys):
    """Two sites, one with heads (flattened); what the manifest knows reaches cfg.json."""
    store = extract(ToyModel(), token_file(tmp_path / "tokens", [40] * 10), SITES, tmp_path / "store", progress=False)
    options = {"store": tmp_path / "store", "d_sae": 12, "k": 2, "epochs": 2, "batch_size": 100, "device": "cpu"}
    for site, width in zip(SITES, (6, 6), strict=True):
        out = tmp_path / site
        assert Train(**options, out=out, site=(site,)).run() == 0
        assert capsys.readouterr().out == f"{out}\n"
        sae = SAE.load(out)
        assert sae.config.d_in == width and sae.config.d_sae == 12
        assert sae.config.metadata["model_name"] == "toy" and sae.config.metadata["context_size"] == 512
        assert sae.config.metadata["midlens_training"]["rows"] == len(store) == 390
        assert sae(store.rows(site, 0, 5).flatten(1)).shape == (5, width)
    with pytest.raises(InputError, match=r"holds .*hook_resid_post.*; say which with --site"):
        Train(**options, out=tmp_path / "x").run()
    with pytest.raises(InputError, match="resid_post"):
        Train(**options, out=tmp_path / "x", site="resid_post.5").run()

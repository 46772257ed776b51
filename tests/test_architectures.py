"""One battery that every architecture and every kind of dictionary passes.

Losses and gradients against `tests.plain_sae` in float64; whole steps against PyTorch's Adam on the plain losses;
scales, conventions of the input norm, the finished SAE, files, resume, precision, and what a step may not do.
"""

import math
from typing import Any

import pytest
import torch
from midlens_kernels import _sparse_product
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interp.errors import InputError
from saes.finish import finished
from saes.frame import Frame, Framed, measure
from saes.objectives import objective
from saes.optimise import TrainState, refresh, step
from saes.recipe import TrainConfig
from saes.sae import SAE
from saes.train import fit
from tests import plain_sae
from tests.plain_sae import Setting
from tests.rows import MemoryRows, sparse_mixture
from tests.sae_cases import (
    ARCHITECTURES,
    KINDS,
    OUT,
    SELECTING,
    D,
    F,
    N,
    batch_for,
    gradients,
    plain_loss,
    plain_weights,
    set_bias,
    setting_of,
    training,
)
from tests.sae_rows import Sites

EXACT = {"rtol": 1e-10, "atol": 1e-11}
READING = [*SELECTING, "jump-step", "jump-target", "jump-tanh"]
FORMS = [(name, form) for name in ARCHITECTURES for form in (["rank"] if name in SELECTING else ["sparse", "dense"])]
every_form = pytest.mark.parametrize(("name", "form"), FORMS, ids=[f"{name}-{form}" for name, form in FORMS])
every_name = pytest.mark.parametrize("name", list(ARCHITECTURES))
every_kind = pytest.mark.parametrize("kind", list(KINDS))
# Whole runs, which take longer: every architecture as an SAE, and every other kind with half of them.
RUNS = [(name, "sae") for name in ARCHITECTURES]
RUNS += [(name, "transcoder") for name in ("topk", "matryoshka", "standard", "jump-tanh")]
RUNS += [(name, "skip") for name in ("topk", "batchtopk", "gated", "jump-step")]
RUNS += [(name, "crosscoder") for name in ("batchtopk", "standard", "gated", "jump-target")]
every_run = pytest.mark.parametrize(("name", "kind"), RUNS, ids=["-".join(run) for run in RUNS])


def agree(state: TrainState, batch: Framed, **over: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Compare loss, parts, codes and every gradient with the reference; the reference's gradients and answer."""
    out = objective(state, batch)
    p = plain_weights(state)
    plain = plain_loss(state, p, batch, **over)
    torch.testing.assert_close(out.loss, plain["loss"], **EXACT)
    torch.testing.assert_close(out.reconstruction, plain["reconstruction"], **EXACT)
    torch.testing.assert_close(out.aux, plain["aux"], **EXACT)
    fired = out.entries.per_feature((out.values > 0).double() * out.entries.of_tokens(batch.kept))
    assert torch.equal(fired, (plain["codes"] > 0).double().sum(0))
    ours, theirs = gradients(out.loss, state.parameters), gradients(plain["loss"], p)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(gradient, theirs[name], **EXACT, msg=lambda m, name=name: f"{name}: {m}")
    return theirs, plain, out


def as_form(state: TrainState, form: str) -> TrainState:
    state.dense = form == "dense"
    return state


# Loss and gradients


NORMS = [("sae", "unit"), ("sae", "weighted"), ("sae", "free"), ("transcoder", "weighted"), ("transcoder", "free")]
NORMS += [("skip", "free"), ("crosscoder", "weighted"), ("crosscoder", "unit"), ("crosscoder", "free")]
every_norm = pytest.mark.parametrize(("kind", "decoder_norm"), NORMS, ids=[f"{kind}-{norm}" for kind, norm in NORMS])


@every_norm
@every_form
def test_loss_and_gradients_are_those_of_plain_autograd(name, form, kind, decoder_norm):
    """Massive rows, repeated rows, fewer dead features than k_aux and more."""
    for dead in ((3, 7), (0, 3, 4, 7, 11, 12, 13, 20, 21)):
        state = as_form(training(name, kind, decoder_norm=decoder_norm, dead=dead), form)
        batch = batch_for(kind, massive=(4, 9))
        for tensor in batch[:2]:
            tensor[6] = tensor[5]
        theirs, _, _ = agree(state, batch)
        assert all((gradient != 0).any() for gradient in theirs.values())


@pytest.mark.parametrize("kind", ["sae", "crosscoder"])
@pytest.mark.parametrize("name", READING)
def test_loss_and_gradients_with_a_part_of_the_bias_in_the_input(name, kind):
    for part in (0.0, 0.25, 1.0):
        state = training(name, kind, mean_read=part, dead=(3, 7))
        assert setting_of(state).centred == 1 - part
        agree(state, batch_for(kind, massive=(4,)))


def test_which_architectures_read_the_mean():
    """What `mean_read` is by default, and of whom it is no setting."""
    reading = {name: setting_of(training(name)).centred for name in ARCHITECTURES}
    assert {name for name, centred in reading.items() if centred != 1} == set(READING)
    assert setting_of(training("batchtopk", "crosscoder")).centred == 1
    with pytest.raises(InputError, match=r"mean_read=0\.3 was given for a transcoder.*Leave it out"):
        training("topk", "transcoder", mean_read=0.3)
    with pytest.raises(InputError, match=r"mean_read=0\.3 was given, but .* topk, .*jumprelu; training gated"):
        TrainConfig(architecture="gated", mean_read=0.3)


def test_a_wrong_reference_would_be_noticed():
    """The comparison sees a coefficient that is off by a thousandth."""
    state = training("standard")
    with pytest.raises(AssertionError):
        agree(state, batch_for("sae"), sparsity=0.3003)


@every_kind
@every_form
def test_tokens_with_too_few_positive_pre_activations(name, form, kind):
    """Only three features can be positive, k is 4; some tokens have none at all."""
    state = as_form(training(name, kind, dead=(8, 9)), form)
    set_bias(state, -60.0)
    set_bias(state, -0.5, [1, 5, 8])
    _, plain, _ = agree(state, batch_for(kind, massive=(0,)))
    counts = (plain["codes"] > 0).sum(1)
    assert counts.max() <= 3 and (counts == 0).any() and (counts > 0).any()


@every_kind
@every_form
def test_tokens_without_any_active_entry(name, form, kind):
    """Nothing fires anywhere: the bias alone reconstructs, and nothing is NaN."""
    state = as_form(training(name, kind, dead=tuple(range(F)), aux_weight=0.0), form)
    set_bias(state, -60.0)
    _, plain, out = agree(state, batch_for(kind, massive=(0,)))
    assert not (plain["codes"] > 0).any() and out.loss > 0


@every_kind
@every_form
def test_a_batch_of_massive_rows_alone(name, form, kind):
    state = as_form(training(name, kind, dead=(2, 3)), form)
    state.dead = state.dead[:0]
    _, _, out = agree(state, batch_for(kind, massive=tuple(range(N))))
    assert out.reconstruction == 0


@every_form
def test_a_batch_of_one_token(name, form):
    agree(as_form(training(name, dead=(2,)), form), batch_for("sae", n=1))


@pytest.mark.parametrize("p", [0.2, 0.55])
@every_kind
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_penalties_with_an_exponent(form, kind, p):
    """The derivative of f^p is infinite at 0; inactive features get none."""
    state = as_form(training("standard", kind, p_end=p, p_start=0.0, p_steps=1), form)
    state.step = 5  # every step has exponent p; the coefficient's factor is taken back out
    state.memory["p"] = torch.tensor(p, dtype=torch.float64)
    theirs, _, _ = agree(state, batch_for(kind, massive=(1,)), p=p)
    assert all((gradient != 0).any() for gradient in theirs.values())


@every_kind
@every_form
def test_auxk_sends_gradient_to_the_encoder_rows_of_dead_features_and_to_no_other(name, form, kind):
    """The gradient itself: of the encoder row, nonzero, and equal to the reference's.

    The dead features' pre-activations are small and positive: too low to be chosen by rank or by threshold.
    """
    dead = [3, 7, 20]
    unchosen = name not in ("standard", "gated")
    state = as_form(training(name, kind, **({"pre_act": 0.0} if name == "jump-tanh" else {})), form)
    with torch.no_grad():
        state.sae.encoder[dead] *= 1e-3
        state.sae.b_enc[dead] = 0.01
        if "log_threshold" in state.parameters:
            state.log_threshold[dead] = math.log(90.0)
    alive = torch.ones(F, dtype=torch.bool).index_fill(0, torch.tensor(dead), False)
    found = []
    for listed in (dead, []):
        state.dead = torch.tensor(listed, dtype=torch.int64)
        agree(state, batch_for(kind))
        found.append(gradients(objective(state, batch_for(kind)).loss, state.parameters))
    with_aux, without = found
    for parameter in ("encoder", "b_enc", "W_dec"):
        assert not (unchosen and without[parameter][dead].any()), "chosen after all: the case is not what it says"
        difference = with_aux[parameter] - without[parameter]
        rows = difference.flatten(1).norm(dim=1) if difference.ndim == 2 else difference.abs()
        assert (rows[dead] > 1e-8).all(), f"{parameter}: a dead feature got no gradient"
        assert (rows[alive] < 1e-12).all(), f"{parameter}: a living feature got one"
    for parameter in set(with_aux) - {"encoder", "b_enc", "W_dec"}:
        torch.testing.assert_close(with_aux[parameter], without[parameter], rtol=0, atol=1e-12)


# Whole steps


class PlainTrainer:
    """The plain losses under PyTorch's plain Adam, in float64, from raw activations."""

    def __init__(self, state: TrainState) -> None:
        self.state, self.p = state, plain_weights(state)
        self.adam = torch.optim.Adam(
            [{"params": [t]} for t in self.p.values()], betas=state.config.betas, eps=6.25e-10, foreach=False
        )
        self.faster = {"log_threshold": state.config.threshold_rate or 1}

    def step(self, batch: Framed, rate: float, **over: Any) -> dict[str, Tensor]:
        made = plain_loss(self.state, self.p, batch, **over)
        for name, gradient in gradients(made["loss"], self.p).items():
            self.p[name].grad = gradient
        unit = self.state.config.decoder_norm == "unit"
        plain_sae.optimised(self.p, unit, self.state.config.clip)
        for group, parameter in zip(self.adam.param_groups, self.p, strict=True):
            group["lr"] = rate * self.faster.get(parameter, 1)
        self.adam.step()
        if unit:
            with torch.no_grad():
                self.p["W_dec"] /= self.p["W_dec"].norm(dim=1, keepdim=True)
        return made


def raw_batch(kind: str, seed: int, n: int = 40) -> tuple[Tensor, Tensor | None, Framed]:
    """Raw float32 activations with a massive row in x and, where there is one, another in y; and the batch they make.

    The scales are powers of two, so that float32 scaling is exact.
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=g)
    y = torch.randn(n, OUT, generator=g) if kind in ("transcoder", "skip") else None
    x[5] *= 1000
    kept = torch.ones(n, dtype=torch.float64)
    kept[5] = 0
    if y is not None:
        y[7] *= 1000
        kept[7] = 0
    scale = torch.tensor([2.0] * 4 + [0.5] * 2 if kind == "crosscoder" else [2.0] * D, dtype=torch.float64)
    scaled = x.double() * scale * kept[:, None]
    return x, y, Framed(scaled, scaled if y is None else y.double() * 4 * kept[:, None], kept)


@every_kind
@every_form
def test_steps_are_those_of_plain_adam(name, form, kind):
    """Six steps from raw activations: scaling, massive rows, projection, clipping, learning rate, norms, counters."""
    state = as_form(
        training(name, kind, dead=(3, 7, 20), clip=1e9 if kind == "sae" else 0.05, warmup=0.04, decay=0.0), form
    )
    plain = PlainTrainer(state)
    out = 2 if kind in ("transcoder", "skip") else 1
    silent = torch.zeros(F, dtype=torch.int64)
    for number in range(6):
        x, y, batch = raw_batch(kind, seed=number)
        log = step(state, x, y)
        made = plain.step(batch, rate=1e-2 * min(1, (number + 1) / 4))
        assert log.massive == out
        fired = (made["codes"] > 0).any(0)
        silent = torch.where(fired, 0, silent + 40 - out)
        torch.testing.assert_close(log.l0.double(), (made["codes"] > 0).double().sum(1).mean(), rtol=1e-6, atol=0)
        torch.testing.assert_close(log.loss.double(), made["reconstruction"].detach(), rtol=1e-6, atol=0)
    for parameter, tensor in state.parameters.items():
        torch.testing.assert_close(tensor, plain.p[parameter], rtol=1e-6, atol=1e-7, msg=parameter)
    assert torch.equal(state.silent, silent)
    assert int(state.seen) == 6 * (40 - out) and int(state.massive) == 6 * out
    if state.config.decoder_norm == "unit":
        torch.testing.assert_close(state.sae.W_dec.norm(dim=1), torch.ones(F, dtype=torch.float64))


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_the_threshold_is_a_running_mean_of_the_smallest_score(name):
    for decoder_norm in ("unit", "weighted"):
        state = training(name, decoder_norm=decoder_norm, threshold_momentum=0.75)
        lowest = []
        for seed in range(4):
            batch = batch_for("sae", seed=seed, massive=(2,))
            lowest.append(plain_loss(state, plain_weights(state), batch)["smallest"].item())
            objective(state, batch)
        expected = lowest[0]
        for value in lowest[1:]:
            expected = 0.75 * expected + 0.25 * value
        assert math.isclose(state.memory["threshold"].item(), expected, rel_tol=1e-10)
        set_bias(state, -60.0)
        objective(state, batch_for("sae"))
        assert math.isclose(state.memory["threshold"].item(), expected, rel_tol=1e-10), "nothing fired: nothing learnt"


# Schedules


@pytest.mark.parametrize("name", SELECTING)
def test_k_falls_linearly_to_k(name):
    """All pre-activations are positive, so that the number of active entries is k of the step."""
    state = training(name, k=4, k_start=20, k_anneal=0.5, lr=1e-9, dtype="float32")
    state.steps = 16
    set_bias(state, 500.0)
    expected = [20, 18, 16, 14, 12, 10, 8, 6] + [4] * 8
    x = raw_batch("sae", 0)[0][10:]
    assert [round(step(state, x).l0.item()) for _ in range(16)] == expected


def test_more_active_features_at_the_start_than_there_are():
    state = training("topk", k=4, k_start=10_000, k_anneal=0.5, lr=1e-9, dtype="float32")
    set_bias(state, 500.0)
    assert step(state, raw_batch("sae", 0)[0][10:]).l0 == F


@pytest.mark.parametrize(("p_start", "p_steps"), [(0.2, 2), (0.25, 5), (0.5, 10), (0.0, 5)])
def test_p_annealing_keeps_the_penalty_where_it_was(p_start, p_steps):
    """On one batch and with weights that stand still, the penalty never moves, and ends as a multiple of L_p."""
    state = training("standard", p_end=0.3, p_start=p_start, p_steps=p_steps, lr=1e-30)
    state.steps = 40
    x, _, batch = raw_batch("sae", 0)
    seen = [step(state, x).penalty.item() for _ in range(40)]
    first = 1.0 if p_start else 1 - 0.7 / p_steps
    sizes = [plain_loss(state, plain_weights(state), batch, p=p)["penalty"].item() for p in (first, 0.3)]
    torch.testing.assert_close(seen, [sizes[0]] * 40, rtol=1e-9, atol=0)
    assert abs(sizes[1] / sizes[0] - 1) > 0.1, "the two penalties are too alike to tell"
    state.step -= 1
    agree(state, batch, p=0.3, sparsity=state.config.sparsity * sizes[0] / sizes[1])


def test_exponents_fall_in_equal_steps():
    config = training("standard", p_end=0.2, p_start=0.2, p_steps=4).config
    found = [config.exponent(t, 100)[0] for t in range(100)]
    expected = [1.0] * 20 + [0.8] * 20 + [0.6] * 20 + [0.4] * 20 + [0.2] * 20
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["standard", "gated", "jump-step"])
def test_the_coefficient_rises_over_its_warm_up(name):
    """The loss of step t holds (t + 1) / 8 of the penalty, then all of it."""
    state = training(name, sparsity=0.5, sparsity_warmup=0.08)
    batch = batch_for("sae")
    for at, part in ((0, 1 / 8), (3, 4 / 8), (7, 1.0), (60, 1.0)):
        state.step = at
        agree(state, batch, sparsity=0.5 * part)


# Units


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip"])
@every_name
def test_unit_ms_and_sqrt_d_are_one_loss_in_two_units(name, kind):
    """Same value; what has a length (biases, thresholds, bandwidth, tanh_scale) is converted, gradients inversely.

    (Not so for a crosscoder: its sources weigh by their widths under one convention and alike under the other.)
    """
    g = torch.Generator().manual_seed(3)
    samples = [torch.randn(200, D, generator=g, dtype=torch.float64) * 3 + 1]
    samples += [torch.randn(200, OUT, generator=g, dtype=torch.float64) * 7 - 2] if kind != "sae" else []
    losses, found, made = [], [], []
    scales = {norm: [measure(s, massive=50.0, norm=norm) for s in samples] for norm in ("sqrt_d", "unit_ms")}
    per_site = [b.scale / a.scale for a, b in zip(*scales.values(), strict=True)]
    read, out = per_site[0], per_site[-1]
    assert read < 0.6 and (kind == "sae" or abs(out / read - 1) > 0.05)
    factors = {"b_enc": read, "b_mag": read, "W_dec": out / read, "W_skip": out / read, "b_dec": out}
    for norm, scalings in scales.items():
        state = training(name, kind, dead=(1, 2), input_norm=norm)
        state.frame = Frame((scalings[0],), (D,), None if kind == "sae" else scalings[1])
        if norm == "unit_ms":
            with torch.no_grad():
                for parameter, factor in factors.items():
                    if parameter in state.parameters:
                        state.parameters[parameter].mul_(factor)
                if "log_threshold" in state.parameters:
                    state.log_threshold.add_(math.log(read))
        scaled = [s[:30] * scaling.scale for s, scaling in zip(samples, scalings, strict=True)]
        out_of = objective(state, Framed(scaled[0], scaled[-1], torch.ones(30, dtype=torch.float64)))
        losses.append(out_of.loss)
        found.append(gradients(out_of.loss, state.parameters))
        made.append(finished(state, {})(samples[0][30:]))  # not on the entry that set the threshold
    torch.testing.assert_close(losses[0], losses[1], **EXACT)
    torch.testing.assert_close(made[0], made[1], **EXACT)
    for parameter, gradient in found[0].items():
        other = found[1][parameter] * factors.get(parameter, 1)
        torch.testing.assert_close(gradient, other, **EXACT, msg=lambda m, parameter=parameter: f"{parameter}: {m}")


ONE, TWO = "resid_post.3", "mlp_out.3"
PLACES = {
    "sae": {"site": ONE},
    "transcoder": {"site": ONE, "site_out": TWO},
    "skip": {"site": ONE, "site_out": TWO},
    "crosscoder": {"site": [ONE, TWO]},
}


def rows_of_two_sites(n: int = 400, c: float = 1.0, c_two: float = 1.0) -> Sites:
    x, _ = sparse_mixture(n, d=12, f=20)
    y = x @ torch.randn(12, 10, generator=torch.Generator().manual_seed(8)) + 0.3 * x[:, :10].relu()
    return Sites({ONE: c * x, TWO: c_two * y})


def recipe(name: str, kind: str, **over: Any) -> TrainConfig:
    options = {"d_sae": 20, "lr": 3e-3, "batch_size": 64, "log_every": 5, "checkpoint_every": 10, "tokens": 64 * 8}
    options |= {"start_l0": 5.0} if name not in SELECTING else {}
    bandwidth = {"bandwidth": 0.3} if name.startswith("jump") else {}
    return TrainConfig(**{**options, **ARCHITECTURES[name], **bandwidth, "skip": kind == "skip", **over})


@every_run
def test_training_on_c_times_x_gives_c_times_the_codes_and_the_reconstruction(name, kind, tmp_path):
    """c is a power of two, so that every rounding is the same: equal to the last bit (crosscoders: to rounding)."""
    plain, scaled = rows_of_two_sites(), rows_of_two_sites(c=8.0, c_two=2.0 if kind != "crosscoder" else 8.0)
    a = fit(plain, recipe(name, kind), tmp_path / "a", **PLACES[kind])
    b = fit(scaled, recipe(name, kind), tmp_path / "b", **PLACES[kind])
    x, big = (
        torch.cat(list(rows.acts.values())[: 2 if kind == "crosscoder" else 1], dim=1) for rows in (plain, scaled)
    )
    grows = 8.0 if kind in ("sae", "crosscoder") else 2.0  # codes and reconstruction are in units of what is written
    tolerance = {"rtol": 2e-5, "atol": 2e-5} if kind == "crosscoder" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(b.encode(big).dense(), grows * a.encode(x).dense(), **tolerance)
    torch.testing.assert_close(b(big), grows * a(x), **tolerance)
    assert (a.encode(x).values > 0).any()
    if a.config.architecture == "jumprelu":
        torch.testing.assert_close(b.threshold, grows * a.threshold, **tolerance)
        assert (a.threshold > 0).all()


# The finished SAE and its files


@every_norm
@every_name
def test_the_finished_sae_is_the_trained_function_in_raw_units(name, kind, decoder_norm):
    """Codes (in units of what is written, times the folded norm) and reconstruction, from the plain reference."""
    state = training(name, kind, decoder_norm=decoder_norm)
    x, _, batch = raw_batch(kind, seed=4)
    x, batch = x[10:], Framed(*(t[10:] for t in batch))
    p, s = plain_weights(state), setting_of(state)
    w = plain_sae.row_norms(p, s) if decoder_norm == "weighted" else torch.ones(F, dtype=torch.float64)
    codes = plain_loss(state, p, batch)["codes"]
    if name in ("batchtopk", "matryoshka"):
        state.memory["threshold"] = torch.tensor(0.9, dtype=torch.float64)
        z = plain_sae.pre_activations(p, batch.x, s)
        codes = z * (z * w > 0.9)
    scale = {"sae": 2.0, "crosscoder": torch.tensor([2.0] * 4 + [0.5] * 2)}.get(kind, 4.0)
    code_unit = {"sae": 2.0, "crosscoder": 1.0}.get(kind, 4.0)
    sae = finished(state, {"made": "here"})
    torch.testing.assert_close(sae.encode(x).dense(), codes * w / code_unit, **EXACT)
    torch.testing.assert_close(sae(x), plain_sae.rebuilt(p, codes, batch.x) / scale, **EXACT)
    assert sae.config.architecture == (
        "jumprelu" if name in ("batchtopk", "matryoshka") else state.sae.config.architecture
    )
    assert sae.config.metadata == {"made": "here"}
    if decoder_norm == "weighted":
        made = plain_sae.row_norms({"W_dec": sae.W_dec * scale / code_unit}, s)
        torch.testing.assert_close(made, torch.ones(F, dtype=torch.float64))


@every_kind
@every_name
def test_saved_and_loaded_it_gives_the_same_bits(name, kind, tmp_path):
    state = training(name, kind, dtype="float32")
    if "threshold" in state.memory:
        state.memory["threshold"] = torch.tensor(0.9, dtype=torch.float64)
    sae = finished(state, {"hook_name": "blocks.3.hook_resid_post"})
    sae.save(tmp_path)
    back = SAE.load(tmp_path)
    x = raw_batch(kind, seed=4)[0]
    assert torch.equal(back.encode(x).dense(), sae.encode(x).dense()) and torch.equal(back(x), sae(x))
    assert back.config.shapes() == sae.config.shapes() and back.config.sources == sae.config.sources
    assert {"hook_name": "blocks.3.hook_resid_post"}.items() <= back.config.metadata.items()


@every_run
def test_a_run_cut_short_ends_in_the_same_bits(name, kind, tmp_path):
    """20 steps are 10, an interruption in step 14, and the rest: weights and metrics."""
    over = {"tokens": 64 * 20, "sample": 128, "dead_after_tokens": 200}
    over |= {"p_end": 0.5, "p_steps": 4} if name == "standard" else {}
    over |= {"k_start": 10, "k_anneal": 0.8} if name in SELECTING else {}
    config = recipe(name, kind, **over)
    whole = fit(rows_of_two_sites(), config, tmp_path / "whole", **PLACES[kind])
    cut = rows_of_two_sites()
    cut.stops_after = 2 + 13  # the first two are the sample that gives the scale
    with pytest.raises(KeyboardInterrupt):
        fit(cut, config, tmp_path / "cut", **PLACES[kind])
    found = sorted(path.name for path in (tmp_path / "cut" / "training" / "checkpoints").iterdir())
    assert found == ["step-000000010.safetensors"]
    cut.stops_after = None
    resumed = fit(cut, config, tmp_path / "cut", **PLACES[kind])
    for (parameter, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), parameter
    metrics = [(tmp_path / run / "training" / "metrics.jsonl").read_bytes() for run in ("whole", "cut")]
    assert metrics[0] == metrics[1] and len(metrics[0].splitlines()) == 4


@pytest.mark.parametrize(("name", "decoder_norm"), [("batchtopk", "weighted"), ("matryoshka", "unit")])
def test_the_exported_threshold_gives_about_k_per_token_on_unseen_data(name, decoder_norm, tmp_path):
    x, _ = sparse_mixture(6000, d=12, f=20)
    config = recipe(
        name,
        "sae",
        k=3,
        tokens=64 * 150,
        seed=7,
        decoder_norm=decoder_norm,
        start_l0=None,
        log_every=50,
    )
    sae = fit(MemoryRows(x[:4000]), config, tmp_path, site=ONE)
    counts = sae.encode(x[4000:]).offsets.diff().double()
    # Sampling noise of the mean of 2,000 counts is about 1 %; the threshold follows batches of 64 k entries.
    assert abs(counts.mean() / 3 - 1) < 0.1
    assert sae.config.architecture == "jumprelu" and counts.std() > 0.1


# What a step may not do


class Watch(TorchDispatchMode):
    """Refuses what moves a value to the host or shapes a tensor by data, and counts new tensors of `large` elements."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "unique",
        "bincount",
        "is_nonzero",
        "equal.default",
        "repeat_interleave.Tensor",
    )

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.made = large, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func)
        sized = "repeat_interleave" in name and kwargs.get("output_size") is not None
        assert sized or not any(bad in name for bad in self.FORBIDDEN), f"{func} waits for the device"
        for index in args[1:2] if "aten.index" in name else ():
            wanted = index if isinstance(index, list | tuple) else [index]
            assert not any(isinstance(t, Tensor) and t.dtype == torch.bool for t in wanted), f"{func} by a mask"
        before = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor) and t.numel() >= self.large and t.untyped_storage().data_ptr() not in before:
                self.made.append(name)
        return out


@pytest.mark.parametrize("dead", [(), tuple(range(0, 40))], ids=["alive", "aux"])
@every_kind
@pytest.mark.parametrize("name", SELECTING)
def test_a_step_of_the_topk_family_waits_for_nothing_and_makes_nothing_dense(name, kind, dead):
    """Pre-activations live for one chunk; with chunks of a fourth of the batch, nothing of n f elements ever exists."""
    f, n = 512, 64
    state = training(name, kind, d_sae=f, dead=dead, dtype="float32")
    x, y, _ = raw_batch(kind, seed=0, n=n)
    with Watch(large=n * f) as watch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(state.adam, "step", lambda: None)  # on CPUs it reads its own step counter, on GPUs it does not
        for made_of_numbers in ("tensor", "as_tensor"):  # their way from the host is waited for
            patch.setattr(torch, made_of_numbers, lambda *_, **__: pytest.fail("a tensor of the host's numbers"))
        patch.setattr(_sparse_product, "CHUNK", n * f // 4)
        step(state, x, y)
        assert not watch.made
        with pytest.raises(AssertionError, match="waits for the device"):
            refresh(state)


# Precision


@every_kind
@every_form
def test_bfloat16_in_the_product_alone(name, form, kind):
    """Pre-activations are off by no more than the roundings of a product in bfloat16, and those chosen by rank rank no
    lower than that; everything after them is float32."""
    state = as_form(training(name, kind, dtype="float32", compute="bfloat16", dead=(2, 3)), form)
    batch = batch_for(kind, massive=(3,), dtype=torch.float32)
    out, p, s = objective(state, batch), plain_weights(state), setting_of(state)
    z = plain_sae.pre_activations(p, batch.x.double(), s)
    sizes = plain_sae.pre_activations({n: t.abs() for n, t in p.items()}, batch.x.double().abs(), Setting(centred=0.0))
    if s.centred:
        sizes = sizes + s.centred * p["b_dec"].abs() @ p["encoder"].T.abs()
    bound = 2**-8 * (2 * sizes + z.abs()) * 1.01  # three roundings to 8 bits: of either factor and of the sum
    rows = torch.arange(N)[:, None] if form == "dense" else out.entries.rows
    at = (rows, torch.arange(F) if form == "dense" else out.entries.indices)
    found, exact = out.entries.pre.double(), z.relu()[at] if form == "rank" else z[at]
    counts = batch.kept[rows] > 0
    off = ((found - exact).abs() * counts) / bound[at]
    assert 1e-3 < off.max() < 1, "not in bfloat16, or worse than it"
    if form == "rank":
        rank = z * plain_sae.row_norms(p, s) if s.weighted else z
        slack = bound * plain_sae.row_norms(p, s) if s.weighted else bound
        usual = batch.kept > 0
        last = rank[usual].topk(4).values[:, -1:] if name == "topk" else rank[usual].flatten().topk(4 * N).values[-1]
        worst = torch.full_like(z, -torch.inf)
        worst[usual] = last - 2 * slack.max()
        assert (rank[at] >= worst[at])[counts].all()
    codes = torch.zeros_like(z).index_put(at, out.values.double() * counts)
    error = (batch.y.double() - plain_sae.rebuilt(p, codes, batch.x.double()))[batch.kept > 0]
    expected = error.square().sum() / (N - 1) / state.frame.variance
    torch.testing.assert_close(out.reconstruction.double(), expected, rtol=1e-5, atol=0)
    x, y, _ = raw_batch(kind, seed=1)
    log = step(state, x, y)
    assert log.loss.dtype == torch.float32 and log.loss.isfinite()
    for parameter in state.parameters.values():
        assert parameter.dtype == torch.float32
        moments = [t for key, t in state.adam.state[parameter].items() if key != "step"]
        assert moments and all(t.dtype == torch.float32 and t.isfinite().all() for t in moments)


# Settings that cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.1}, "sparsity=0.1 was given, but it is a setting of jumprelu, standard, gated; training topk"),
        ({"architecture": "gated", "p_end": 0.5}, "p_end=0.5 was given, but it is a setting of standard"),
        ({"architecture": "standard", "k_start": 9}, "k_start=9 was given, but it is a setting of topk, batchtopk"),
        ({"architecture": "batchtopk", "groups": (0.5, 0.5)}, "groups=.* is a setting of matryoshka_batchtopk"),
        ({"architecture": "jumprelu", "threshold_momentum": 0.9}, "threshold_momentum=0.9 .* setting of batchtopk"),
        ({"architecture": "jumprelu", "tanh_scale": 1.0}, "tanh_scale and pre_act belong to penalty='tanh'"),
        (
            {"architecture": "jumprelu", "penalty": "step", "sparsity": 0.1, "pre_act": 1.0},
            "tanh_scale and pre_act belong to penalty='tanh', not to 'step'",
        ),
        ({"architecture": "matryoshka_batchtopk", "groups": (0.5, 0.4)}, "groups are parts of the features"),
        ({"architecture": "matryoshka_batchtopk", "groups": (1.5, -0.5)}, "groups are parts of the features"),
        ({"architecture": "jumprelu", "bandwidth": 0.0}, "bandwidth must be positive, got 0.0"),
        ({"architecture": "jumprelu", "threshold": math.nan}, "threshold is a finite number, got nan"),
        ({"architecture": "standard", "sparsity": -1.0}, "sparsity must not be negative, got -1.0"),
        ({"architecture": "standard", "sparsity": math.nan}, "sparsity is a finite number, got nan"),
        ({"k_anneal": 1.5}, "k_anneal is a part, between 0 and 1, got 1.5"),
        ({"betas": (0.9, 1.5)}, r"betas are .* got \(0.9, 1.5\)"),
        ({"d_sae": 0}, "d_sae must be positive, got 0"),
        ({"seed": 1, "k": 0}, "k must be at least 1, got 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "relu"}, "architecture is one of 'topk', 'batchtopk', .*, got 'relu'"),
        ({"penalty": "l0", "architecture": "jumprelu"}, "penalty is one of 'target', 'step', 'tanh', got 'l0'"),
        ({"decoder_norm": "two"}, "decoder_norm is one of 'unit', 'weighted', 'free', got 'two'"),
        ({"input_norm": "l2"}, "input_norm is one of 'sqrt_d', 'unit_ms', 'none', got 'l2'"),
        ({"compute": "float16"}, "compute is one of 'float32', 'bfloat16', got 'float16'"),
    ],
)
def test_choices_that_are_none_are_listed(options, message):
    """The tests' type checker would refuse them before the recipe does, so they are put in behind its back."""
    config = TrainConfig()
    for name, value in options.items():
        object.__setattr__(config, name, value)
    with pytest.raises(InputError, match=message):
        config.__post_init__()


@pytest.mark.parametrize("name", [*SELECTING, "jump-target"])
def test_more_active_features_than_there_are(name, tmp_path):
    with pytest.raises(InputError, match="20 features"):
        fit(rows_of_two_sites(), recipe(name, "sae", k=21), tmp_path, site=ONE)


@pytest.mark.parametrize(
    ("kind", "places", "message"),
    [
        ("skip", {"site": ONE}, "only a transcoder has a skip connection"),
        ("sae", {"site": [ONE, ONE]}, "a crosscoder reads two or more different sites"),
        ("sae", {"site": [ONE, TWO], "site_out": TWO}, "a transcoder reads one site"),
    ],
)
def test_sites_that_do_not_go_together(kind, places, message, tmp_path):
    with pytest.raises(InputError, match=message):
        fit(rows_of_two_sites(), recipe("topk", kind), tmp_path, **places)


def test_what_a_form_cannot_have(tmp_path):
    with pytest.raises(InputError, match="decoder_norm='unit' was given for a transcoder"):
        fit(rows_of_two_sites(), recipe("topk", "transcoder", decoder_norm="unit"), tmp_path, site=ONE, site_out=TWO)


def test_more_features_at_the_start_than_there_are(tmp_path):
    with pytest.raises(InputError, match=r"start_l0=30.0 active features do not fit an SAE of 20 features"):
        fit(rows_of_two_sites(), recipe("standard", "sae", start_l0=30.0), tmp_path, site=ONE)

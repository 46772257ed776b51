"""The benchmark: operations counted, models by shape, ceilings, rows, the command. No figure of speed is asserted."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from interp.bench import ceilings, extraction, measure, report, shapes
from interp.bench.ceilings import Ceilings, Effort, Rate, measure_ceilings
from interp.bench.flops import Product, mean_flops, products, sequence_flops
from interp.bench.shapes import SHAPES, default_site, flops_per_token, random_model, spec_of, synthetic_tokens
from interp.corpus import Document
from interp.errors import InputError
from interp.loading import load_hf
from interp.sites import Point, Site
from interp.stages import Stages
from midlens import bench as command
from midlens.__main__ import main
from saes import bench
from saes.objectives import objective

TINY = ("tiny-llama", "tiny-gemma2")
SMALL = Effort(repeats=2, seconds=0.001, copy_bytes=1 << 16, disk_bytes=1 << 16)


@pytest.fixture(autouse=True)
def _other_writers(monkeypatch):
    """Nobody waits for what other programs have yet to write; no figure is looked at here."""
    monkeypatch.setattr(measure.os, "sync", lambda: None)


@pytest.fixture(scope="module")
def packaged():
    """SmolLM2 as it is packaged, of its weights only the embedding."""
    return load_hf("smollm2-135m", upto="embed", device="cpu")


# Operations


@pytest.mark.parametrize(
    ("shape", "site", "length", "gflop"),
    [  # the figures of the roofline that the targets are stated in, three digits each
        ("llama-3.1-8b", "resid_pre.16", 1024, "7.11"),
        ("llama-3.1-8b", "resid_post.16", 1024, "7.56"),
        ("llama-3.1-8b", "resid_post.31", 1024, "14.23"),
        ("gemma-2-9b", "resid_pre.20", 1024, "8.10"),
        ("gemma-2-9b", "resid_post.20", 1024, "8.50"),
    ],
)
def test_operations_are_those_published(shape, site, length, gflop):
    assert f"{flops_per_token(shape, site, length) / 1e9:.2f}" == gflop


def test_a_layer_of_llama_is_436_mflop():
    assert sum(product.flops for product in products(spec_of("llama-3.1-8b"))) == 436_207_616


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("length", [1, 12])
def test_operations_are_those_that_torch_counts(shape: str, length: int):
    """torch counts attention over the whole square; what a causal mask (and a window) leaves of it is counted here."""
    model = random_model(shape)
    model.hf.set_attn_implementation("eager")
    spec = model.cfg
    per_pair = 4 * spec.n_heads * spec.d_head
    for point in [point for point in model.anatomy.points() if point.in_block]:
        tokens = torch.arange(length)[None] % spec.d_vocab
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model.capture(tokens, [Site(point, 1)])
        half = point in (Point.ATTN_SCORES, Point.PATTERN)
        share = {0: 1.0, 1: 0.5 if half else float(point.place >= Point.Z.place)}  # of the attention, by layer
        square = sum(share[layer] * per_pair * length**2 for layer in share)
        causal = sum(share[layer] * per_pair * _seen(length, spec.window(layer)) for layer in share)
        assert sequence_flops(spec, Site(point, 1), length) == counter.get_total_flops() - square + causal, point


def _seen(length: int, window: int | None) -> int:
    at = np.arange(length)
    distance = at[:, None] - at[None]
    return int(((distance >= 0) & (distance < (window or length))).sum())


def test_layers_are_counted_up_to_the_site():
    spec = spec_of("tiny-gemma2")
    one = [sequence_flops(spec, Site(Point.RESID_POST, layer), 20) for layer in range(spec.n_layers)]
    assert sequence_flops(spec, Site(Point.RESID_PRE, 2), 20) == one[1]
    assert sequence_flops(spec, Site.parse("embed"), 20) == 0
    assert sequence_flops(spec, Site.parse("ln_final"), 20) == one[-1]
    scores = sequence_flops(spec, Site(Point.PATTERN, 0), 20) - sequence_flops(spec, Site(Point.K, 0), 20)
    whole = sequence_flops(spec, Site(Point.Z, 0), 20) - sequence_flops(spec, Site(Point.V, 0), 20)
    assert 2 * scores == whole == 4 * spec.n_heads * spec.d_head * _seen(20, 5)
    mean = mean_flops(spec, Site(Point.RESID_POST, 0), [1, 20, 20])
    assert mean == pytest.approx((sequence_flops(spec, Site(Point.RESID_POST, 0), 1) + 2 * one[0]) / 41)


# Models by shape


@pytest.mark.parametrize(
    ("shape", "parameters"),  # as the models' own pages state them
    [("llama-3.1-8b", 8_030_261_248), ("gemma-2-9b", 9_241_705_984), ("smollm2-135m", 134_515_008)],
)
def test_the_shapes_have_the_published_number_of_parameters(shape: str, parameters: int):
    whole = _hugging_face(shape)
    assert sum(p.numel() for p in whole.parameters()) == parameters
    assert default_site(shape).layer is not None and default_site(shape).layer < spec_of(shape).n_layers


def _hugging_face(shape: str) -> torch.nn.Module:
    """The whole model without memory, built by transformers alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(SHAPES[shape].family, **SHAPES[shape].config))


def test_smollm2_is_the_model_of_that_name(packaged):
    """Against the configuration in the packaged weights."""
    assert packaged.n_layers == spec_of("smollm2-135m").n_layers
    ours, theirs = shapes._hf_config("smollm2-135m").to_dict(), packaged.hf.config.to_dict()
    for name in set(SHAPES["smollm2-135m"].config) - {"num_hidden_layers"}:
        assert ours[name] == (pytest.approx(theirs[name]) if name == "rms_norm_eps" else theirs[name]), name


def test_llamas_rotation_is_scaled_and_gemmas_attention_capped():
    llama = shapes._hf_config("llama-3.1-8b").rope_parameters
    assert (llama["rope_type"], llama["factor"], llama["rope_theta"]) == ("llama3", 8.0, 5e5)
    gemma = spec_of("gemma-2-9b")
    assert (gemma.attn_cap, gemma.final_cap, gemma.scale(0)) == (50.0, 30.0, 1 / 16)
    assert [gemma.window(layer) for layer in range(3)] == [4096, None, 4096]


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("upto", ["resid_post.1", "resid_pre.1", "mlp_out.2", "ln_final", "embed"])
def test_a_part_of_a_model_has_the_tensors_of_the_whole_one(shape: str, upto: str):
    site = Site.parse(upto)
    keep = {"resid_post.1": 2, "resid_pre.1": 1, "mlp_out.2": 3, "ln_final": 4, "embed": 0}[upto]
    whole = {name: tensor.shape for name, tensor in _hugging_face(shape).state_dict().items()}
    wanted = {
        name.removeprefix("model."): size
        for name, size in whole.items()
        if name == "model.embed_tokens.weight"
        or (name.startswith("model.layers.") and int(name.split(".")[2]) < keep)
        or (name == "model.norm.weight" and keep == 4)
    }
    model = random_model(shape, upto=site)
    assert {name: tensor.shape for name, tensor in model.hf.state_dict().items()} == wanted
    assert (model.loaded_layers, model.cfg.n_layers) == (keep, 4)


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_random_model_computes_what_transformers_computes(shape: str, dtype: torch.dtype):
    """With these weights: what is not learnt (rotations, Gemma's scale of embeddings) is right, and all is finite."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = random_model(shape, dtype=dtype, seed=3)
    config = AutoConfig.for_model(SHAPES[shape].family, **SHAPES[shape].config)
    theirs = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    theirs.load_state_dict(model.hf.state_dict())
    theirs.set_attn_implementation(model.hf.config._attn_implementation)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        ours = model(tokens)
        assert torch.equal(ours, theirs(tokens).logits)
    assert ours.isfinite().all() and ours.std() > 0 and ours.dtype is dtype


def test_random_weights_are_a_function_of_the_seed():
    first, again, other = (random_model("tiny-gemma2", seed=seed).hf.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrix = "model.layers.2.mlp.up_proj.weight"
    assert not torch.equal(first[matrix], other[matrix])
    assert first[matrix].std().item() == pytest.approx(0.02, rel=0.1)
    assert not first["model.norm.weight"].any()  # Gemma's gain is one plus this
    assert (random_model("tiny-llama").hf.state_dict()["model.norm.weight"] == 1).all()


class _Largest(TorchDispatchMode):
    """The largest float32 tensor that exists outside the meta device."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype is torch.float32 and out.device.type != "meta":
            self.numel = max(self.numel, out.numel())
        return out


def test_weights_never_pass_through_float32():
    with _Largest() as seen:
        model = random_model("tiny-llama", upto="resid_post.1", dtype="bfloat16")
    assert 0 < seen.numel <= 16  # the inverse frequencies
    assert model.dtype is torch.bfloat16 and model.hf.rotary_emb.inv_freq.dtype is torch.float32
    with _Largest() as seen:
        random_model("tiny-llama", upto="resid_post.1", dtype="float32")
    assert seen.numel >= 80 * 48


def test_what_cannot_fit_is_refused_beforehand(monkeypatch):
    monkeypatch.setattr(shapes, "free_memory", lambda device: 8 << 30)
    with pytest.raises(InputError, match=r"llama-3.1-8b \(up to blocks.16.hook_resid_post\) takes 15.8 GiB .* float32"):
        random_model("llama-3.1-8b", upto="resid_post.16", dtype="float32", device="cpu")
    with pytest.raises(InputError, match=r"8\.0 GiB are free on cpu: give an earlier site, a smaller dtype"):
        random_model("gemma-2-9b", dtype="bfloat16", device="cpu")
    with pytest.raises(InputError, match=r"no shape 'llama-4'; expected one of llama-3\.1-8b, gemma-2-9b"):
        random_model("llama-4")
    with pytest.raises(InputError, match="layers, 0 to 3"):
        random_model("tiny-llama", upto="resid_post.4")


def test_eight_billion_parameters_fit_a_machine_of_24_gib():
    """In bfloat16, up to layer 16: by the sum of the tensors themselves."""
    whole = _hugging_face("llama-3.1-8b")
    below = sum(p.numel() for name, p in whole.named_parameters() if "embed" in name or _layer(name) <= 16)
    part = shapes._without_numbers(shapes.truncated_config(shapes._hf_config("llama-3.1-8b"), 17), torch.bfloat16)
    assert shapes.weight_bytes(part) == 2 * (below + 4096)  # the final norm is taken away afterwards
    assert shapes.weight_bytes(part) < 8 << 30


def _layer(name: str) -> float:
    return int(name.split(".")[2]) if ".layers." in name else np.inf


# Documents


def test_synthetic_documents_have_the_lengths_asked_for(tmp_path: Path):
    lengths = [5, 1, 700, 33]
    first = synthetic_tokens(tmp_path / "a", vocabulary=97, lengths=lengths, seed=4)
    assert first.lengths.tolist() == lengths and first.bos is None and first.special_ids == []
    assert first.tokens.max() == 96 and len(np.unique(first[2])) > 90
    again = synthetic_tokens(tmp_path / "b", vocabulary=97, lengths=lengths, seed=4)
    other = synthetic_tokens(tmp_path / "c", vocabulary=97, lengths=lengths, seed=5)
    assert np.array_equal(first.tokens, again.tokens) and not np.array_equal(first.tokens, other.tokens)
    with pytest.raises(InputError, match="none of them empty"):
        synthetic_tokens(tmp_path / "d", vocabulary=97, lengths=[3, 0])


def test_mixed_lengths_follow_the_stated_distribution():
    lengths = shapes.mixed_lengths(3_000_000, seed=1)
    assert sum(lengths) == 3_000_000 and max(lengths) <= 16_384 and min(lengths[:-1]) >= 16
    assert statistics.median(lengths) == pytest.approx(400, rel=0.05)
    assert np.log(lengths).std() == pytest.approx(1.0, rel=0.05)
    assert shapes.mixed_lengths(10) == [10]
    assert shapes.equal_lengths(1000, 256) == [256] * 4 and shapes.equal_lengths(1, 256) == [256]


# Ceilings


def test_products_count_by_their_share_of_the_work(monkeypatch):
    seconds = iter([1.0, 3.0])
    monkeypatch.setattr(ceilings, "seconds_of", lambda call, device, least: next(seconds))
    found = ceilings.matmul_rate([Product("a", 8, 4), Product("b", 8, 100)], 16, torch.float32, "cpu", 0.1)
    assert found == pytest.approx(16 * 2 * 8 * (4 + 100) / 4.0)


def test_the_ceilings_of_a_processor(tmp_path: Path):
    seen: list[str] = []
    found = measure_ceilings(
        spec_of("tiny-llama"), tokens=8, dtype=torch.float32, device="cpu", folder=tmp_path, effort=SMALL,
        done=lambda rate: seen.append(rate.name),
    )  # fmt: skip
    assert seen == list(found.rates) == ["matmul", "memory_copy", "disk_write"]  # nothing to copy to and from
    assert all(len(rate.values) == 2 and min(rate.values) > 0 for rate in found.rates.values())
    assert found.get("host_to_device") is None and found["matmul"].median == found.get("matmul")
    assert found["matmul"].row()["unit"] == "FLOP/s" and "gate 48x80" in found["matmul"].detail
    assert not list(tmp_path.iterdir())


def test_a_call_runs_as_often_as_fills_the_time():
    calls: list[int] = []
    taken = ceilings.seconds_of(lambda: calls.append(1), torch.device("cpu"), 0.002)
    assert 0 < taken < 0.002 and len(calls) > 2  # one to warm up, one to see how long it takes, then many


def test_a_disk_that_cannot_be_measured_is_refused(tmp_path: Path, monkeypatch):
    with pytest.raises(InputError, match="no folder that can be written to"):
        ceilings.disk_rate(tmp_path / "absent", 1 << 10)
    usage = ceilings.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(ceilings.shutil, "disk_usage", lambda folder: usage._replace(free=1 << 20))
    with pytest.raises(InputError, match="1 MiB free and the measurement writes 64 MiB"):
        ceilings.disk_rate(tmp_path, 64 << 20)


def test_the_commit_is_that_of_this_clone_alone(tmp_path: Path, monkeypatch):
    assert {"cpu", "versions", "commit", "date", "arguments", "load_average"} <= measure.environment(["torch"]).keys()
    monkeypatch.setattr(measure, "ROOT", tmp_path)  # an installed package
    assert measure.environment(["torch", "no-such-package"])["commit"] is None


def test_free_memory_respects_the_limit_of_the_group(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4096 kB\n",
        "/sys/fs/cgroup/memory.max": "3000000\n",
        "/sys/fs/cgroup/memory.current": "1000000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path: files[str(path)])
    assert measure.free_memory("cpu") == 2_000_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert measure.free_memory("cpu") == 4096 * 1024


def test_the_peak_is_what_a_call_holds_at_most():
    size = 64 << 20
    base = measure.held_memory("cpu")
    assert base is not None
    kept = torch.ones(size // 4)
    peak = measure.peak_during(lambda: torch.ones(size // 4).sum(), "cpu")
    assert peak is not None and 1.9 * size < peak - base < 2.3 * size
    assert kept[0] == 1
    assert size * 0.9 < (measure.measure(lambda: torch.ones(size // 4).sum()).rss_rise or 0) < size * 1.3


# Extraction


@pytest.fixture
def small(tmp_path: Path):
    model = random_model("tiny-gemma2", upto="resid_post.1")
    tokens = synthetic_tokens(tmp_path / "tokens", vocabulary=97, lengths=[20, 7, 33, 16, 2, 40])
    task = extraction.Task(site=Site.parse("resid_post.1"), max_length=32, token_budget=64)
    return model, tokens, task


def test_an_extraction_gives_a_row_per_sink(small, tmp_path: Path):
    model, tokens, task = small
    limits = Ceilings({"disk_write": Rate("disk_write", "byte/s", (1e9, 3e9, 2e9))})
    (tmp_path / "scratch").mkdir()
    memory, disk = extraction.time_extraction(
        model, tokens, task, tmp_path / "scratch", name="six", repeats=3, seconds=0.0, ceilings=limits
    )
    assert (memory["sink"], disk["sink"]) == ("memory", "disk") and disk["name"] == "six, to disk"
    spec = spec_of("tiny-gemma2")
    lengths = [20, 7, 32, 1, 16, 2, 32, 8]
    by_hand = sum(
        n * 2 * 2 * (48 * 64 + 2 * 48 * 32 + 64 * 48 + 3 * 48 * 80) + 4 * 64 * (_seen(n, 5) + _seen(n, None))
        for n in lengths
        if n > 1  # of a window of one token no row is kept: it is not fed
    )
    fed = sum(n for n in lengths if n > 1)
    assert (spec.n_heads * spec.d_head, disk["tokens"]) == (64, fed)
    assert disk["flops_per_token"] == pytest.approx(by_hand / fed)
    for row in (memory, disk):
        rates = [fed / seconds for seconds in row["seconds"]]
        assert row["values"] == pytest.approx(rates) and row["median"] == pytest.approx(statistics.median(rates))
        shares = [rate * by_hand / fed / ceiling for rate, ceiling in zip(rates, row["matmul"], strict=True)]
        assert row["share"]["max"] == pytest.approx(max(shares))
        assert row["limited_by"] in row["stages"]
    rows = sum(n - 1 for n in lengths)
    assert disk["bytes_per_token"] == pytest.approx(rows * (12 + 2 * 48) / fed)
    assert disk["share_of_bytes"]["share"] == pytest.approx(disk["median"] * disk["bytes_per_token"] / 2e9)
    assert memory["share_of_bytes"] is None
    assert memory["stages"]["disk"] == 0 < disk["stages"]["disk"]
    assert not list((tmp_path / "scratch").iterdir())


def test_to_memory_runs_every_batch_and_writes_nothing(small, tmp_path: Path):
    model, tokens, task = small
    ready = extraction._prepared(model, tokens, task, tmp_path / "store")
    seen: list[int] = []
    capture = model.capture
    model.capture = lambda tokens, sites, lengths: (
        seen.append(int(lengths.sum())) or capture(tokens, sites, lengths=lengths)
    )
    extraction.to_memory(ready)
    assert len(seen) == len(ready.plan.buckets) > 1 and sum(seen) == ready.plan.n_tokens
    assert not (tmp_path / "store").exists()
    assert ready.stages.as_dict()["forward"] > 0 and ready.stages.as_dict()["disk"] == 0


def test_what_limits_is_the_busiest_stage_or_the_tokeniser():
    stages = Stages()
    for name, seconds in {"forward": 3.0, "disk": 4.0, "writer": 1.0, "stall": 9.0}.items():
        stages.add(name, seconds)
    assert extraction.limiting(stages, 1000.0) == "disk"
    assert extraction.limiting(stages, 1000.0, tokeniser=5000.0) == "disk"
    assert extraction.limiting(stages, 1000.0, tokeniser=999.0) == "tokeniser"


def test_runs_are_as_long_as_the_ceiling_says():
    assert extraction.suited_tokens(50e9, 0.1e9, seconds=10, least=100) == 5000
    assert extraction.suited_tokens(50e9, 10e9, seconds=10, least=100) == 100


def test_the_tokeniser_has_a_row(packaged, tmp_path: Path):
    def documents():
        yield from (Document(f"{n}", f"Document {n} says that {n} comes before {n + 1}.") for n in range(40))
        raise AssertionError("more text was read than is tokenised")

    row = extraction.time_tokeniser(packaged.tokenizer, documents(), tmp_path, n_tokens=100, repeats=2)
    assert row["measurement"] == "tokeniser" and len(row["values"]) == 2 and row["min"] > 0
    assert not list(tmp_path.iterdir())


# SAE steps


@pytest.mark.parametrize("architecture", bench.DENSE)
def test_the_dense_step_has_the_gradients_of_the_production_step(architecture: str):
    """Same weights, same batch: mean squared error against the fraction of variance, a constant factor apart."""
    task = bench.Task(d=12, f=60, k=5, batch=32, architecture=architecture)  # type: ignore[arg-type]
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(1))
    state = bench.new_state(task, x)
    batch = state.frame.scaled(x)
    objective(state, batch).loss.backward()
    sparse = {name: p.grad.clone() for name, p in state.sae.named_parameters()}
    state.sae.zero_grad()
    bench.dense_loss(state, batch.x).backward()
    for name, parameter in state.sae.named_parameters():
        dense = parameter.grad * 12 / state.frame.variance
        assert (dense - sparse[name]).abs().max() < 1e-5 * sparse[name].abs().max(), name


def test_the_dense_step_trains():
    state = bench.new_state(bench.Task(d=12, f=60, k=5, batch=64), x := torch.randn(64, 12))
    for group in state.adam.param_groups:
        group["lr"] = 1e-2
    scaled = state.frame.scaled(x).x
    losses = [float(bench.dense_step(state, scaled)) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert torch.allclose(state.sae.W_dec.norm(dim=1), torch.ones(60))


def test_the_necessary_products_of_a_step():
    """Against torch's own count of the dense ones: of its six n d f, the encoder's one stays whole."""
    task = bench.Task(d=16, f=64, k=4, batch=8)
    assert task.flops == 2 * 8 * 16 * 64 + 4 * (2 * 8 * 4 * 16)
    state = bench.new_state(task, x := torch.randn(8, 16))
    with FlopCounterMode(display=False) as counter:
        bench.dense_loss(state, state.frame.scaled(x).x)
    assert counter.get_total_flops() == 2 * (2 * 8 * 16 * 64)  # encode, decode
    assert task.parameters == sum(p.numel() for p in state.sae.parameters())


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_steps_give_rows(architecture: str):
    task = bench.Task(d=16, f=64, k=4, batch=32, architecture=architecture)  # type: ignore[arg-type]
    limits = Ceilings({"memory_copy": Rate("memory_copy", "byte/s", (1e10,))})
    rows = {row["step"]: row for row in bench.time_steps(task, repeats=3, seconds=0.0, ceilings=limits)}
    assert list(rows) == (["production", "dense", "ratio"] if architecture == "topk" else ["production"])
    row = rows["production"]
    assert row["memory"]["stated"] > 0 and row["limited_by"] in ("products", "optimiser's traffic")
    shares = [task.flops / rate / taken for rate, taken in zip(row["matmul"], row["seconds"], strict=True)]
    assert row["share"]["min"] == pytest.approx(min(shares))
    assert row["seconds_of_traffic"] == pytest.approx(32 * (2 * 16 * 64 + 16 + 64) / 1e10)
    if "dense" in rows:
        ratios = [b / a for a, b in zip(row["seconds"], rows["dense"]["seconds"], strict=True)]
        assert rows["ratio"]["values"] == pytest.approx(ratios)


def test_a_step_that_cannot_fit_is_refused_beforehand(monkeypatch):
    monkeypatch.setattr(bench, "free_memory", lambda device: 4 << 30)
    with pytest.raises(InputError, match=r"131,072 features at width 4,096 .* about 1[78]\.\d GiB .* 4.0 GiB are free"):
        bench.time_steps(bench.Task(d=4096, f=131_072, k=50, batch=1024))
    with pytest.raises(InputError, match="repeats must be at least 1"):
        bench.time_steps(bench.Task(d=16, f=64), repeats=0)


# Rows and the command


def test_amounts_are_readable():
    assert report.amount(47_887_786_395.0, "FLOP/s") == "47.9 GFLOP/s"
    assert report.amount(1.1e9, "byte/s") == "1.1 GB/s"
    assert report.amount(75_123.4, "tokens/s") == "75,123 tokens/s"
    assert report.amount(7.126, "tokens/s") == "7.13 tokens/s"


def test_the_command_measures_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "rows" / "bench.jsonl"
    given = ["--shape", "tiny-llama", "--quick", "--repeats", "2", "--device", "cpu", "--out", str(out)]
    (tmp_path / "disk").mkdir()
    assert main(["bench", *given, "--folder", str(tmp_path / "disk")]) == 0
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    assert [(row["measurement"], row["name"].split(",")[0]) for row in rows] == [
        *(("ceiling", name) for name in ("matmul", "memory_copy", "disk_write")),
        *(("extraction", f"{mix} lengths") for mix in ("equal", "equal", "mixed", "mixed")),
        *(("sae step", name) for name in ("production", "dense", "production over dense")),
    ]
    for row in rows:
        assert {"unit", "median", "min", "max", "values", "environment", "arguments"} <= row.keys()
        assert {"cpu", "cores", "versions", "commit", "date", "load_average"} <= row["environment"].keys()
        assert row["arguments"]["shape"] == "tiny-llama" and row["arguments"]["repeats"] == 2
        assert len(row["values"]) == 2 and row["min"] <= row["median"] <= row["max"]
    printed = capsys.readouterr().out
    assert "extraction: mixed lengths, to disk" in printed and "tokens/s" in printed and "load average" in printed
    assert not list((tmp_path / "disk").iterdir())


def test_an_interruption_keeps_what_was_measured(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(config):
        yield report.make_row("ceiling", "matmul", "FLOP/s", [2e9, 4e9, 3e9])
        raise KeyboardInterrupt

    monkeypatch.setattr("saes.bench_run.measurements", interrupted)
    out = tmp_path / "bench.jsonl"
    out.write_text('{"earlier": "run"}\n')
    assert main(["bench", "--shape", "tiny-llama", "--out", str(out)]) == 130
    lines = out.read_text().splitlines()
    assert json.loads(lines[0]) == {"earlier": "run"} and json.loads(lines[1])["median"] == 3e9
    printed = capsys.readouterr().out
    assert "interrupted; measured so far:" in printed and printed.count("3 GFLOP/s (2 G to 4 G)") == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--shape", "llama-9"], "there is no shape 'llama-9'; expected one of llama-3.1-8b"),
        (["--shape", "tiny-llama", "--model", "smollm2-135m"], "were both given; give one of them"),
        (["--model", "some/model"], "some/model is no preset, so its site is not known"),
        (["--shape", "tiny-llama", "--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--shape", "tiny-llama", "--folder", "/no/such/folder"], "/no/such/folder does not exist"),
        (["--shape", "tiny-llama", "--site", "resid_post.9"], "site blocks.9.hook_resid_post does not exist"),
        (["--shape", "tiny-llama", "--out", "."], "is a folder; give a file for the rows"),
        (["--shape", "tiny-llama", "--dtype", "float7"], "'float7' is no dtype"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_status_2(given, said, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--quick", *given]) == 2
    assert said in capsys.readouterr().err


def test_the_options_of_the_command_are_those_of_the_configuration():
    from dataclasses import fields

    from midlens.console import Planned
    from saes.bench_run import BenchConfig

    own, shared = ({field.name for field in fields(kind)} for kind in (command.Bench, Planned))
    assert own - shared - {field.name for field in fields(BenchConfig)} == {"out"}

"""Sweeps: every member is what `fit` makes alone, each batch is read once, kills and divergences, names, summary."""

import dataclasses
import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from interp.errors import InputError
from interp.loop import checkpoints
from interp.model import HookedModel
from interp.sealing import only_writer
from interp.store import ActivationBatch, ActivationStore
from interp.stream import ActivationStream
from saes.memory import memory_of
from saes.recipe import TrainConfig
from saes.sae import CFG, SAE
from saes.sweep import Grid, Shared, estimate, load_grids, pareto, sweep
from saes.sweep_config import named
from saes.sweep_summary import Summary
from saes.train import fit
from saes.widths import Shape
from tests import planted
from tests.killing import begin, kill_where_it_waits
from tests.rows import SITE, MemoryRows, sparse_mixture
from tests.tiny_models import tiny
from tests.toy_store import ToyModel, token_file

SMALL = {"d_sae": 32, "k": 3, "batch_size": 64, "lr": 3e-3, "tokens": 1280, "dead_after_tokens": 300, "sample": 256,
         "log_every": 5, "checkpoint_every": 5}  # fmt: skip
MIXED = {
    "topk": TrainConfig(**SMALL),
    "wide": TrainConfig(**{**SMALL, "d_sae": 48, "k": 5, "lr": 1e-3}),
    "batchtopk": TrainConfig(**SMALL, architecture="batchtopk"),
    "jumprelu": TrainConfig(**SMALL, architecture="jumprelu"),
    "standard": TrainConfig(**{**SMALL, "tokens": 640}, architecture="standard"),
}
FILES = (CFG, "sae_weights.safetensors", "training/metrics.jsonl", "training/run.json")


class CountedRows(MemoryRows):
    """Counts how often each batch is taken, and does not say its width: it takes one batch to learn it."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        del self.manifest["row_shapes"]
        self.read: Counter[tuple[int, int, int]] = Counter()

    def batches(self, sites, size, *, seed, first=0, epoch=0):
        for number, batch in enumerate(super().batches(sites, size, seed=seed, first=first, epoch=epoch), first):
            self.read[seed, epoch, number] += 1
            yield batch


def mixture(n: int = 320) -> CountedRows:
    return CountedRows(sparse_mixture(n)[0])


def called(config: TrainConfig) -> str:
    """The name that a sweep gives it."""
    return next(iter(named([config])))


def assert_equal_folders(member: Path, alone: Path) -> None:
    assert {str(p.relative_to(member)) for p in member.rglob("*")} == {
        str(p.relative_to(alone)) for p in alone.rglob("*")
    }
    for name in FILES:
        assert (member / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fit` makes of each member."""
    folder = tmp_path_factory.mktemp("alone")
    for name, config in MIXED.items():
        fit(mixture(), config, folder / name, site=SITE)
    return folder


def test_every_member_is_the_sae_trained_alone_and_each_batch_is_read_once(tmp_path, alone):
    """Five architectures, two lengths, four epochs of five batches."""
    rows = mixture()
    summary = sweep(rows, MIXED, tmp_path, site=SITE, show=False)
    assert rows.read == Counter((0, *divmod(step, 5)) for step in range(20))
    for name in MIXED:
        assert_equal_folders(tmp_path / name, alone / name)
        lines = (alone / name / "training/metrics.jsonl").read_text().splitlines()
        assert summary.figures()[name] == json.loads(lines[-1])
    rows.read.clear()
    sweep(rows, MIXED, tmp_path, site=SITE, show=False)
    assert sum(rows.read.values()) == 1  # these rows do not say their width


def test_members_of_another_seed_or_batch_size_have_a_read_of_their_own(tmp_path):
    rows = mixture()
    base = TrainConfig(**{**SMALL, "tokens": 640})
    sweep(rows, Grid(seed=(0, 1), k=(2, 3), base=base), tmp_path / "sweep", site=SITE, show=False)
    assert rows.read == Counter((seed, *divmod(step, 5)) for seed in (0, 1) for step in range(10))
    alone = TrainConfig(**{**SMALL, "tokens": 640, "seed": 1, "k": 2})
    fit(mixture(), alone, tmp_path / "alone", site=SITE)
    assert_equal_folders(tmp_path / "sweep" / called(alone), tmp_path / "alone")


def test_a_stream_runs_the_model_once_however_many_members(tmp_path):
    tokens = token_file(tmp_path / "tokens", [40] * 30)
    configs = [TrainConfig(d_sae=12, k=k, batch_size=100, epochs=2, sample=200, lr=1e-3) for k in (1, 2, 3)]

    def streamed() -> tuple[ToyModel, ActivationStream]:
        model = ToyModel()
        sizes = {"token_budget": 160, "buffer_bytes": 2**15}
        return model, ActivationStream(model, tokens, ["resid_post.1"], dtype="float32", **sizes)

    model, stream = streamed()
    sweep(stream, configs, tmp_path / "three", site="resid_post.1", show=False)
    read, again = streamed()
    batches = [batch for epoch in (0, 1) for batch in again.batches(["resid_post.1"], 100, seed=0, epoch=epoch)]
    assert len(batches) == 24 and model.passes == read.passes > 10  # no pass for the sample that each starts from
    fit(streamed()[1], configs[1], tmp_path / "alone", site="resid_post.1")
    assert_equal_folders(tmp_path / "three" / called(configs[1]), tmp_path / "alone")


SWEEPING = """
from saes.sweep import sweep
from tests.rows import SITE
from tests.test_sweep import MIXED, mixture
members = {name: MIXED[name] for name in ("topk", "jumprelu", "standard")}
sweep(mixture(), members, path / "sweep", site=SITE, show=False)
"""


def test_a_killed_sweep_goes_on_at_the_slowest_member_and_takes_in_new_ones(tmp_path, alone):
    """Killed after 12 steps each (standard has finished); jumprelu is set back a checkpoint; two members are new."""
    kill_where_it_waits(begin(SWEEPING, tmp_path, wait=3 * 10 + 2 * 2), tmp_path)
    folder = tmp_path / "sweep"
    held = checkpoints(folder / "jumprelu" / "training")
    assert [path.name for path in held] == [f"step-{step:09d}.safetensors" for step in (5, 10)]
    held[-1].unlink()
    assert (folder / "standard" / CFG).exists() and not (folder / "topk" / CFG).exists()

    rows = mixture()
    members = {name: MIXED[name] for name in ("topk", "jumprelu", "standard")}
    sweep(rows, members, folder, site=SITE, show=False)
    # Four batches for the sample they start from; the stream then goes on at step 5, jumprelu's.
    assert rows.read == Counter((0, *divmod(step, 5)) for step in [*range(4), *range(5, 20)])
    rows.read.clear()
    sweep(rows, MIXED, folder, site=SITE, show=False)
    assert rows.read == Counter((0, *divmod(step, 5)) for step in range(20))  # for wide and batchtopk
    for name in MIXED:
        assert_equal_folders(folder / name, alone / name)


def test_a_diverging_member_is_dropped_and_the_others_are_untouched(tmp_path, caplog, alone):
    rows, members = mixture(), {"good": MIXED["topk"], "bad": TrainConfig(**{**SMALL, "lr": 1e38})}
    with caplog.at_level(logging.WARNING):
        summary = sweep(rows, members, tmp_path / "sweep", site=SITE, show=False)
    assert "bad was dropped: " in caplog.text and "training diverged" in caplog.text
    assert_equal_folders(tmp_path / "sweep" / "good", alone / "topk")
    with pytest.raises(InputError) as error:
        fit(mixture(), members["bad"], tmp_path / "bad", site=SITE)
    assert summary.records["bad"]["error"] == str(error.value)
    assert [r["status"] for r in summary.records.values()] == ["finished", "diverged"]
    assert set(summary.figures()) == {"good"} and str(error.value) in summary.text()
    assert str(error.value).replace("'", "&#x27;") in (tmp_path / "sweep" / "sweep.html").read_text()
    rows.read.clear()
    again = sweep(rows, members, tmp_path / "sweep", site=SITE, show=False)  # it would diverge again
    assert sum(rows.read.values()) == 1 and again.records == summary.records


def test_activations_that_are_not_finite_end_the_sweep(tmp_path):
    rows = mixture()
    order = [int(r) for b in MemoryRows(rows.x).batches([SITE], 64, seed=0) for r in b.doc * 10 + b.position]
    rows.x[order[64 * 4 + 3], 1] = float("inf")
    with pytest.raises(InputError, match=rf"1 activations of step 5 hold NaN .* document {order[259] // 10}, position"):
        sweep(rows, {name: MIXED[name] for name in ("topk", "batchtopk")}, tmp_path, site=SITE, show=False)


def test_transcoders_and_crosscoders(tmp_path):
    from interp.sites import Site

    sites = [SITE, Site.parse("mlp_out.3")]
    for name, places in (("across", {"site": SITE, "site_out": sites[1]}), ("both", {"site": sites})):
        rows = CountedRows(sparse_mixture(200)[0], sites)
        config = TrainConfig(**{**SMALL, "tokens": 640}, architecture="batchtopk")
        sweep(rows, Grid(k=(2, 3), base=config), tmp_path / "sweep" / name, **places, show=False)
        fit(CountedRows(sparse_mixture(200)[0], sites), config, tmp_path / name, **places)
        assert_equal_folders(tmp_path / "sweep" / name / called(config), tmp_path / name)
        assert set(rows.read.values()) == {1}


def test_held_out_figures_are_those_of_the_evaluation(tmp_path):
    """Each member against `saes.evaluate`; a second call measures nothing, other held-out rows measure all anew."""
    from saes.row_quality import measure_rows, threshold_of

    x = sparse_mixture(600)[0]
    tokens = planted.token_file(tmp_path / "tokens", [30] * 10)
    doc, position = torch.arange(300) // 30, torch.arange(300) % 30
    rows = planted.store(tmp_path / "train", tokens, x[:300], doc, position)
    held_out = planted.store(tmp_path / "held-out", tokens, x[300:], doc, position)
    other = planted.store(tmp_path / "other", tokens, x[300:400], doc[:100], position[:100])
    options = {"site": planted.SITE, "show": False}
    grid = Grid(k=(2, 4), base={**SMALL, "tokens": 640})
    first = sweep(rows, Grid(k=(2,), base=grid.base), tmp_path / "sweep", **options)
    assert not first.held_out
    found = sweep(rows, grid, tmp_path / "sweep", evaluate_on=held_out, **options)
    assert found.held_out and list(found.figures()) == [called(config) for config in grid.configs()]
    for name, figures in found.figures().items():
        sae = SAE.load(tmp_path / "sweep" / name)
        threshold = threshold_of(sae, held_out, planted.SITE)
        expected = measure_rows(sae, held_out, planted.SITE, threshold=threshold)
        assert figures["explained_variance"] == expected.kept.explained_variance and figures["delta_ce"] is None
        assert figures["l0"] == pytest.approx((sae.encode(x[300:]).values > 0).sum().item() / 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saes.sweep_measure.measure_rows", None)
        assert sweep(rows, grid, tmp_path / "sweep", evaluate_on=held_out, **options).records == found.records
    anew = sweep(rows, Grid(k=(2,), base=grid.base), tmp_path / "sweep", evaluate_on=other, **options)
    assert anew.held_out and all(figures["n_tokens"] == 100 for figures in anew.figures().values())
    assert Summary.load(tmp_path / "sweep").records == anew.records
    with pytest.raises(InputError, match="y is one of explained_variance, delta_ce"):
        pareto(anew, "loss")
    with pytest.raises(InputError, match="no finished member with L0 over 0 and a value of delta_ce"):
        pareto(tmp_path / "sweep", "delta_ce")
    with pytest.raises(InputError, match=r"holds a sweep with another store .*planted"):
        sweep(held_out, grid, tmp_path / "sweep", **options)


def two_stores(folder: Path):
    """Rows to train on and rows held out."""
    x = sparse_mixture(600)[0]
    tokens = planted.token_file(folder / "tokens", [30] * 10)
    place = torch.arange(300) // 30, torch.arange(300) % 30
    return tuple(
        planted.store(folder / name, tokens, rows, *place) for name, rows in (("train", x[:300]), ("held-out", x[300:]))
    )


def test_a_member_trained_anew_is_measured_anew(tmp_path):
    """Its folder deleted, the same recipe leads to another SAE where defaults are others by now."""
    rows, held_out = two_stores(tmp_path)
    grid = {"jump": TrainConfig(**SMALL, architecture="jumprelu"), "topk": TrainConfig(**SMALL)}
    options = {"site": planted.SITE, "evaluate_on": held_out, "show": False}
    with pytest.MonkeyPatch.context() as before:
        before.setattr(TrainConfig, "_mean_read", lambda self, _: 0.0 if self.architecture == "jumprelu" else 0.5)
        first = sweep(rows, grid, tmp_path / "sweep", **options).figures()
    shutil.rmtree(tmp_path / "sweep" / "jump")
    found = sweep(rows, grid, tmp_path / "sweep", **options).figures()
    assert found == sweep(rows, grid, tmp_path / "fresh", **options).figures()
    assert found["topk"] == first["topk"] and found["jump"]["explained_variance"] != first["jump"]["explained_variance"]
    shutil.rmtree(tmp_path / "sweep" / "jump")
    left = sweep(rows, {"topk": grid["topk"]}, tmp_path / "sweep", **options)
    assert list(left.figures()) == ["topk"] and left.records["jump"]["status"] == "unfinished"


def test_figures_stay_when_a_default_is_written_out(tmp_path):
    """The same run, so the same SAE and what is known of it; nothing is measured again."""
    rows, held_out = two_stores(tmp_path)
    recipe = TrainConfig(**SMALL)
    first = sweep(rows, {"a": recipe}, tmp_path / "sweep", site=planted.SITE, evaluate_on=held_out, show=False)
    written = dataclasses.replace(recipe, mean_read=0.5, k_start=3)
    again = sweep(rows, {"a": written}, tmp_path / "sweep", site=planted.SITE, show=False)
    assert again.held_out and again.figures() == first.figures()


def test_held_out_rows_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path):
    tokens = planted.token_file(tmp_path / "tokens", [30] * 4)
    doc, position, x = torch.arange(120) // 30, torch.arange(120) % 30, sparse_mixture(120)[0]

    def stored(name: str, acts: torch.Tensor, *, model: str = "planted", **others) -> ActivationStore:
        store = planted.store(tmp_path / name, tokens, acts, doc[: len(acts)], position[: len(acts)], others=others)
        manifest = json.loads((store.path / "manifest.json").read_text())
        manifest["parts"][0]["spec"]["model"] = model
        (store.path / "manifest.json").write_text(json.dumps(manifest))
        return ActivationStore.open(store.path)

    second, named_model = "blocks.1.hook_mlp_out", HookedModel.wrap(tiny("llama"))
    named_model.name = "gpt2"
    rows = stored("rows", x, **{second: x[:, :5]})
    options = {"site": planted.SITE, "show": False}
    refused = [
        (stored("narrow", x[:, :7]), {}, "holds activations of width 7, the rows to train on have 16"),
        (stored("other", x, model="gpt2"), {}, "holds activations of gpt2, the rows to train on are of planted"),
        (stored("one", x), {"site_out": second}, f"holds {planted.SITE}, not {second}"),
        (stored("out", x, **{second: x[:, :4]}), {"site_out": second}, "of width 16 and 4, .* have 16 and 5"),
        (rows, {"model": named_model, "tokens": tokens}, "next-token loss was asked for in .*, the rows .* of planted"),
    ]
    for number, (held_out, more, message) in enumerate(refused):
        with pytest.raises(InputError, match=message):
            config = TrainConfig(**{**SMALL, "tokens": 64})
            sweep(rows, [config], tmp_path / f"{number}", evaluate_on=held_out, **options | more)
        assert not list(tmp_path.glob(f"{number}/*/training"))
    unnamed = stored("copy", x, model="hub/Planted")  # another spelling of the same name
    config = TrainConfig(**{**SMALL, "tokens": 64})
    assert sweep(rows, [config], tmp_path / "sweep", evaluate_on=unnamed, **options).held_out


def test_grid_leaves_out_what_an_architecture_does_not_use_and_merges():
    grid = Grid(
        architecture=("topk", "standard", "jumprelu"),
        d_sae=(32, 64),
        k=(4, 8),
        sparsity=(0.1, 0.2),
        base={"epochs": 2.0},
    )
    made = grid.configs()
    count = Counter(config.architecture for config in made)
    assert count == {"topk": 4, "standard": 4, "jumprelu": 8} and len(set(made)) == 16
    assert {c.k for c in made if c.architecture == "standard"} == {TrainConfig().k}
    assert {c.sparsity for c in made if c.architecture == "topk"} == {None}
    assert {c.epochs for c in made} == {2.0}
    tanh = Grid(
        architecture=("jumprelu", "topk"), k=(4, 8), base={"penalty": "tanh", "sparsity": 0.1, "tanh_scale": 3.0}
    ).configs()
    assert [(c.architecture, c.k, c.tanh_scale) for c in tanh] == [
        ("jumprelu", 32, 3.0),
        ("topk", 4, None),
        ("topk", 8, None),
    ]
    base = TrainConfig(d_sae=16, k=2, seed=3)
    assert Grid(expansion=(2,), base=base).configs() == [TrainConfig(expansion=2, k=2, seed=3)]


def test_names_are_readable_and_differ():
    assert list(named(Grid(k=(32,)))) == ["topk-x8-k32-s0"]
    several = Grid(architecture=("standard", "jumprelu", "batchtopk"), expansion=(4,), lr=(1e-3,), seed=(1,))
    assert list(named(several)) == [
        "standard-x4-lr0.001-s1",
        "jumprelu-x4-k32-lr0.001-s1",
        "batchtopk-x4-k32-lr0.001-s1",
    ]
    base = TrainConfig()
    close = {
        "topk-x8-k32-lr0.00101-s0": TrainConfig(lr=1.01e-3),
        "topk-x8-k32-lr0.0010100001-s0": TrainConfig(lr=1.0100001e-3),
        "topk-x8-k32-lr0.00102-s0-clip0.5": TrainConfig(lr=1.02e-3, clip=0.5),
        "topk-w4608-k32-s0": TrainConfig(d_sae=4608),
        "topk-w4608-x4-k32-s0": TrainConfig(d_sae=4608, expansion=4),
        "standard-x8-sparsity0.1-s0": TrainConfig(architecture="standard", sparsity=0.1),
        "standard-x8-s0": TrainConfig(architecture="standard"),
        "standard-x8-k3-s0": TrainConfig(architecture="standard", k=3),
        "topk-x8-k32-s0-betas0_0.999": TrainConfig(betas=(0.0, 0.999)),
        "topk-x8-k32-s0-epochs2": TrainConfig(epochs=2.0),
    }
    assert named([base, *close.values()]) == {"topk-x8-k32-s0": base} | close
    assert list(named([TrainConfig(epochs=2)])) == ["topk-x8-k32-s0-epochs2"]
    groups = [(0.1,) * 10, (0.1,) * 8 + (0.05,) * 4, (0.01,) * 100, (0.01,) * 98 + (0.005,) * 4]
    long = list(named([TrainConfig(architecture="matryoshka_batchtopk", groups=parts) for parts in groups]))
    assert len(set(long)) == 4 and all(len(name) <= 150 for name in long) and long[2][:141] == long[3][:141]


def test_a_member_keeps_its_name_and_folder_when_others_join(tmp_path):
    rows, config = mixture(), TrainConfig(**{**SMALL, "tokens": 640})
    first = sweep(rows, [config], tmp_path, site=SITE, show=False)
    rows.read.clear()
    other = TrainConfig(**{**SMALL, "tokens": 640, "warmup": 0.2})
    both = sweep(rows, [config, other], tmp_path, site=SITE, show=False)
    assert list(both.records) == [called(config), called(other)] and set(both.figures()) == set(both.records)
    assert both.records[called(config)] == first.records[called(config)]
    assert list(sweep(rows, [config], tmp_path, site=SITE, show=False).records) == list(both.records)


def test_grids_from_files(tmp_path):
    path = tmp_path / "grid.json"
    value = {"architecture": ["topk", "matryoshka_batchtopk"], "k": 4, "lr": [1e-3, 2], "base": {"groups": [0.5, 0.5]}}
    path.write_text(json.dumps(value))
    made = load_grids(path)
    assert [(c.architecture, c.lr, c.groups) for c in made] == [
        ("topk", 1e-3, None),
        ("topk", 2, None),
        ("matryoshka_batchtopk", 1e-3, (0.5, 0.5)),
        ("matryoshka_batchtopk", 2, (0.5, 0.5)),
    ]
    path.write_text(json.dumps([value, {"k": 4, "lr": 1e-3}, {"k": 5}]))
    assert load_grids(path) == [*made, TrainConfig(k=5)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"width": [32]}, r"unknown keys in a grid: \['width'\]. It has architecture, d_sae, .* inside base"),
        ({"base": {"width": 3}}, r"unknown settings in a grid's base: \['width'\]; known are architecture"),
        ({"base": [1]}, r"a grid's base is an object of settings, got \[1\]"),
        ([{"k": "16"}], "k='16' in a grid: expected int"),
        ({"k": [True]}, "k=True in a grid: expected int"),
        ({"d_sae": 3, "expansion": 2}, "d_sae or expansion, not both"),
        ({"architecture": "relu"}, "architecture is one of topk, .*, got 'relu'"),
        ({"architecture": "topk", "sparsity": 0.1}, r"sparsity in a grid would be without effect: .* \(topk\) uses it"),
        ({"base": {"bandwidth": 0.1}}, "bandwidth in a grid would be without effect"),
        ("topk", "a grid is an object with some of architecture, .*, got 'topk'"),
        ({"lr": -1.0}, "lr must be positive, got -1.0"),
        ({"k": [], "lr": [], "seed": 1}, "k, lr in a grid: an empty list; leave out what is not varied"),
    ],
)
def test_grids_that_cannot_be_are_refused(tmp_path, value, message):
    (tmp_path / "grid.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=message):
        load_grids(tmp_path / "grid.json")


def test_sweeps_that_cannot_be_are_refused_before_anything_is_trained(tmp_path):
    rows, folder = mixture(), tmp_path / "sweep"
    with pytest.raises(InputError, match="k=64 active features do not fit an SAE of d_sae=32"):
        sweep(rows, Grid(k=(3, 64), base=SMALL), folder, site=SITE, show=False)
    assert not list(folder.iterdir())
    with pytest.raises(InputError, match="a sweep without members"):
        sweep(rows, [], folder, site=SITE, show=False)
    with pytest.raises(InputError, match="same recipe under different names"):
        sweep(rows, {"a": TrainConfig(), "b": TrainConfig()}, folder, site=SITE, show=False)
    with pytest.raises(InputError, match=r"'\.\./a' is no name of a member"):
        sweep(rows, {"../a": TrainConfig()}, folder, site=SITE, show=False)
    for taken in ("sweep.json", "sweep.html"):
        with pytest.raises(InputError, match=f"no member can be called '{taken}'"):
            sweep(rows, {taken: TrainConfig()}, folder, site=SITE, show=False)
    with pytest.raises(InputError, match="the store holds no activations"):
        sweep(MemoryRows(torch.zeros(0, 4)), Grid(), folder, site=SITE, show=False)
    with pytest.raises(InputError, match="needs all three of model, tokens and evaluate_on"):
        sweep(rows, Grid(), folder, site=SITE, tokens=token_file(tmp_path / "tokens", [9]), show=False)
    sweep(rows, {"a": TrainConfig(**{**SMALL, "tokens": 64})}, folder, site=SITE, show=False)
    with pytest.raises(InputError, match=r"other settings \(k: 3 there, 4 asked for\)"):
        sweep(rows, {"a": TrainConfig(**{**SMALL, "tokens": 64, "k": 4})}, folder, site=SITE, show=False)
    with only_writer(folder), pytest.raises(InputError, match="another process is writing"):
        sweep(rows, Grid(), folder, site=SITE, show=False)


def test_memory_is_stated_before_the_start(tmp_path):
    lines: list[str] = []
    config = TrainConfig(**{**SMALL, "tokens": 64})
    sweep(mixture(), Grid(k=(2, 3), base=config), tmp_path, site=SITE, show=False, announce=lines.append)
    assert len(lines) == 1 and lines[0].startswith("2 SAEs from one stream: ")
    parameters = 131_072 * (2 * 4096 + 1) + 4096
    configs = [TrainConfig(d_sae=131_072, k=k, batch_size=4096) for k in (32, 64, 48)]
    said, alone = estimate(configs, Shape((4096,)), 4096), memory_of(configs[1], Shape((4096,)).of(configs[1]))
    assert f"3 SAEs from one stream: {3 * 12 * parameters / 2**30:.2f} GiB for weights" in said
    assert f"about {(alone.peak - alone.held) / 2**30:.2f} GiB for a step on 4,096 rows" in said, "of the one of most k"


def test_trackers_get_every_member(tmp_path):
    from tests.test_trackers import points

    config = TrainConfig(**{**SMALL, "tokens": 1280})
    grid = Grid(k=(2, 3), base=config)
    sweep(mixture(), grid, tmp_path / "sweep", site=SITE, show=False, track=f"tensorboard:{tmp_path / 'tb'}")
    for config in grid.configs():
        (folder,) = (tmp_path / "tb").glob(f"{called(config)}-????????")
        found = points(folder)
        assert found["l0"] == [(step, pytest.approx(config.k)) for step in (5, 10, 15, 20)]


def test_a_stream_taken_from_the_middle_of_its_head():
    """`Shared` gives the first batches to all, then goes on with the same iterator."""
    from saes.fitting import TrainedSites, endless

    rows = mixture(200)
    order = endless(MemoryRows(rows.x), [SITE], 64, seed=0, first=0)
    expected = [b.position for b, _ in zip(order, range(9), strict=False)]
    for first, reads in ((0, range(9)), (2, range(9)), (3, range(9)), (5, [0, 1, 2, 5, 6, 7, 8])):
        rows.read.clear()
        with Shared(rows, TrainedSites.parse(SITE), 0, 64) as shared:
            starts: list[ActivationBatch] = []
            for n in (3, 1):
                starts = [b for b, _ in zip(shared.batches([SITE], 64, seed=0), range(n), strict=False)]
            assert torch.equal(starts[0].position, expected[0])
            found = [b.position for b, _ in zip(shared.stream(first), range(9 - first), strict=False)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected[first:], strict=True))
        assert rows.read.keys() >= {(0, *divmod(n, 4)) for n in reads} and max(rows.read.values()) == 1

"""`midlens sweep`, and `midlens train` beyond a store and one site, as a user types them."""

import json
from pathlib import Path

import pytest

from interp.extract import extract
from interp.model import HookedModel
from interp.tokenfile import TokenFile
from midlens.__main__ import main
from saes.evaluate import evaluate
from saes.recipe import TrainConfig
from saes.sae import CFG, SAE
from saes.sweep import Summary
from saes.train import fit
from tests.test_trackers import only, points
from tests.tiny_folder import tiny_folder
from tests.toy_store import token_file

SITES = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder, a corpus, a store of it and one of held-out text."""
    folder = tmp_path_factory.mktemp("source")
    tiny_folder(folder)
    model = HookedModel.load(str(folder / "model"), device="cpu")
    for name, seed in (("train", 1), ("held-out", 2)):
        tokens = token_file(folder / f"{name}.tokens", [30] * 20, seed=seed)
        extract(model, tokens, SITES, folder / name, progress=False, store_dtype="float32")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_sweep_of_a_store_with_delta_ce(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = [
        "sweep", "--store", source / "train", "--site", "resid_post.0", "--out", tmp_path / "sweep", "--device", "cpu",
        "--architectures", "topk", "standard", "--k", "2", "4", "--widths", "24", "--lr", "3e-3", "--sparsity", "0.05",
        "--base.epochs", "1", "--base.batch-size", "128", "--held-out", source / "held-out",
        "--tokens", source / "held-out.tokens", "--loss-tokens", "100",
    ]  # fmt: skip
    runs: list[int] = []
    whole = HookedModel.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HookedModel, "__call__", lambda self, *a, **o: runs.append(len(a[0])) or whole(self, *a, **o))
        status, out, _ = run(capsys, *options)
    assert len(runs) % (3 + 2) == 0 and all(len(set(runs[i : i + 5])) == 1 for i in range(0, len(runs), 5))
    assert sum(runs[::5]) * 29 >= 100 > (sum(runs[::5]) - runs[-1]) * 29  # each text ran five times, for three SAEs
    assert status == 0 and "3 SAEs from one stream: " in out and out.splitlines()[-1] == f"{tmp_path}/sweep/sweep.html"
    figures = Summary.load(tmp_path / "sweep").figures()
    names = ["topk-w24-k2-lr0.003-s0", "topk-w24-k4-lr0.003-s0", "standard-w24-sparsity0.05-lr0.003-s0"]
    names = [name + "-epochs1-batch_size128" for name in names]
    assert list(figures) == names and all(name in out for name in names)
    model, tokens = HookedModel.load(str(source / "model"), device="cpu"), TokenFile.open(source / "held-out.tokens")
    from interp.store import ActivationStore

    held_out = ActivationStore.open(source / "held-out")
    for name in (names[0], names[2]):
        sae = SAE.load(tmp_path / "sweep" / name)
        expected = evaluate(sae, held_out, SITES[0], model=model, tokens=tokens, max_ce_tokens=100)
        assert figures[name]["delta_ce"] == pytest.approx(expected.delta_ce, abs=1e-6)
        assert figures[name]["explained_variance"] == pytest.approx(expected.explained_variance)
    html = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "Sparsity against loss" in html and "Measured on held-out rows; 3 of 3 SAEs" in html


def test_a_sweep_and_a_training_without_a_store(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same SAE from either; the stream says how it mixes."""
    text = ["--model", source / "model", "--corpus", source / "text.jsonl", "--site", "resid_post.0", "--split", "all",
            "--row-dtype", "float32", "--buffer-gib", "0.0001", "--device", "cpu"]  # fmt: skip
    (tmp_path / "grid.json").write_text(
        json.dumps([{"d_sae": 24, "k": [2, 3], "lr": 3e-3, "base": {"epochs": 2.0, "batch_size": 100}}])
    )
    status, out, _ = run(capsys, "sweep", *text, "--out", tmp_path / "sweep", "--grid", tmp_path / "grid.json")
    assert status == 0 and "stream of 1,160 rows in " in out and "documents in a batch of 100 rows" in out
    recipe = ["--d-sae", 24, "--k", 3, "--lr", 3e-3, "--epochs", 2, "--batch-size", 100]
    status, out, _ = run(capsys, "train", *text, "--out", tmp_path / "alone", *recipe)
    assert status == 0 and "mixing horizon" in out and "documents in a batch of 100 rows" in out
    member = tmp_path / "sweep" / "topk-w24-k3-lr0.003-s0-epochs2-batch_size100"
    for name in (CFG, "sae_weights.safetensors", "training/metrics.jsonl"):
        assert (member / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert Summary.load(tmp_path / "sweep").figures().keys() == {member.name, member.name.replace("k3", "k2")}


def test_transcoders_crosscoders_and_trackers(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    common = ["train", "--store", source / "train", "--d-sae", "24", "--k", "3", "--epochs", "1", "--batch-size", "64",
              "--device", "cpu"]  # fmt: skip
    across = ["--site", SITES[0], "--site-out", "mlp_out.1", "--skip", "--track", f"tensorboard:{tmp_path / 'tb'}"]
    assert run(capsys, *common, "--out", tmp_path / "across", *across)[0] == 0
    sae = SAE.load(tmp_path / "across")
    assert sae.config.is_transcoder and sae.config.skip and sae.config.metadata["hook_name_out"] == SITES[1]
    logged = [json.loads(line) for line in (tmp_path / "across/training/metrics.jsonl").read_text().splitlines()]
    assert points(only(tmp_path / "tb"))["loss"] == [(line["step"], pytest.approx(line["loss"])) for line in logged]
    both = ["--site", *SITES, "--architecture", "batchtopk", "--out", tmp_path / "both"]
    assert run(capsys, *common, *both)[0] == 0
    known = SAE.load(tmp_path / "both").config
    assert known.metadata["hook_names"] == SITES and len(known.sources) == 2
    from interp.store import ActivationStore

    store = ActivationStore.open(source / "train")
    config = TrainConfig(architecture="batchtopk", d_sae=24, k=3, epochs=1.0, batch_size=64)
    fit(store, config, tmp_path / "alone", site=SITES)
    assert (tmp_path / "alone" / CFG).read_bytes() == (tmp_path / "both" / CFG).read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["sweep", "--base.k", "0", "--out", "x"], "midlens: k must be at least 1, got 0\n"),
        (["train", "--k", "0", "--out", "x"], "midlens: k must be at least 1, got 0\n"),
    ],
)
def test_settings_out_of_range_are_one_line(capsys: pytest.CaptureFixture[str], options: list[str], said: str):
    assert run(capsys, *options) == (2, "", said)


def test_options_that_cannot_be_parsed_are_told_by_tyro(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "--out", "x", "--base.k", "many"])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and "Error parsing --base.k" in err and "int" in err
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "--help"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and "--base.k" in out and err == ""


def test_trainings_on_different_stores_are_different_runs_at_the_tracker(source: Path, tmp_path: Path, capsys):
    for name in ("train", "held-out"):
        options = ["--store", source / name, "--site", "resid_post.0", "--d-sae", 24, "--k", 3, "--epochs", 1,
                   "--batch-size", 64, "--device", "cpu", "--track", f"tensorboard:{tmp_path / 'tb'}"]  # fmt: skip
        assert run(capsys, "train", *options, "--out", tmp_path / name / "sae")[0] == 0
    found = {folder.name for folder in (tmp_path / "tb").iterdir()}
    assert len(found) == 2 and all(name.startswith("sae-") for name in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say where the rows come from: --store, or --model"),
        (["--store", "train"], "say which with --site"),
        (["--store", "train", "--site", "resid_post.0", "--tokens", "held-out.tokens"], "--held-out"),
        (["--grid", "grid.json", "--k", "3"], "--grid holds the whole grid"),
        (["--store", "train", "--site", "resid_post.0", "--track", "mlflow:x"], "a tracker is wandb:PROJECT"),
        (["--store", "train", "--site", "resid_post.0", "--widths", "8", "--expansions", "2"], "d_sae or expansion"),
        (["--model", "model", "--corpus", "text.jsonl"], "say where to read in"),
    ],
)
def test_commands_that_cannot_be_say_why(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    placed = [str(source / option) if (source / option).exists() else option for option in options]
    status, _, err = run(capsys, "sweep", "--out", tmp_path / "sweep", *placed, "--device", "cpu")
    assert status == 2 and message in err and err.startswith("midlens: ")

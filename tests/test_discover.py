"""The pipeline on a tiny model in a local folder and text of its own: whole, again, interrupted, and with bad input."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import saes.discover as discover_module
from interp.errors import InputError
from interp.model import HookedModel
from saes.discover import DiscoverConfig, discover
from saes.sae import SAE
from saes.stages import claim_run
from tests import planted
from tests.tiny_models import tiny

WORDS = (
    "the cat sat on a mat while dogs ran far away and birds sang over hills of green grass near old stone walls".split()
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, smollm2: HookedModel) -> Path:
    """A folder with a tiny Llama (SmolLM2's tokenizer) and a folder of texts."""
    folder = tmp_path_factory.mktemp("source")
    model = tiny("llama", vocab_size=len(smollm2.tokenizer))
    model.save_pretrained(folder / "model")
    smollm2.tokenizer.save_pretrained(folder / "model")
    (folder / "texts").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        picks = torch.randint(len(WORDS), (60,), generator=generator).tolist()
        (folder / "texts" / f"{i:02}.txt").write_text(" ".join(WORDS[j] for j in picks))
    return folder


def _config(source: Path, out: Path) -> DiscoverConfig:
    return DiscoverConfig(
        model=str(source / "model"),
        corpus=str(source / "texts"),
        out=out,
        train_tokens=1200,
        held_out_tokens=250,
        max_length=32,
        expansion=4,
        k=4,
        epochs=2,
        loss_tokens=100,
        examples=2,
    )


@pytest.fixture
def config(source: Path, tmp_path: Path) -> DiscoverConfig:
    return _config(source, tmp_path / "run")


@pytest.fixture(scope="module")
def straight(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    config = _config(source, tmp_path_factory.mktemp("straight") / "run")
    discover(config)
    return config.out


def test_whole_then_again(config: DiscoverConfig, monkeypatch: pytest.MonkeyPatch):
    lines: list[str] = []
    path = discover(config, say=lines.append)
    assert path == config.out / "report.html" and "<html" in path.read_text()[:2000]
    assert sum("(the demo: " in line for line in lines) == 8  # seven stages and the sum
    sae = SAE.load(config.out / "sae")
    assert sae.config.k == 4
    numbers = json.loads((config.out / "evaluation.json").read_text())
    assert numbers["n_tokens"] > 150 and 0 <= numbers["dead_fraction"] <= 1
    features = (config.out / "features.jsonl").read_text().splitlines()
    assert len(features) == sae.config.d_sae

    def forbidden(*_: object, **__: object):
        raise AssertionError("a finished stage ran again")

    for name in ("evaluate", "read_features"):
        monkeypatch.setattr(discover_module, name, forbidden)
    monkeypatch.setattr(HookedModel, "_forward", _only_one_token(HookedModel._forward))
    assert discover(config) == path


def test_the_sae_is_trained_and_used_where_the_model_is(config: DiscoverConfig, monkeypatch: pytest.MonkeyPatch):
    """Both ways: `fit` is given the model's device, and an SAE that it loads on another one is moved."""
    elsewhere, given = torch.device("meta"), []

    class Stop(Exception):
        pass

    def fitted(*arguments: object, device: object = "cpu", **options: object) -> SAE:
        given.append(device)
        return planted.orthonormal_sae(48, 24, 8)

    def evaluated(config: DiscoverConfig, sae: SAE, *arguments: object):
        given.append(sae.W_dec.device)
        raise Stop

    monkeypatch.setattr(discover_module, "_stores", lambda *_: {"train": [], "held_out": []})
    monkeypatch.setattr(discover_module, "fit", fitted)
    monkeypatch.setattr(discover_module, "_evaluation", evaluated)
    monkeypatch.setattr(HookedModel, "device", property(lambda self: elsewhere))
    with pytest.raises(Stop):
        discover(config)
    assert given == [elsewhere, elsewhere]


def _only_one_token(forward):
    """Planning looks at the shape of one token's row; anything longer would be work done twice."""

    def checked(self, tokens, *rest, **options):
        assert tokens.numel() == 1, f"a finished store ran the model on {tokens.numel()} tokens"
        return forward(self, tokens, *rest, **options)

    return checked


@pytest.mark.parametrize("stage", ["tokenize", "extract", "fit", "evaluate", "write_features", "write_report"])
def test_interrupted_anywhere_and_called_again(
    config: DiscoverConfig, straight: Path, stage: str, monkeypatch: pytest.MonkeyPatch
):
    """What an interrupted run ends with is what an uninterrupted one ends with."""
    with monkeypatch.context() as patch:

        def interrupt(*_: object, **__: object):
            raise KeyboardInterrupt

        patch.setattr(discover_module, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            discover(config)
    discover(config)
    for name in ("sae/sae_weights.safetensors", "evaluation.json", "features.jsonl"):
        assert (config.out / name).read_bytes() == (straight / name).read_bytes(), name


def test_other_options_in_the_same_folder(config: DiscoverConfig):
    claim_run(config.out, discover_module._options(config))
    with pytest.raises(InputError, match=r"k: 4 there, 8 asked for.*--out"):
        discover(dataclasses.replace(config, k=8))


def test_bad_input(config: DiscoverConfig, tmp_path: Path):
    for change, says in [
        ({"site": "resid_post.99"}, "resid_post"),
        ({"site": "nonsense"}, "names no site"),
        ({"corpus": str(tmp_path / "none.txt")}, "no corpus at"),
        ({"model": str(tmp_path / "none")}, "none"),
        ({"dtype": "int3"}, "int3"),
        ({"k": 1_000_000}, "k=1000000 active features do not fit"),
        ({"epochs": 0.0}, "epochs must be positive"),
    ]:
        with pytest.raises(InputError, match=says):
            discover(dataclasses.replace(config, out=tmp_path / f"bad-{next(iter(change))}-{says[:4]}", **change))


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "midlens", *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_the_command_prints_the_report_s_path_last(config: DiscoverConfig):
    options = [
        "--model", config.model, "--corpus", config.corpus, "--out", str(config.out), "--train-tokens", "600",
        "--held-out-tokens", "200", "--max-length", "32", "--expansion", "2", "--k", "2", "--epochs", "1",
        "--loss-tokens", "50",
    ]  # fmt: skip
    done = cli("discover", *options)
    assert done.returncode == 0, done.stderr
    last = Path(done.stdout.splitlines()[-1])
    assert last.is_absolute() and last.is_file() and last.suffix == ".html"
    assert "tok/s" in done.stderr or "tok/s" in done.stdout  # progress with a rate


def test_the_caller_s_mistake_is_one_line_and_status_2(tmp_path: Path):
    done = cli("discover", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("midlens: ") and "none" in line
    assert (
        "Traceback"
        in cli("discover", "--model", str(tmp_path / "none"), "--out", str(tmp_path), MIDLENS_TRACEBACK="1").stderr
    )

"""The commands as a user types them, one after the other, on a tiny model in a local folder."""

import json
from pathlib import Path

import pytest

from interp.store import ActivationStore
from midlens.__main__ import main
from saes.sae import SAE
from tests.tiny_models import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, smollm2) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tiny("llama", vocab_size=len(smollm2.tokenizer)).save_pretrained(folder / "model")
    smollm2.tokenizer.save_pretrained(folder / "model")
    rows = [
        {"id": f"d{i}", "text": f"Document {i} counts " + " ".join(str(j * i) for j in range(30))} for i in range(60)
    ]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_text_to_activations_to_sae_to_figures(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, text = str(source / "model"), str(source / "text.jsonl")
    common = ["--model", model, "--corpus", text, "--sites", "resid_post.1", "mlp_out.0", "--max-length", "64"]
    for part in ("train", "held-out"):
        status, out, _ = run(capsys, "extract", *common, "--split", part, "--out", str(tmp_path / part))
        assert status == 0 and "tokens" in out and "free" in out  # the plan
        assert out.splitlines()[-1] == str(tmp_path / part)

    status, out, _ = run(capsys, "store", "info", str(tmp_path / "train"))
    assert status == 0 and "blocks.1.hook_resid_post" in out and "blocks.0.hook_mlp_out" in out
    assert run(capsys, "store", "verify", str(tmp_path / "train"))[0] == 0

    train = ["train", "--store", str(tmp_path / "train"), "--out", str(tmp_path / "sae"), "--k", "4", "--epochs", "2"]
    status, _, err = run(capsys, *train)
    assert status == 2 and "--site" in err  # two sites: say which
    assert run(capsys, *train, "--site", "resid_post.1", "--batch-size", "128")[0] == 0
    assert SAE.load(tmp_path / "sae").config.metadata["hook_name"] == "blocks.1.hook_resid_post"

    status, out, _ = run(
        capsys, "evaluate", "--sae", str(tmp_path / "sae"), "--store", str(tmp_path / "held-out"),
        "--tokens", str(tmp_path / "held-out.tokens"), "--loss-tokens", "100", "--out", str(tmp_path / "figures.json"),
    )  # fmt: skip
    assert status == 0 and "explained_variance" in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["n_tokens"] == len(ActivationStore.open(tmp_path / "held-out"))


def test_a_flipped_bit_is_status_1_and_extract_mends_it(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["extract", "--model", str(source / "model"), "--corpus", str(source / "text.jsonl"), "--sites",
               "resid_post.0", "--out", str(tmp_path / "store")]  # fmt: skip
    assert run(capsys, *options)[0] == 0
    shard = tmp_path / "store" / "shard-00000.safetensors"
    before = shard.read_bytes()
    damaged = bytearray(before)
    damaged[-5] ^= 4
    shard.write_bytes(bytes(damaged))
    status, out, _ = run(capsys, "store", "verify", str(tmp_path / "store"))
    assert status == 1 and "shard-00000" in out
    assert run(capsys, *options)[0] == 0
    assert shard.read_bytes() == before


def test_extract_says_which_options_differ(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["extract", "--model", str(source / "model"), "--corpus", str(source / "text.jsonl"), "--sites",
               "resid_post.0", "--out", str(tmp_path / "store")]  # fmt: skip
    assert run(capsys, *options)[0] == 0
    status, _, err = run(capsys, *options, "--store-dtype", "float32")
    assert status == 2 and "bfloat16" in err and "float32" in err
    (line,) = err.strip().splitlines()
    assert line.startswith("midlens: ")


def test_without_a_preset_the_site_has_to_be_said(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    status, _, err = run(capsys, "extract", "--model", str(source / "model"), "--out", str(tmp_path / "x"))
    assert status == 2 and "resid_post.15" in err


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def interrupt(self: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("midlens.discover.Discover.run", interrupt)
    status, _, err = run(capsys, "discover")
    assert status == 130 and "same command again" in err

"""`midlens attention …` as a user types it, on tiny models in local folders."""

import json
from pathlib import Path

import pytest
import torch

from midlens.__main__ import main
from tests.tiny_folder import tiny_folder
from tests.tiny_models import tiny
from tests.toy_store import word_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder with its tokenizer, an encoder, and a text."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("source")
    tiny_folder(folder, name="llama", lengths=(40, 30))
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=31, **sizes), add_pooling_layer=False).save_pretrained(folder / "bert")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    status = main(["attention", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_a_survey_of_two_models(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = [
        "survey", source / "llama", source / "bert", "--out", tmp_path / "out", "--draws", "2", "--offsets", "4",
        "--corpus", source / "text.jsonl", "--max-tokens", "80", "--max-length", "32", "--device", "cpu",
    ]  # fmt: skip
    status, out, err = run(capsys, *command)
    assert status == 0, err
    assert out[-2:] == [str((tmp_path / "out" / name).resolve()) for name in ("survey.html", "survey.json")]
    assert any(line.startswith("operating: not measured, an encoder") for line in out)
    llama, bert = json.loads(Path(out[-1]).read_text())["models"]
    assert llama["heads"] == 12 and bert["heads"] == 6
    assert llama["parts"]["operating"]["refused"] is None and llama["metrics"]["op_positions"]["median"] == 32
    assert llama["metrics"]["op_sequences"]["median"] == 2
    status, out, _ = run(capsys, *command)
    assert status == 0 and [line for line in out if line.endswith("all parts are there")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["no such model"], "'no such model' is no model"),
        ([], "no model was given"),
        (["llama", "--layers"], "no layer was chosen, so no head"),
        (["llama", "--layers", "9"], "layer 9 does not exist: the model has 3 layers"),
        (["llama", "--heads", "1"], "'1' is no head; expected LAYER.HEAD"),
        (["llama", "--layers", "0", "--heads", "1.0"], "head 1.0 is not among those measured in"),
        (["llama", "--max-length", "41"], "no document of"),
    ],
)
def test_mistakes_of_a_survey_are_one_line(
    options: list[str], said: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = [str(source / "llama") if option == "llama" else option for option in options]
    rest = [] if "41" in options else ["--no-operating"]
    text = ["--corpus", source / "text.jsonl", "--no-behaviour", "--no-rope", "--draws", "2", "--device", "cpu"]
    status, out, err = run(capsys, "survey", *given, "--out", tmp_path / "out", *text, *rest)
    if "41" in options:  # of a part: the survey goes on without it
        assert status == 0 and any(said in line for line in out)
    else:
        assert status == 2 and len(err.strip().splitlines()) == 1 and err.startswith("midlens: ") and said in err


def test_surgery(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = [
        "surgery", source / "llama", "--out", tmp_path / "out", "--corpus", source / "text.jsonl", "--planes", "1",
        "16", "--modes", "2", "--max-tokens", "96", "--calibration", "96", "--max-length", "32", "--device", "cpu",
    ]  # fmt: skip
    status, out, err = run(capsys, *command)
    assert status == 0, err
    record = json.loads(Path(out[-1]).read_text())
    clean, *rows = record["all_heads"]
    assert len(rows) == 3 * (1 + 2 + 2 + 1) and record["refused"] == {}
    whole = [row for row in rows if (row["alpha"], row["beta"], row["planes"], row["modes"]) == (1, 1, None, None)]
    assert {(row["level"], row["gauge"]) for row in whole} == {
        ("position", "raw"),
        ("position", "key_centred"),
        ("kernel", "raw"),
    }
    for row in whole:  # nothing is changed, in any gauge
        assert row["perplexity"] == pytest.approx(clean["perplexity"], rel=1e-5)
    all_planes = [row for row in rows if row["planes"] == 16 and row["level"] == "kernel"]
    assert all_planes[0]["perplexity"] == pytest.approx(clean["perplexity"], rel=1e-4)  # 2e = 32: 16 planes are all
    assert "Perplexity by planes kept" in (tmp_path / "out" / "surgery.html").read_text()
    before = (tmp_path / "out" / "surgery.jsonl").read_bytes()
    assert run(capsys, *command)[0] == 0
    assert (tmp_path / "out" / "surgery.jsonl").read_bytes() == before  # nothing was measured twice
    status, _, err = run(capsys, *command, "--heads", "0.7")
    assert status == 2 and "layer 0, head 7" in err
    status, _, err = run(capsys, *command, "--planes", "-1")
    assert status == 2


def test_surgery_leaves_out_what_a_model_does_not_have(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokenizer = word_tokenizer()
    for name in ("qwen3", "gemma2"):
        tiny(name, vocab_size=len(tokenizer)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    options = ["--corpus", source / "text.jsonl", "--planes", "--modes", "--max-tokens", "32", "--calibration", "32",
               "--max-length", "32", "--device", "cpu"]  # fmt: skip
    for name, way, reason in (
        ("qwen3", "kernel", "normalises queries and keys"),
        ("gemma2", "position-key-centred", "soft-capped"),
    ):
        status, out, err = run(capsys, "surgery", tmp_path / name, "--out", tmp_path / "out" / name, *options)
        assert status == 0, err
        assert any(line.startswith(f"{way}: left out") and reason in line for line in out)
        assert set(json.loads(Path(out[-1]).read_text())["refused"]) == {way}
    status, _, err = run(
        capsys, "surgery", tmp_path / "qwen3", "--out", tmp_path / "x", *options, "--ways", "kernel"
    )  # fmt: skip
    assert status == 2 and "no way of surgery is left" in err
    status, _, err = run(capsys, "surgery", source / "bert", "--out", tmp_path / "y", *options)
    assert status == 2 and "encoder" in err


def test_twins_are_trained_and_compared(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    short = ["--corpus", source / "text.jsonl", "--n-ctx", "32", "--total-bytes", "512", "--batch", "4",
             "--warmup", "1", "--log-every", "1", "--compute", "float32", "--device", "cpu"]  # fmt: skip
    folders = []
    for attention, seed in (("sd_token", 0), ("sd_token", 1), ("standard", 0)):
        folders.append(tmp_path / f"{attention}-{seed}")
        status, out, err = run(
            capsys, "train", "--attention", attention, "--seed", seed, "--out", folders[-1], *short
        )  # fmt: skip
        assert status == 0, err
        assert out[-1] == str((folders[-1] / "model.safetensors").resolve())
    status, out, err = run(
        capsys, "cascade", *folders, "--out", tmp_path / "cascade", "--documents", "4", "--sequences", "2",
        "--calibration", "2",
    )  # fmt: skip
    assert status == 0, err
    twins = json.loads(Path(out[-1]).read_text())["twins"]
    assert [(twin["attention"], twin["seed"]) for twin in twins] == [("sd_token", 0), ("sd_token", 1), ("standard", 0)]
    assert len({twin["label"] for twin in twins}) == 2
    for twin in twins:
        layers = len(twin["ranks"])
        assert twin["perplexity_low"] <= twin["perplexity"] <= twin["perplexity_high"] < 400
        assert len(twin["linearised"]) == 3 * layers and len(twin["proposed_widths"]) == layers
        assert twin["log"][-1]["step"] == 4
    for row in twins[0]["linearised"]:
        if row["mode"] == "taylor":  # no softmax in it: nothing to expand
            assert row["perplexity"] == pytest.approx(twins[0]["perplexity"], rel=1e-6)
    page = (tmp_path / "cascade" / "cascade.html").read_text()
    assert "Cascade over training" in page and "the guarantee is then trivial" in page

    status, _, err = run(capsys, "cascade", "--out", tmp_path / "none")
    assert status == 2 and "no twin was given" in err
    status, _, err = run(capsys, "cascade", tmp_path / "nothing", "--out", tmp_path / "none")
    assert status == 2 and "trained twin" in err
    status, _, err = run(capsys, "train", "--size", "3m", "--out", tmp_path / "none")
    assert status == 2 and "size must be one of" in err

"""`midlens steer` as a user types it, on a tiny model in a local folder."""

import json
from pathlib import Path

import pytest
import torch

from interp.errors import InputError
from interp.model import HookedModel
from interp.steering.edits import AffineEdit
from interp.steering.evaluation import SteeringEvaluation
from interp.steering.folded_files import save_folded
from interp.steering.steering import Steering, steered
from midlens.__main__ import main
from tests.tiny_models import tiny

SETS = ["--contrast", "horse-motorcycle", "--max-prompts", "40"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, smollm2) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny("llama", vocab_size=len(smollm2.tokenizer)).save_pretrained(folder)
    smollm2.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def fitted(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steering") / "horses"
    sites = ["--sites", "attn_out.1", "--level", "None", "--beta", "1.5"]
    assert main(["steer", "fit", "--model", model, *SETS, *sites, "--out", str(out)]) == 0
    return out


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status, _, err = run(capsys, *arguments)
    (line,) = err.strip().splitlines()
    assert status == 2 and line.startswith("midlens: "), err
    return line


def test_fit_writes_a_steering_that_says_what_it_was_fitted_on(model: str, fitted: Path):
    steering = Steering.load(fitted)
    steering.check(HookedModel.load(model))
    (edit,) = steering.edits.values()
    assert edit.beta == 1.5 and steering.method == "midsteer" and steering.scope == "all"
    assert steering.provenance["prompts"]["contrast"] == "horse-motorcycle"
    (facts,) = steering.provenance["sites"].values()
    assert facts["n_source"] == facts["n_target"] == 40


def test_fit_from_files_and_the_other_way_round(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.txt").write_text("".join(f"The cold rain of day {i} made us sad.\n" for i in range(12)))
    rows = [{"text": f"The warm sun of day {i} made us glad."} for i in range(12)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["steer", "fit", "--model", model, "--source", str(tmp_path / "a.txt"), "--target",
              str(tmp_path / "b.jsonl"), "--sites", "resid_post.0", "--method", "add"]  # fmt: skip
    status, out, _ = run(capsys, *common, "--out", str(tmp_path / "there"))
    assert status == 0 and "alpha" in out and out.splitlines()[-1] == str(tmp_path / "there")
    assert run(capsys, *common, "--reverse", "--out", str(tmp_path / "back"))[0] == 0
    there, back = (next(iter(Steering.load(tmp_path / name).edits.values())) for name in ("there", "back"))
    torch.testing.assert_close(there.delta, -back.delta)


def test_apply_prints_texts_and_json_lines(
    model: str, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "more.txt").write_text("Describe a stable.\n")
    common = ["steer", "apply", "Tell me of a mare.", "--steering", str(fitted), "--model", model, "--file",
              str(tmp_path / "more.txt"), "--max-new-tokens", "6", "--beside"]  # fmt: skip
    status, out, _ = run(capsys, *common, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [row["prompt"] for row in rows] == ["Tell me of a mare.", "Describe a stable."]
    status, out, _ = run(capsys, *common)
    assert status == 0 and "steered: " in out and "unsteered: " in out
    rows = [json.loads(line) for line in run(capsys, *common, "--json", "--beta", "0")[1].splitlines()]
    assert all(row["steered"] == row["unsteered"] for row in rows)


def test_evaluate_leaves_figures_and_a_page_and_goes_on(
    model: str, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = "--betas 1 4 --n-prompts 3 --max-new-tokens 4 --neutral-documents 2 --neutral-length 16 --questions 2"
    command = ["steer", "evaluate", str(fitted), "--model", model, "--contrast", "horse-motorcycle", *small.split(),
               "--judges", "lexicon", "--axbench", "--samples", "1", "--out", str(tmp_path / "found")]  # fmt: skip
    status, out, _ = run(capsys, *command)
    assert status == 0 and out.splitlines()[-2:] == [
        str(tmp_path / "found" / f"evaluation.{e}") for e in ("html", "json")
    ]
    found = SteeringEvaluation.load(tmp_path / "found" / "evaluation.json")
    assert found.methods == ("unsteered", "prompt", "horses", "vanilla", "add", "per-neuron", "random")
    assert found.axbench["horses"]["factor"] in (1, 4) and 0 <= found.axbench["horses"]["score"] <= 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "found" / "records").iterdir()}
    text = next(path for path in before if path.name.startswith("text-random"))
    text.unlink()
    assert run(capsys, *command)[0] == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "found" / "records").iterdir()}
    assert {path for path in before if before[path] != after[path]} == {text}
    assert SteeringEvaluation.load(tmp_path / "found" / "evaluation.json") == found


@pytest.mark.parametrize("lora", [False, True])
def test_a_folded_model_loads_again_and_computes_what_the_hooks_do(
    model: str, fitted: Path, tmp_path: Path, lora: bool, capsys: pytest.CaptureFixture[str]
):
    from interp.steering.lora import lora_applied

    out = tmp_path / "folded"
    extra = ["--lora"] if lora else []
    status, said, _ = run(
        capsys, "steer", "fold", "--steering", str(fitted), "--model", model, "--out", str(out), *extra
    )
    assert status == 0 and said.strip() == str(out)
    tokens = torch.arange(5, 25).reshape(2, 10)
    plain = HookedModel.load(model, dtype="float32")
    with torch.no_grad():
        with steered(plain, Steering.load(fitted)):
            expected = plain(tokens)
        assert (plain(tokens) - expected).abs().max() > 1e-3  # it does something
        if lora:
            with lora_applied(plain, out):
                found = plain(tokens)
        else:
            found = HookedModel.load(str(out), dtype="float32")(tokens)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_a_family_that_would_drop_the_bias_is_not_folded_into_a_folder(tmp_path: Path):
    plain = HookedModel.wrap(tiny("mistral"))
    u = torch.randn(plain.cfg.d_model, 1, generator=torch.Generator().manual_seed(0))
    steering = Steering.of(plain, {"attn_out.1": AffineEdit(u, u, torch.zeros(1))})
    with pytest.raises(InputError, match=r"builds no model.layers.1.self_attn.o_proj.bias .* write a LoRA adapter"):
        save_folded(plain, steering, tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_what_cannot_be_done_is_said_in_one_line(
    model: str, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], smollm2
):
    out = ["--out", str(tmp_path / "x")]
    assert "either a contrast set" in refused(capsys, "steer", "fit", *out)
    assert "belong to files of texts" in refused(capsys, "steer", "fit", "--contrast", "tense", "--chat", *out)
    assert "no contrast set 'colour'" in refused(capsys, "steer", "fit", "--contrast", "colour", "--model", model, *out)
    assert "give sites" in refused(capsys, "steer", "fit", *SETS, "--model", model, *out)
    assert "give a prompt" in refused(capsys, "steer", "apply", "--steering", str(fitted), "--model", model)
    assert "give a contrast set" in refused(capsys, "steer", "evaluate", str(fitted), "--model", model, *out)
    assert "none of them 0" in refused(capsys, "steer", "evaluate", "--contrast", "tense", "--betas", "0", *out)
    other = tmp_path / "other"
    tiny("llama", seed=1, vocab_size=len(smollm2.tokenizer)).save_pretrained(other)
    smollm2.tokenizer.save_pretrained(other)
    capsys.readouterr()  # transformers' own lines
    fold = ["steer", "fold", "--steering", str(fitted), *out]
    assert "made for another model" in refused(capsys, *fold, "--model", str(other))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").write_text("")
    assert "holds something already" in refused(capsys, *fold, "--model", model)
    stream = tmp_path / "stream"
    assert run(capsys, "steer", "fit", "--model", model, *SETS, "--sites", "resid_post.1", "--level", "None", "--out",
               str(stream))[0] == 0  # fmt: skip
    assert "resid_post" in refused(capsys, "steer", "fold", "--steering", str(stream), "--model", model, "--out",
                                   str(tmp_path / "y"))  # fmt: skip

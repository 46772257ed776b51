"""Every site of every family against independent opinions, padding included; SmolLM2 on real text; the command."""

import inspect
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from interp.errors import InputError
from interp.model import HookedModel
from interp.parity import default_tolerance, parity, prompt_tokens
from interp.parity_table import Deviation, ParityError, ParityRow, ParityTable
from interp.plain import plain_run
from interp.resources import data_path
from interp.sites import Site
from tests.tiny_models import FAMILIES, VARIANTS, random_tokens, tiny

LENGTHS = torch.tensor([24, 17, 1])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_site_agrees_with_independent_forward_passes(name: str):
    model = HookedModel.wrap(tiny(name))
    opinions = ("plain", "hf_eager", "transformer_lens") if name in FAMILIES else ("plain", "hf_eager")
    table = parity(model, random_tokens(model.hf, 3, 24), lengths=LENGTHS, opinions=opinions)
    assert table.opinions == opinions and not table.absent
    for opinion in opinions:
        table.raise_if_above(1e-5, opinion=opinion)
    # Nobody is silent on a site that exists: the plain pass has every row, transformer-lens all but NeoX's rotations.
    missing = {row.name.split(".", 2)[-1] for row in table.rows if "plain" not in row.deviations}
    assert not missing
    if name in FAMILIES:
        lacking = {row.name.split(".", 2)[-1] for row in table.rows if "transformer_lens" not in row.deviations}
        assert lacking == ({"attn.hook_rot_q", "attn.hook_rot_k"} if name == "gpt_neox" else set())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_sites_captured_alone_and_stopped_agree_too(family: str):
    model = HookedModel.wrap(tiny(family))
    tokens = random_tokens(model.hf, 2, 12)
    run = plain_run(model.hf.config.to_dict(), model.hf.state_dict(), tokens)
    for site, truth in run.sites.items():
        if site.layer == 1:
            with torch.no_grad():
                value = model.capture(tokens, [site])[site].double()
            value, truth = (x.masked_fill(x.isinf(), 0) for x in (value, truth))
            torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5, msg=lambda m, site=site: f"{site}: {m}")


def test_one_head_of_a_site():
    model = HookedModel.wrap(tiny("llama"))
    sites = ["z.1[3]", "k.0[1]", "rot_q.2[2]", "attn_scores.1[3]", "pattern.2[0]"]
    table = parity(model, random_tokens(model.hf, 2, 24), lengths=torch.tensor([24, 9]), sites=sites)
    assert {row.name for row in table.rows} == {*(str(Site.parse(site)) for site in sites), "logits"}
    for opinion in ("plain", "hf_eager", "transformer_lens"):
        table.raise_if_above(1e-5, opinion=opinion)
    assert "hf_eager" in next(row for row in table.rows if "pattern" in row.name).deviations


def test_smollm2_on_real_text(smollm2: HookedModel):
    lines = data_path("parity_prompts.txt").read_text(encoding="utf-8").splitlines()
    tokens, lengths = prompt_tokens(smollm2, lines[::2])
    assert len(set(lengths.tolist())) == 4, "prompts of several lengths, so that padding is under test"
    table = parity(smollm2, tokens, lengths=lengths, opinions=("plain", "hf_eager"))
    assert len(table.rows) == 30 * 18 + 3
    table.raise_if_above(1e-4)
    table.raise_if_above(1e-4, opinion="hf_eager")


def test_an_absent_opinion_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge.sources", None)
    model = HookedModel.wrap(tiny("llama"))
    table = parity(model, random_tokens(model.hf, 1, 8), sites=["z.0"])
    assert table.absent["transformer_lens"].startswith("transformer-lens 3.9 is missing")
    assert "transformer_lens: not available: transformer-lens 3.9 is missing" in table.text()
    with pytest.raises(InputError, match=r"nothing was compared with 'transformer_lens': transformer-lens 3.9 is miss"):
        table.raise_if_above(1e-5, opinion="transformer_lens")


def test_an_opinion_that_knows_none_of_the_sites_is_absent_and_nothing_at_all_is_no_pass():
    model = HookedModel.wrap(tiny("llama").model)
    tokens = random_tokens(model.hf, 1, 8)
    table = parity(model, tokens, sites=["z.0"], opinions=("plain", "hf_eager"))
    assert table.opinions == ("plain",) and table.absent == {"hf_eager": "it has none of blocks.0.attn.hook_z"}
    assert "hf_eager: not available: it has none" in table.text()
    with pytest.raises(InputError, match=r"nothing was compared\. hf_eager: it has none of blocks\.0\.attn\.hook_z"):
        parity(model, tokens, sites=["z.0"], opinions=("hf_eager",))


def test_an_opinion_that_fails_when_asked_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch):
    class Broken:
        def run_with_cache(self, tokens: torch.Tensor) -> None:
            raise KeyError("hook_q")

    monkeypatch.setattr(HookedModel, "bridge", lambda self: Broken())
    model = HookedModel.wrap(tiny("llama"))
    table = parity(model, random_tokens(model.hf, 1, 8), sites=["z.0"], opinions=("transformer_lens", "plain"))
    assert table.absent == {"transformer_lens": "KeyError: 'hook_q'"} and table.opinions == ("plain",)


def test_a_partly_loaded_model_is_compared_as_far_as_it_goes(tmp_path: Path):
    tiny("gemma2").save_pretrained(tmp_path)
    model = HookedModel.load(str(tmp_path), upto="resid_post.1", dtype=torch.float32, device="cpu")
    table = parity(model, random_tokens(model.hf, 2, 16))
    table.raise_if_above(1e-5)
    table.raise_if_above(1e-5, opinion="hf_eager")
    assert "logits" not in {row.name for row in table.rows}
    assert max(Site.parse(row.name) for row in table.rows) == Site.parse("resid_post.1")
    assert "need the unembedding" in table.absent["transformer_lens"]


def test_eager_attention_is_asked_for_and_given_back():
    model = HookedModel.wrap(tiny("llama", attn_implementation="sdpa"))
    parity(model, random_tokens(model.hf, 1, 8), opinions=("hf_eager",))
    assert model.hf.config._attn_implementation == "sdpa"


def test_values_that_are_no_numbers_are_infinitely_far():
    model = HookedModel.wrap(tiny("llama"))
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    table = parity(model, random_tokens(model.hf, 1, 8), opinions=("plain",))
    far = table.above(1e30)
    assert far and far[0].startswith("blocks.1.hook_mlp_out (inf from plain)")


def small_table() -> ParityTable:
    rows = (
        ParityRow("hook_embed", {"plain": Deviation(1e-6, 1e-7)}),
        ParityRow("logits", {"plain": Deviation(math.inf, math.inf), "hf_eager": Deviation(0.0, 0.0)}),
    )
    return ParityTable(
        "m", "llama", "float32", "float64", 1, 8, ("plain", "hf_eager"), rows, {"transformer_lens": "why"}
    )


def test_the_table_as_json_and_as_text(tmp_path: Path):
    table = small_table()
    table.save(tmp_path / "table.json")
    read = json.loads((tmp_path / "table.json").read_text())
    assert read["rows"][0] == {"site": "hook_embed", "plain": {"absolute": 1e-6, "relative": 1e-7}}
    assert read["rows"][1]["plain"] == {"absolute": "inf", "relative": "inf"}
    assert read["absent"] == {"transformer_lens": "why"} and read["opinions"] == ["plain", "hf_eager"]
    assert table.worst() == ("logits", Deviation(math.inf, math.inf))
    assert table.worst("hf_eager") == ("logits", Deviation(0.0, 0.0))
    lines = table.text().splitlines()
    assert lines[2].split() == ["hook_embed", "1.00e-06", "1.00e-07", "-", "-"]
    assert lines[-1] == "transformer_lens: not available: why"


def test_verdicts():
    table = small_table()
    with pytest.raises(ParityError, match=r"m: 1 of 2 rows deviate .* more than 1e-05 .* logits \(inf from plain\)"):
        table.raise_if_above(1e-5)
    table.raise_if_above(1e-5, opinion="hf_eager")
    assert table.above(1e-8) == ["hook_embed (1.00e-07 from plain)", "logits (inf from plain)"]
    assert default_tolerance(torch.float32) < default_tolerance(torch.bfloat16)


def test_bad_input_says_what_was_expected():
    model = HookedModel.wrap(tiny("llama"))
    tokens = random_tokens(model.hf, 1, 8)
    with pytest.raises(InputError, match=r"unknown opinions \['hf'\]; expected some of plain, hf_eager"):
        inspect.unwrap(parity)(model, tokens, opinions=("hf",))  # past the type check of the tests
    with pytest.raises(InputError, match="has no tokenizer"):
        prompt_tokens(model)
    with pytest.raises(InputError, match=r"the data file 'none.txt' is missing: expected it in .*data"):
        data_path("none.txt")


def test_data_is_found_in_a_clone_and_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert data_path("parity_prompts.txt").parent.name == "data"
    (tmp_path / "interp/data").mkdir(parents=True)
    (tmp_path / "interp/data/parity_prompts.txt").write_text("from the wheel\n")
    monkeypatch.setattr("interp.resources._PACKAGE", tmp_path / "interp")
    assert data_path("parity_prompts.txt").read_text() == "from the wheel\n"
    # Beside an installed package lies site-packages, not a clone: another package's `data` there is none of ours.
    (tmp_path / "data").mkdir()
    (tmp_path / "data/other.txt").write_text("x")
    with pytest.raises(InputError, match=r"'other.txt' is missing"):
        data_path("other.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of words, as a local folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(path)
    words = Tokenizer(models.WordLevel({"?": 3, "the": 4, ".": 5, "=": 6, "name": 7}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(path)
    return path


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from midlens.parity import Parity

    written = tmp_path / "table.json"
    asked = dict(dtype="float32", device="cpu", opinions=("plain", "hf_eager"))
    assert Parity(str(folder), out=written, tolerance=1e-4, **asked).run() == 0
    shown = capsys.readouterr().out
    assert "blocks.2.attn.hook_pattern" in shown and "passed: 0 of 57 compared rows above 1e-04 relative" in shown
    assert len(json.loads(written.read_text())["rows"]) == 57
    assert Parity(str(folder), tolerance=1e-12, sites=("z.1",), **asked).run() == 1
    assert "FAILED: 2 of 2 compared rows above 1e-12" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--out .*gone.table.json: there is no folder .*gone; make it first"):
        Parity("no-model-is-loaded-for-this", out=tmp_path / "gone/table.json").run()
    with pytest.raises(InputError, match=r"nothing was compared\. transformer_lens: .*need the unembedding"):
        Parity(str(folder), dtype="float32", device="cpu", upto="z.1", opinions=("transformer_lens",)).run()


def test_the_command_line_reads_its_options(folder: Path, capsys: pytest.CaptureFixture[str]):
    import tyro

    from midlens.parity import Parity

    options = tyro.cli(
        Parity, args=[str(folder), "--dtype", "float32", "--device", "cpu", "--sites", "z.0", "--opinions", "plain"]
    )
    assert options.sites == ("z.0",) and options.run() == 0

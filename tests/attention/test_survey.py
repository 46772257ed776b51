"""The survey: its tables against their sources, going on after a kill, refusals that leave the rest standing."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from interp.attention import survey_parts
from interp.attention.heads import kernel
from interp.attention.survey import PAGE, survey
from interp.attention.survey_config import SurveyConfig
from interp.attention.survey_files import Parts, folder_name, joined, write_parquet
from interp.attention.survey_models import open_model
from interp.attention.survey_result import ModelSurvey
from interp.attention.survey_summary import beyond, by_layer, positive, summarise
from interp.attention.survey_text import even_windows
from interp.attention.table import kernel_rows
from interp.batching import Batch
from interp.corpus import Corpus
from interp.errors import InputError
from interp.model import HookedModel
from tests.tiny_models import tiny
from tests.toy_store import documents, word_tokenizer

QUICK = SurveyConfig(draws=2, offsets=4)


def batches(t: int = 40, n: int = 2) -> list[Batch]:
    tokens = torch.randint(3, 90, (n, t), generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(n, dtype=torch.int64)
    return [Batch(tokens, zero + t, torch.arange(n), zero)]


def tiny_bert() -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=31, max_position_embeddings=16, **sizes), add_pooling_layer=False).eval()


def run(model: Any, out: Path, config: SurveyConfig = QUICK, **options: Any) -> Path:
    return survey([model], out, config, tokens=batches(), progress=False, **options)


def held(out: Path) -> ModelSurvey:
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return ModelSurvey.load(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[HookedModel, Path]:
    model = HookedModel.wrap(tiny("llama"))
    out = tmp_path_factory.mktemp("llama") / "survey"
    assert run(model, out) == out / "survey.json"
    return model, out


def test_every_table_says_the_same(llama: tuple[HookedModel, Path]):
    import pyarrow.parquet as pq

    _, out = llama
    found = held(out)
    assert [(row["layer"], row["head"]) for row in found.rows] == [(a, b) for a in range(3) for b in range(4)]
    with (found.folder / "heads.csv").open() as file:
        lines = list(csv.DictReader(file))
    wide = pq.read_table(found.folder / "heads.parquet").to_pylist()
    assert len(lines) == len(wide) == 12
    for line, row, kept in zip(lines, wide, found.rows, strict=True):
        assert set(line) == set(row) >= set(kept)
        for name, value in kept.items():
            assert row[name] == value
            assert line[name] == ("" if value is None else str(value))
    for name in ("routing_fraction", "z_routing_r90", "rope_even_skew", "op_raw_routing_r90", "induction", "capacity"):
        assert name in lines[0]
    (record,) = json.loads((out / "survey.json").read_text())["models"]
    column = np.array([float(line["op_key_centred_routing_r90"]) for line in lines])
    assert record["metrics"]["op_key_centred_routing_r90"]["median"] == np.median(column)
    assert record["by_layer"]["routing_fraction"]["1"] == pytest.approx(
        np.median([float(line["routing_fraction"]) for line in lines if line["layer"] == "1"]), abs=0
    )
    assert record["shape"] == {"layers": 3, "heads": 4, "groups": 2, "d": 48, "e": 16} and record["heads"] == 12
    assert (out / PAGE).stat().st_size > 1e6


def test_arrays_are_those_of_dense_kernels(llama: tuple[HookedModel, Path]):
    """numpy on the d x d matrices themselves."""
    model, out = llama
    arrays = load_file(held(out).folder / "eigenvalues.safetensors")
    assert arrays["eigenvalues_real"].shape == (3, 4, 16) and arrays["routing"].shape[:2] == (3, 4)
    for layer in range(3):
        dense = kernel(model, layer).bilinear.dense().numpy()
        for head, m in enumerate(dense):
            stored = arrays["eigenvalues_real"][layer, head] + 1j * arrays["eigenvalues_imag"][layer, head]
            expected = np.linalg.eigvals(m)
            expected = expected[np.argsort(-np.abs(expected))][:16]
            order = [np.lexsort((x.imag.round(7), x.real.round(7))) for x in (stored, expected)]
            np.testing.assert_allclose(stored[order[0]], expected[order[1]], atol=1e-7)
            planes = np.linalg.svd((m - m.T) / 2, compute_uv=False)[:32:2]
            np.testing.assert_allclose(arrays["routing"][layer, head][:16], planes, atol=1e-9)
    np.testing.assert_array_equal(arrays["routing.layers"], [0, 1, 2])


def test_what_a_model_lacks_is_refused_by_name_and_the_rest_is_measured(tmp_path: Path):
    kinds = {"qwen3": tiny("qwen3"), "gpt2": tiny("gpt2"), "bert": tiny_bert()}
    said: list[str] = []
    found = {}
    for name, model in kinds.items():
        out = tmp_path / name
        survey([model], out, QUICK, tokens=batches(30, 1), progress=False, announce=said.append)
        found[name] = held(out)
    refused = {
        name: {part: facts["refused"] for part, facts in one.parts.items() if facts["refused"]}
        for name, one in found.items()
    }
    assert set(refused["qwen3"]) == {"kernel", "rope"} and "normalises queries and keys" in refused["qwen3"]["kernel"]
    assert set(refused["gpt2"]) == {"rope"} and "no rotary embedding" in refused["gpt2"]["rope"]
    assert set(refused["bert"]) == {"rope", "operating", "behaviour"} and "encoder" in refused["bert"]["operating"]
    assert any(line.startswith("kernel: not measured") for line in said)
    assert "op_raw_routing_r90" in found["qwen3"].rows[0] and "routing_fraction" not in found["qwen3"].rows[0]
    assert "routing_fraction" in found["bert"].rows[0] and "op_raw_routing_r90" not in found["bert"].rows[0]
    assert len(found["bert"].rows) == 6
    assert "normalises queries and keys" in (tmp_path / "qwen3" / PAGE).read_text()


def test_a_killed_survey_goes_on_at_the_layer_and_ends_the_same(
    llama: tuple[HookedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, whole = llama
    measured: list[int] = []

    def counted(model: Any, *, layers: list[int], **options: Any) -> list[dict[str, Any]]:
        measured.extend(layers)
        if measured == [0, 1, 2]:
            raise KeyboardInterrupt
        return kernel_rows(model, layers=layers, **options)

    monkeypatch.setattr(survey_parts, "kernel_rows", counted)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path)
    assert measured == [0, 1, 2] and not (tmp_path / "survey.json").exists()
    run(model, tmp_path)
    assert measured == [0, 1, 2, 2]
    assert (held(tmp_path).folder / "heads.csv").read_bytes() == (held(whole).folder / "heads.csv").read_bytes()
    before = (held(tmp_path).folder / "eigenvalues.safetensors").read_bytes()
    assert before == (held(whole).folder / "eigenvalues.safetensors").read_bytes()


def test_a_finished_model_is_not_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny("gpt2").save_pretrained(tmp_path / "model")
    config = SurveyConfig(draws=2, rope=False, operating=False, behaviour=False, device="cpu")
    opened: list[str] = []

    def counted(name: str, **options: Any) -> Any:
        opened.append(name)
        return open_model(name, **options)

    monkeypatch.setattr("interp.attention.survey.open_model", counted)
    for layers in ((0, 2), (0, 2), None, None):
        chosen = SurveyConfig(**{**vars(config), "layers": layers})
        survey([tmp_path / "model"], tmp_path / "out", chosen, progress=False)
    assert len(opened) == 2  # for two layers, and for the one that was missing
    found = ModelSurvey.load(tmp_path / "out" / "model")
    assert sorted({row["layer"] for row in found.rows}) == [0, 1, 2]


def test_other_settings_and_other_models_are_not_mixed(llama: tuple[HookedModel, Path], tmp_path: Path):
    model, out = llama
    with pytest.raises(InputError, match=r"part 'kernel' made with other settings \(draws: 2 there, 3 asked for\)"):
        run(model, out, SurveyConfig(draws=3, offsets=4))
    with pytest.raises(InputError, match=r"part 'operating' made with other settings \(text: .* there, .* asked for\)"):
        survey([model], out, QUICK, tokens=batches(41), progress=False)
    for name, layers in (("a", 2), ("b", 3)):
        tiny("llama", num_hidden_layers=layers).save_pretrained(tmp_path / name / "model")
    config = SurveyConfig(draws=2, rope=False, operating=False, behaviour=False, device="cpu")
    survey([tmp_path / "a" / "model"], tmp_path / "out", config, progress=False)
    with pytest.raises(InputError, match=r"holds the survey of .*a/model, not of .*b/model: give another folder"):
        survey([tmp_path / "b" / "model"], tmp_path / "out", config, progress=False)


def test_bad_input_is_named(llama: tuple[HookedModel, Path], tmp_path: Path):
    model, _ = llama
    with pytest.raises(InputError, match="no model was given"):
        survey([], tmp_path)
    with pytest.raises(InputError, match="LlamaForCausalLM was given twice"):
        survey([model, model], tmp_path)
    with pytest.raises(InputError, match="no layer was chosen, so no head"):
        SurveyConfig(layers=())
    with pytest.raises(InputError, match="draws must be at least 2, got 1"):
        SurveyConfig(draws=1)
    with pytest.raises(InputError, match=r"'5' is no head; expected LAYER\.HEAD, such as 5\.1"):
        SurveyConfig(heads=("5",))
    with pytest.raises(InputError, match="layer 7 does not exist: the model has 3 layers, 0 to 2"):
        run(model, tmp_path / "a", SurveyConfig(layers=(1, 7)))
    with pytest.raises(InputError, match=r"head 1\.9 is not among those measured in .*: layers 0 to 2, heads 0 to 3"):
        run(model, tmp_path / "b", SurveyConfig(draws=2, offsets=4, heads=("1.9",)))
    with pytest.raises(InputError, match="is no model: there is no such folder or file"):
        open_model("no such model")
    with pytest.raises(InputError, match="not in the local cache and could not be fetched"):
        open_model("gpt2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no model: expected a config\.json"):
        open_model(str(tmp_path / "empty"))


def test_without_pyarrow_the_table_is_csv_and_that_is_said(
    llama: tuple[HookedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, _ = llama
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"heads\.parquet needs pyarrow: pip install 'midlens\[data\]'"):
        write_parquet(tmp_path / "heads.parquet", [{"layer": 0}])
    said: list[str] = []
    config = SurveyConfig(draws=2, layers=(0,), rope=False, operating=False, behaviour=False)
    run(model, tmp_path / "out", config, announce=said.append)
    assert any("needs pyarrow" in line and "heads.csv holds the same table" in line for line in said)
    folder = held(tmp_path / "out").folder
    assert (folder / "heads.csv").exists() and not (folder / "heads.parquet").exists()


def test_an_encoder_is_opened_from_its_folder(tmp_path: Path):
    bert = tiny_bert()
    bert.save_pretrained(tmp_path / "bert")
    opened: Any = open_model(str(tmp_path / "bert"), device="cpu")
    for name, tensor in bert.state_dict().items():
        torch.testing.assert_close(opened.state_dict()[name], tensor, rtol=0, atol=0)
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"the weight file .*model\.safetensors is damaged"):
        open_model(str(tmp_path / "bert"), device="cpu")


# ---- pieces ---------------------------------------------------------------------------------------------------------


def test_windows_are_even_and_come_from_long_enough_documents():
    model = HookedModel.wrap(tiny("llama", vocab_size=64), word_tokenizer())
    corpus = Corpus(tuple(documents([5, 30, 12, 40, 29, 31])), "toy")
    found = even_windows(model, corpus, max_tokens=90, length=30)
    assert [int(batch.doc[0]) for batch in found] == [1, 3, 5] and {batch.tokens.shape for batch in found} == {(1, 30)}
    words = [int(word[1:]) + 4 for word in corpus[3].text.split()]
    assert found[1].tokens[0].tolist() == words[:30]
    first = even_windows(model, corpus, max_tokens=31, length=30, prepend_bos=True)
    assert len(first) == 1 and first[0].tokens[0].tolist()[:2] == [1, int(corpus[1].text.split()[0][1:]) + 4]
    assert int(first[0].doc[0]) == 1 and int(first[0].start[0]) == -1
    with pytest.raises(InputError, match=r"no document of 'toy' has 41 tokens; .* smaller max_length"):
        even_windows(model, corpus, max_tokens=90, length=41)
    with pytest.raises(InputError, match="has no tokenizer"):
        even_windows(HookedModel.wrap(tiny("llama")), corpus, max_tokens=90, length=30)


def test_parts_keep_only_whole_layers(tmp_path: Path):
    parts = Parts(tmp_path)
    parts.open("kernel", {"draws": 2})
    rows = [{"layer": 3, "head": 0, "x": math.nan, "y": np.float64(0.1), "z": torch.tensor(2.0)}]
    parts.write("kernel", 3, rows, 1.5, {"values": np.arange(3)})
    (tmp_path / "parts" / "kernel-004.safetensors").write_bytes(b"")  # killed before its rows were there
    assert parts.layers("kernel") == [3] and parts.names() == ["kernel"]
    assert parts.read("kernel") == ([{"layer": 3, "head": 0, "x": None, "y": 0.1, "z": 2.0}], 1.5)
    assert parts.arrays()["values"][3].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="other settings"):
        parts.open("kernel", {"draws": 3})


def test_a_refused_part_may_be_tried_with_other_settings(tmp_path: Path):
    parts = Parts(tmp_path)
    parts.open("operating", {"max_length": 512})
    parts.refuse("operating", "no document is that long")
    parts.open("operating", {"max_length": 512})
    assert parts.facts("operating")["refused"] == "no document is that long"
    parts.open("operating", {"max_length": 32})
    assert parts.facts("operating") == {"settings": {"max_length": 32}, "refused": None}


def test_tables_are_joined_by_head_not_by_place():
    left = [{"layer": 0, "head": 0, "a": 1}, {"layer": 0, "head": 1, "a": 2}]
    right = [{"layer": 0, "head": 1, "b": 3}, {"layer": 1, "head": 0, "b": 4}]
    assert joined([left, right]) == [
        {"layer": 0, "head": 0, "a": 1},
        {"layer": 0, "head": 1, "a": 2, "b": 3},
        {"layer": 1, "head": 0, "b": 4},
    ]


def test_summaries_leave_out_what_is_missing():
    rows = [
        {"layer": 0, "head": 0, "x": 1.0, "z_x": -3.0, "spectral_abscissa": 0.5},
        {"layer": 0, "head": 1, "x": None, "z_x": 1.0, "spectral_abscissa": -0.5},
        {"layer": 2, "head": 0, "x": 5.0, "z_x": math.nan},
    ]
    found = summarise(rows)
    assert found["metrics"]["x"] == {"q25": 2.0, "median": 3.0, "q75": 4.0, "heads": 2}
    assert found["positive_abscissa"] == {"heads": 1, "of": 2} and found["null_positive_abscissa"] is None
    assert found["beyond_null"] == {"x": 0.5} == {"x": beyond(rows, "z_x")}
    assert by_layer(rows, "x") == {"0": 1.0, "2": 5.0} and positive(rows, "y") is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("gpt2", "gpt2"), ("google-bert/bert-base-uncased", "google-bert--bert-base-uncased"), ("..", "model")],
)
def test_folders_of_models(name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert folder_name(name) == folder


def test_text_does_not_change_columns_of_weights(llama: tuple[HookedModel, Path], tmp_path: Path):

    model, out = llama
    survey([model], tmp_path, QUICK, tokens=batches(20, 1), progress=False)
    one, two = held(out).rows, held(tmp_path).rows
    assert [row["routing_r90"] for row in one] == [row["routing_r90"] for row in two]
    assert [row["op_raw_routing_fraction"] for row in one] != [row["op_raw_routing_fraction"] for row in two]

"""Extraction: which rows, in which order, from which computation; plans, resume, append, refusal."""

import json
from inspect import unwrap

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from interp.errors import InputError
from interp.extract import extract, prepare
from interp.model import HookedModel
from interp.plan import Exclusions
from interp.sites import Site
from interp.store import ActivationStore, StoreSpec
from interp.tokenfile import tokenize
from tests.tiny_models import tiny
from tests.toy_store import SITES, ToyModel, documents, files_of, token_file, word_tokenizer

LENGTHS = [5, 30, 1, 17, 3, 64, 2, 9, 9, 9, 40]
SMALL = {"max_length": 16, "token_budget": 64, "rows_per_shard": 40, "progress": False}


def all_rows(store: ActivationStore, site: str) -> dict[tuple[int, int], torch.Tensor]:
    keys = store.keys(0, len(store))
    rows = store.rows(site, 0, len(store))
    found = {(int(d), int(p)): row for d, p, row in zip(keys.doc, keys.position, rows, strict=True)}
    assert len(found) == len(store)
    return found


@pytest.mark.parametrize("bos", [False, True])
def test_every_position_but_the_excluded_with_its_own_activation(tmp_path, bos):
    file = token_file(tmp_path / "t", LENGTHS, prepend_bos=bos)
    model = ToyModel()
    store = extract(model, file, SITES, tmp_path / "s", store_dtype="float32", **SMALL)
    own = int(bos)
    rows = all_rows(store, "resid_post.1")
    expected = 0
    for doc, length in enumerate(LENGTHS):
        for begin in range(0, length, 16 - own):
            window = file[doc][begin : begin + 16 - own].astype(np.int64)
            fed = torch.tensor([[*([1] * own), *window]])
            alone = model.stream(fed)[0]
            for place in range(1, fed.shape[1]):
                expected += 1
                assert torch.equal(rows[doc, begin + place - own], alone[place])
    assert len(store) == expected
    z = store.rows("z.0", 0, len(store))
    assert z.shape == (len(store), 2, 3)
    assert torch.equal(z.flatten(1), store.rows("resid_post.1", 0, len(store)))
    token = store.keys(0, len(store)).token
    assert [int(file[d][p]) for d, p in rows] == token.tolist()


def test_special_tokens_and_templates_stay_out_unless_asked_for(tmp_path):
    from interp.corpus import Document

    tokenizer = word_tokenizer()
    tokenizer.chat_template = "w9 {{ messages[0]['content'] }} w8"
    given = [Document("a", "w1 </s> w2"), Document("b", "", ({"role": "user", "content": "w3 w4"},))]
    file = tokenize(given, tokenizer, tmp_path / "t")

    def kept(name, **exclude):
        store = extract(ToyModel(), file, SITES, tmp_path / name, exclude=Exclusions(**exclude), progress=False)
        return set(all_rows(store, "z.0")), store.manifest["parts"][0]["excluded"]

    assert kept("default") == ({(0, 2), (1, 1), (1, 2)}, {"first_position": 2, "special_tokens": 1, "template": 1})
    assert kept("special", special_tokens=False)[0] == {(0, 1), (0, 2), (1, 1), (1, 2)}
    assert kept("template", template=False)[0] == {(0, 2), (1, 1), (1, 2), (1, 3)}
    everything = kept("all", first_position=False, special_tokens=False, template=False)
    assert everything == ({(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)}, {})
    assert kept("first", first_position=False)[0] == {(0, 0), (0, 2), (1, 1), (1, 2)}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_rows_equal_an_unbatched_unpadded_run(tmp_path, family):
    hf = tiny(family)
    file = tokenize(documents([7, 40, 3, 22, 22, 13]), word_tokenizer(), tmp_path / "t")
    sites = ["resid_pre.2", "embed"]
    store = extract(
        HookedModel.wrap(hf), file, sites, tmp_path / "s", store_dtype="float32", max_length=24, token_budget=96,
        progress=False,
    )  # fmt: skip
    resid, embed = all_rows(store, "resid_pre.2"), all_rows(store, "embed")
    for doc in range(len(file)):
        for begin in range(0, len(file[doc]), 24):
            tokens = torch.tensor(file[doc][begin : begin + 24].astype(np.int64))[None]
            with torch.no_grad():
                hidden = hf(tokens, output_hidden_states=True).hidden_states
            for place in range(1, tokens.shape[1]):
                torch.testing.assert_close(resid[doc, begin + place], hidden[2][0, place], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(embed[doc, begin + place], hidden[0][0, place], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_shards_are_plain_safetensors(tmp_path, dtype):
    file = token_file(tmp_path / "t", LENGTHS)
    store = extract(ToyModel(), file, SITES, tmp_path / "s", store_dtype=dtype, **SMALL)
    assert len(store.manifest["shards"]) > 2
    start = 0
    for entry in store.manifest["shards"]:
        path = store.path / entry["name"]
        content = load_file(path)
        assert set(content) == {"token", "doc", "position", *map(str, map(Site.parse, SITES))}
        stop = start + entry["rows"]
        for site in SITES:
            mapped = store.rows(site, start, stop)
            assert mapped.dtype == content[str(Site.parse(site))].dtype == getattr(torch, dtype)
            assert torch.equal(mapped, content[str(Site.parse(site))])
        with safe_open(path, "pt") as opened:
            spec = StoreSpec.from_json(json.loads(opened.metadata()["spec"]))
        assert spec == store.specs[0]
        start = stop


def test_the_plan_is_there_before_the_first_row_and_binds(tmp_path):
    file = token_file(tmp_path / "t", LENGTHS)

    class Stops(ToyModel):
        def capture(self, tokens, sites, **options):
            if self.passes == 3:
                raise ZeroDivisionError
            return super().capture(tokens, sites, **options)

    with pytest.raises(ZeroDivisionError):
        extract(Stops(), file, SITES, tmp_path / "s", **SMALL)
    plan = json.loads((tmp_path / "s" / "plan.json").read_text())
    model = ToyModel()
    store = extract(model, file, SITES, tmp_path / "s", **SMALL)
    assert json.loads((tmp_path / "s" / "plan.json").read_text()) == plan
    assert plan["shard_rows"] == [entry["rows"] for entry in store.manifest["shards"]]
    assert store.keys(0, len(store)).doc.tolist() == [
        d for d, start, n in zip(plan["doc"], plan["start"], plan["length"], strict=True) for _ in range(n - 1)
    ]


def test_a_finished_extraction_is_not_repeated(tmp_path):
    file = token_file(tmp_path / "t", LENGTHS)
    extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL)
    before = files_of(tmp_path / "s")
    again = ToyModel()
    extract(again, file, SITES, tmp_path / "s", **SMALL)
    extract(again, file, SITES, tmp_path / "s", max_length=16, progress=False)  # budget and shards: as planned
    assert again.passes == 0
    assert files_of(tmp_path / "s") == before


def test_the_plan_in_words(tmp_path):
    file = token_file(tmp_path / "t", LENGTHS)
    model = ToyModel()
    extraction = prepare(model, file, SITES, tmp_path / "s", **{k: v for k, v in SMALL.items() if k != "progress"})
    text = extraction.describe()
    for part in ("toy", "blocks.1.hook_resid_post", f"{file.n_tokens - 2:,} from 10 documents", "first position",
                 "free under", "memory", "about"):  # fmt: skip
        assert part in text
    assert not (tmp_path / "s").exists()
    extraction.run(progress=False)
    assert model.passes == len(extraction.plan.buckets)  # the timed batch was not wasted


def test_other_settings_are_refused_by_name(tmp_path):
    file = token_file(tmp_path / "t", LENGTHS)
    extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL)
    cases = {
        "max_length: 16 there, 8 asked for": {"max_length": 8},
        "dtype: 'bfloat16' there, 'float32' asked for": {"store_dtype": "float32"},
        "seed: 0 there, 5 asked for": {"seed": 5},
        "token_budget: 64 there, 32 asked for": {"token_budget": 32},
        "docs: 'all' there, '.*' asked for": {"docs": [0, 1]},
        "excluded: .* there, .* asked for": {"exclude": Exclusions(first_position=False)},
    }
    before = files_of(tmp_path / "s")
    for message, change in cases.items():
        with pytest.raises(InputError, match=f"made with other settings.*{message}"):
            extract(ToyModel(), file, SITES, tmp_path / "s", **{**SMALL, **change})
    with pytest.raises(InputError, match=r"sites: .* there, .* asked for"):
        extract(ToyModel(), file, SITES[:1], tmp_path / "s", **SMALL)
    with pytest.raises(InputError, match=r"tokens: .* there, .* asked for"):
        extract(ToyModel(), token_file(tmp_path / "u", [9]), SITES, tmp_path / "s", **SMALL)
    other = ToyModel()
    other.name = "another"
    with pytest.raises(InputError, match="model: 'toy' there, 'another' asked for"):
        extract(other, file, SITES, tmp_path / "s", **SMALL)
    assert files_of(tmp_path / "s") == before


def test_appending_is_a_second_part(tmp_path):
    file, more = token_file(tmp_path / "t", LENGTHS), token_file(tmp_path / "u", [12, 20], seed=9)
    extract(ToyModel(), file, SITES, tmp_path / "s", docs=[5, 1], **SMALL)
    first = files_of(tmp_path / "s")
    extract(ToyModel(), file, SITES, tmp_path / "s", docs=[3, 10], append=True, **SMALL)
    store = extract(ToyModel(), more, SITES, tmp_path / "s", append=True, **SMALL)
    store.verify()
    assert all(files_of(tmp_path / "s")[n] == b for n, b in first.items() if n != "manifest.json")
    docs = set(store.keys(0, len(store)).doc.tolist())
    assert docs == {5, 1, 3, 10, len(file), len(file) + 1}
    again = ToyModel()
    assert len(extract(again, more, SITES, tmp_path / "s", append=True, **SMALL)) == len(store)
    assert again.passes == 0
    with pytest.raises(InputError, match="holds 1 of these documents already"):
        extract(ToyModel(), file, SITES, tmp_path / "s", docs=[0, 3], append=True, **SMALL)
    with pytest.raises(InputError, match="rows would be of another kind: dtype"):
        extract(ToyModel(), file, SITES, tmp_path / "s", docs=[0], append=True, **{**SMALL, "store_dtype": "float32"})


def test_an_appended_store_equals_its_parts(tmp_path):
    file = token_file(tmp_path / "t", LENGTHS)
    parts = [extract(ToyModel(), file, SITES, tmp_path / f"p{d}", docs=[d], **SMALL) for d in (1, 5)]
    for docs in ([1], [5]):
        whole = extract(ToyModel(), file, SITES, tmp_path / "s", docs=docs, append=True, **SMALL)
    merged = ActivationStore.merge([p.path for p in parts], tmp_path / "m")
    assert files_of(whole.path) == files_of(merged.path)


def test_impossible_requests_are_refused(tmp_path):
    file = token_file(tmp_path / "t", LENGTHS)
    cases = {
        "no site to extract": {"sites": []},
        "has no row per token": {"sites": ["pattern.0"]},
        "names no site": {"sites": ["nonsense"]},
        "store_dtype must be one of": {"store_dtype": "int4"},
        "docs names 1 documents twice": {"docs": [1, 1]},
        "docs must lie in": {"docs": [99]},
        "rows_per_shard must be at least 1": {"rows_per_shard": 0},
        "cannot hold one window of 64 tokens": {"max_length": 100, "token_budget": 50},
        "nothing is left of 1 tokens without first_position": {"docs": [2]},
    }
    for message, change in cases.items():
        with pytest.raises(InputError, match=message):  # unwrapped: without the type checker of the tests
            unwrap(prepare)(ToyModel(), file, **{"sites": SITES, "path": tmp_path / "s", **change})
    assert not (tmp_path / "s").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"no activation store and not empty \(it holds 'thesis.txt'\)"):
        extract(ToyModel(), file, SITES, tmp_path / "full", progress=False)

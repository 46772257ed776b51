"""`--dry-run` says what the real command then does, writes nothing and loads no weights; `--json` of real commands."""

import json
from pathlib import Path
from typing import Any

import pytest

from interp.extract import extract
from interp.model import HookedModel
from interp.outline import Sketch
from interp.plan import Plan
from interp.sites import Site
from interp.store import ActivationStore
from midlens.__main__ import main
from saes.sae import SAE
from tests.tiny_folder import tiny_folder
from tests.toy_store import token_file

SITES = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tiny_folder(folder)
    model = HookedModel.load(str(folder / "model"), device="cpu")
    extract(model, token_file(folder / "store.tokens", [30] * 20, seed=1), SITES, folder / "store", progress=False)
    return folder


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> Any:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(HookedModel, "load", refuse)
    monkeypatch.setattr("interp.loading._load_whole", refuse)
    monkeypatch.setattr("interp.loading.load_partial", refuse)


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    """Status, the JSON on standard output and standard error, of a command with `--json`."""
    status = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


def test_the_plan_of_an_extraction_is_the_one_then_made(source: Path, tmp_path: Path, capsys, monkeypatch):
    given = ["extract", "--model", source / "model", "--corpus", source / "text.jsonl", "--sites", *SITES,
             "--max-length", 16, "--token-budget", 64, "--device", "cpu", "--out", tmp_path / "store"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.loading._load_whole", None)
        patch.setattr("interp.loading.load_partial", None)
        status, told, _ = run(capsys, *given, "--dry-run")
    assert status == 0 and told["dry_run"] and state(tmp_path) == {}
    status, done, err = run(capsys, *given)
    assert status == 0 and done["path"] == done["paths"][-1] == str(tmp_path / "store") and "rows" in err
    plan = Plan.load(tmp_path / "store" / "plan.json")
    assert told["plan"]["rows"] == plan.rows == done["figures"]["rows"] == len(ActivationStore.open(tmp_path / "store"))
    assert told["plan"]["bytes"] == plan.rows * plan.layout.row_bytes
    assert told["plan"]["batches"].startswith(f"{len(plan.buckets):,} of up to 64 tokens")
    before = state(tmp_path)
    status, told, _ = run(capsys, *given, "--dry-run")
    assert status == 0 and state(tmp_path) == before and told["plan"]["bytes"] == 0 and told["plan"]["seconds"] == 0
    assert "of which 1 are there already" in told["plan"]["shards"] and "is reused" in told["plan"]["tokens"]
    assert run(capsys, *given, "--dry-run", "--store-dtype", "float32")[0] == 2  # as the command itself would refuse


def test_a_sketch_has_the_shapes_and_the_bytes_of_the_model(source: Path):
    sketch = Sketch.of(str(source / "model"), dtype="float32", device="cpu")
    site = Site.parse("resid_post.0")
    for upto in (None, site):
        model = HookedModel.load(str(source / "model"), upto=upto, dtype="float32", device="cpu")
        held = sum(p.numel() * 4 for p in model.hf.parameters())
        if upto is None:
            assert sketch.weight_bytes() == held
        else:
            assert held <= sketch.weight_bytes(upto) < sketch.weight_bytes()


def test_plans_write_nothing_and_load_nothing(source: Path, tmp_path: Path, capsys, unloaded: None):
    model, text = source / "model", ["--corpus", source / "text.jsonl"]
    store = ["--store", source / "store", "--site", SITES[0]]
    sae = tmp_path / "sae"
    for given, told in (
        (["train", *store, "--expansion", 2, "--k", 2, "--out", sae], {"rows": 580}),
        (["train", "--model", model, *text, "--site", SITES[0], "--d-sae", 32, "--k", 2, "--out", sae], {}),
        (["sweep", *store, "--k", 2, 4, "--widths", 24, "--out", tmp_path / "sweep"], {"rows": 580}),
        (["evaluate", "--sae", sae, "--store", source / "store", "--tokens", "x", "--model", model], {"rows": 580}),
        (["discover", "--model", model, *text, "--expansion", 2, "--k", 2, "--out", tmp_path / "run"], {}),
        (["bench", "--quick", "--folder", tmp_path], {}),
        (["attention", "survey", model, "--max-length", 16, "--out", tmp_path / "survey"], {}),
        (["steer", "fit", "--model", model, "--contrast", "sentiment", "--sites", SITES[0], "--out", "x"], {}),
        (["sudoku", "demo", "--out", tmp_path / "demo"], {}),
    ):
        status, found, err = run(capsys, *given, "--dry-run")
        assert status == 0, (given, err)
        assert found["plan"].items() >= told.items() and state(tmp_path) == {}, given


def test_the_plan_of_a_training_is_of_the_rows_and_batches_it_then_has(source: Path, tmp_path: Path, capsys):
    """Heads side by side, a batch no larger than the store, epochs as they come out, the written site of a stream."""
    rows = tmp_path / "z"
    model = HookedModel.load(str(source / "model"), device="cpu")
    extract(model, token_file(tmp_path / "z.tokens", [30] * 20, seed=1), ["z.0"], rows, progress=False)
    _, *sizes = ActivationStore.open(rows).rows("z.0", 0, 1).shape
    given = ["train", "--store", rows, "--expansion", 2, "--batch-size", 4096, "--tokens", 870, "--device", "cpu"]
    status, told, err = run(capsys, *given, "--out", tmp_path / "sae", "--dry-run")
    assert status == 0, err
    status, done, _ = run(capsys, *given, "--out", tmp_path / "sae")
    d = sizes[0] * sizes[1]
    assert status == 0 and (done["figures"]["d_in"], done["figures"]["d_sae"]) == (d, 2 * d)
    assert told["plan"]["sae"].startswith(f"topk, {d} to {2 * d} features")
    assert told["plan"]["steps"] == "2 of 580 rows (2 epochs)"
    exact = run(capsys, *given[:-4], "--batch-size", 580, "--device", "cpu", "--out", tmp_path / "b", "--dry-run")[1]
    assert told["plan"]["memory"] == exact["plan"]["memory"]
    stream = ["train", "--model", source / "model", "--corpus", source / "text.jsonl", "--site", "resid_post.0"]
    wide = run(capsys, *stream, "--site-out", "mlp_out.1", "--k", 2, "--out", tmp_path / "t", "--dry-run")[1]["plan"]
    assert "blocks.1.hook_mlp_out" in wide["stream sites"]
    sweep = ["sweep", "--store", rows, "--k", 2, "--widths", 24, "--out", tmp_path / "sweep", "--dry-run"]
    memory = {n: run(capsys, *sweep, "--seeds", *range(n))[1]["plan"]["memory"] for n in (1, 2)}
    assert memory[2] == f"{memory[1]}; then {memory[1]}"  # one after the other
    given = ["train", *stream[1:], "--k", 2, "--d-sae", 24, "--tokens", 8, "--batch-size", 1, "--device", "cpu"]
    assert run(capsys, *given, "--out", tmp_path / "single")[0] == 0  # of batches of one row nothing can be mixed


def test_a_plan_counts_what_is_there(source: Path, tmp_path: Path, capsys):
    given = ["sweep", "--store", source / "store", "--site", SITES[0], "--widths", 24, "--base.epochs", 1,
             "--base.batch-size", 64, "--device", "cpu", "--out", tmp_path / "sweep"]  # fmt: skip
    status, told, _ = run(capsys, *given, "--k", 2, "--dry-run")
    assert told["plan"]["there"] == "none of them"
    assert main([*map(str, given), "--k", "2", "--dry-run"]) == 0  # for people
    assert f"members  {told['plan']['members']}\n" in capsys.readouterr().out
    status, done, _ = run(capsys, *given, "--k", 2)
    assert status == 0 and list(done["figures"]) == [told["plan"]["members"]]
    status, told, _ = run(capsys, *given, "--k", 2, 4, "--dry-run")
    first, _ = told["plan"]["members"].split(", ")
    assert told["plan"]["there"] == first == next(iter(done["figures"]))


def test_the_json_of_train_store_and_evaluate(source: Path, tmp_path: Path, capsys):
    train = ["train", "--store", source / "store", "--site", SITES[0], "--d-sae", 24, "--k", 3, "--epochs", 1,
             "--batch-size", 64, "--device", "cpu", "--out", tmp_path / "sae"]  # fmt: skip
    status, done, _ = run(capsys, *train)
    assert status == 0 and done["command"] == "train" and SAE.load(done["path"]).config.d_sae == 24
    width = SAE.load(done["path"]).config.d_in
    assert done["figures"] == {"architecture": "topk", "d_in": width, "d_sae": 24, "rows": 580}
    status, done, err = run(capsys, "evaluate", "--sae", tmp_path / "sae", "--store", source / "store", "--tokens",
                            source / "store.tokens", "--loss-tokens", 60, "--model", source / "model", "--site",
                            SITES[0], "--out", tmp_path / "figures.json")  # fmt: skip
    assert status == 0, err
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert done["path"] == str(tmp_path / "figures.json")
    assert done["figures"]["explained_variance"] == kept["explained_variance"]
    status, done, _ = run(capsys, "store", "verify", source / "store")
    assert status == 0 and done["figures"] == {"rows": 580, "sites": SITES, "shards": 1, "damage": None}
    shard = source / "store" / "shard-00000.safetensors"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        status, done, _ = run(capsys, "store", "verify", source / "store")
        assert status == 1 and done["status"] == 1 and "shard-00000" in done["figures"]["damage"]
    finally:
        shard.write_bytes(whole)
    assert run(capsys, "store", "info", tmp_path / "nothing")[:2] == (2, None)


def test_parity_and_completion_as_json(source: Path, capsys):
    asked = ["--device", "cpu", "--dtype", "float32", "--opinions", "plain", "--sites", "z.1"]
    status, done, err = run(capsys, "parity", source / "model", *asked)
    assert status == 0 and done["figures"]["above"] == 0 and done["figures"]["compared"] == 2 and "passed" in err
    status, done, _ = run(capsys, "parity", source / "model", *asked, "--tolerance", 1e-12)
    assert status == done["status"] == 1 and done["figures"]["above"] == done["figures"]["compared"]
    status, done, _ = run(capsys, "completion", "bash")
    assert status == 0 and "complete" in done["figures"]["script"]

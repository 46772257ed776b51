"""`midlens extract` in pieces, on Ray, to a URL, and `midlens store merge`: the bytes of one process, and bad input."""

import json
import os
import sys
from pathlib import Path

import pytest

from interp.store import ActivationStore
from midlens.__main__ import main
from tests.tiny_models import tiny
from tests.toy_store import files_of


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory, smollm2) -> list[str]:
    folder = tmp_path_factory.mktemp("source")
    tiny("llama", vocab_size=len(smollm2.tokenizer)).save_pretrained(folder / "model")
    smollm2.tokenizer.save_pretrained(folder / "model")
    rows = [{"id": f"d{i}", "text": f"Document {i}: " + " ".join(str(j * i) for j in range(30))} for i in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["extract", "--model", str(folder / "model"), "--corpus", str(folder / "text.jsonl"), "--sites",
            "resid_post.1", "--max-length", "32", "--token-budget", "128"]  # fmt: skip


@pytest.fixture
def small_shards(monkeypatch):
    """64 MiB of this model's rows would be one shard."""
    sizes = {"token_budget": 128, "rows_per_shard": 400, "multiple": 1}
    monkeypatch.setattr(sys.modules["interp.extract"], "suited", lambda *_: dict(sizes))


def test_array_job_and_merge(common, tmp_path, small_shards, capsys):
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    for index in (3, 1, 2):
        assert main([*common, "--out", str(tmp_path / "s"), "--part", f"{index}/3"]) == 0
    pieces = [str(path) for path in sorted((tmp_path / "s.pieces").iterdir())]
    assert capsys.readouterr().out.splitlines()[-1] == pieces[1]
    assert main(["store", "merge", *pieces, "--out", str(tmp_path / "s")]) == 0
    assert len(ActivationStore.open(tmp_path / "s").manifest["shards"]) >= 4
    assert files_of(tmp_path / "s") == files_of(tmp_path / "one")


def test_to_a_url_and_back(common, tmp_path, small_shards, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    assert main([*common, "--out", "memory://b/acts"]) == 0
    assert "memory://b/acts" in capsys.readouterr().out
    assert main(["store", "verify", "memory://b/acts"]) == 0
    store = ActivationStore.open("memory://b/acts")
    assert store.rows("resid_post.1", 0, len(store)).equal(
        ActivationStore.open(tmp_path / "one").rows("resid_post.1", 0, len(store))
    )


@pytest.mark.slow
def test_ray_from_the_command_line(common, tmp_path, small_shards, monkeypatch, capsys):
    pytest.importorskip("ray")
    root = Path(__file__).resolve().parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "kernels")]))
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    # The plan is made by a worker, whose shards are of the usual size: here one.
    assert main([*common, "--out", str(tmp_path / "r"), "--engine", "ray", "--workers", "1"]) == 0
    assert "workers     1 of 1 CPUs" in capsys.readouterr().out
    ours, one = ActivationStore.open(tmp_path / "r"), ActivationStore.open(tmp_path / "one")
    assert ours.rows("resid_post.1", 0, len(one)).equal(one.rows("resid_post.1", 0, len(one)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--part", "3/2"], "piece 3/2 does not exist"),
        (["--part", "0/0"], "piece 0/0 does not exist"),
        (["--part", "two"], "a piece is written i/n"),
        (["--part", "1/2", "--engine", "ray"], "give --part or --engine ray, not both"),
        (["--part", "1/2", "--out", "memory://b/x"], "write to a folder that all machines see"),
        (["--engine", "ray", "--out", "memory://b/x"], "write to a folder that all machines see"),
        (["--engine", "ray", "--workers", "0"], "expected at least 1 worker"),
        (["--out", "floppy://b/x"], "fsspec cannot use 'floppy'"),
    ],
)
def test_bad_input_is_one_line_before_any_model_is_loaded(options, said, tmp_path, capsys):
    where = [] if "--out" in options else ["--out", str(tmp_path / "s")]
    assert main(["extract", "--model", "no/such/model", "--sites", "resid_post.1", *options, *where]) == 2
    assert said in capsys.readouterr().err


def test_bad_merges(tmp_path, capsys):
    for arguments, said in [
        (["merge", "a", "b"], "store merge needs --out"),
        (["verify", "a", "--out", "b"], "info and verify take none"),
        (["info", "a", "b"], "store info takes one path, got 2"),
        (["merge", "s3://a/b", "--out", str(tmp_path / "x")], "merged on a local disk, not at s3://a/b"),
    ]:
        assert main(["store", *arguments]) == 2
        assert said in capsys.readouterr().err

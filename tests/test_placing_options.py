"""Options of commands for a model larger than one device: the results of the whole model, and the same from a file.

Half of the tiny model lies on disk, which one machine without GPUs can do; what a map means is in test_placement.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.distributed import WhereConfig, extract_anywhere
from interp.errors import InputError
from interp.from_text import ExtractConfig
from interp.placement import PlacingConfig
from interp.store import ActivationStore
from midlens.__main__ import main, parsed
from tests.tiny_folder import tiny_folder

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk",
    "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
}  # fmt: skip


def run(*words: object) -> int:
    return main(list(map(str, words)))


def texts(folder: Path) -> list[object]:
    return ["--corpus", folder / "text.jsonl", "--max-length", 32]


def jobs(folder: Path) -> dict[str, list[object]]:
    """Commands that load a model, without `--out`, by the name of what they make."""
    model = ["--model", folder / "model"]
    files = [f"--{kind}={folder / f'{kind}.txt'}" for kind in ("source", "target", "neutral")]
    return {
        "store": ["extract", *model, *texts(folder), "--dtype=float32", "--store-dtype=float32", "--sites=z.2"],
        "steering": ["steer", "fit", *model, *files, "--level=None", "--sites=resid_post.1", "--method=add"],
        "run": ["discover", *model, *texts(folder), "--dtype=float32", "--site=resid_post.1", "--expansion=2", "--k=4",
                "--epochs=1", "--train-tokens=800", "--held-out-tokens=200", "--loss-tokens=100"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with what these commands make of the whole model, in whole/, and of one in two places, in parts/."""
    folder = tmp_path_factory.mktemp("placing")
    tiny_folder(folder)
    (folder / "places.json").write_text(json.dumps(PLACES))
    (folder / "gap.json").write_text(json.dumps({name: to for name, to in PLACES.items() if name != "model.layers.1"}))
    for kind, first in (("source", 1), ("target", 11), ("neutral", 21)):
        lines = [" ".join(f"w{first + i + j}" for j in range(3 + i)) for i in range(3)]
        (folder / f"{kind}.txt").write_text("\n".join(lines))
    placed = ["--device-map", folder / "places.json", "--offload-folder", folder / "offload"]
    for side, options in (("whole", []), ("parts", placed)):
        for name, command in jobs(folder).items():
            assert run(*command, *options, "--out", folder / side / name) == 0
    return folder


def test_a_store_of_a_model_in_two_places(made: Path):
    whole, parts = (ActivationStore.open(made / side / "store") for side in ("whole", "parts"))
    assert len(parts) > 1000 and torch.equal(*(store.rows("z.2", 0, len(store)) for store in (whole, parts)))


def test_a_steering_of_a_model_in_two_places(made: Path, capsys: pytest.CaptureFixture[str]):
    told = []
    for side, options in (("whole", []), ("parts", ["--device-map", made / "places.json"])):
        command = ["steer", "apply", "w1 w2", "--model", made / "model", "--beside", "--max-new-tokens=6", "--json"]
        assert run(*command, "--steering", made / side / "steering", *options) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1] and told[0]["steered"] != told[0]["unsteered"]


def test_a_discovery_of_a_model_in_two_places(made: Path):
    for file in ("evaluation.json", "features.jsonl", "config.json", "sae/sae_weights.safetensors"):
        whole, parts = ((made / side / "run" / file).read_bytes() for side in ("whole", "parts"))
        assert whole == parts, file
    # Where the model lies is no part of the run: without a map it is the same one, and done.
    assert run(*jobs(made)["run"], "--out", made / "parts/run") == 0


def test_every_command_that_takes_a_map_loads_the_model_by_it(made: Path, tmp_path: Path, capsys):
    """A map with a gap is refused where a model is loaded by it, and named."""
    model = ["--model", made / "model"]
    sae, held_out = made / "whole/run/sae", made / "whole/run/store/held_out"
    tokens, steering = made / "whole/run/tokens/held_out", made / "whole/steering"
    rows = [*model, *texts(made), "--site=resid_post.1"]
    commands = {
        **jobs(made),
        "train": ["train", *rows],
        "sweep": ["sweep", *rows, "--k=4", "--held-out", held_out, "--tokens", tokens],
        "evaluation": ["evaluate", *model, "--sae", sae, "--store", held_out, "--tokens", tokens],
        "apply": ["steer", "apply", "w1", *model, "--steering", steering],
        "primitives": ["primitives", *model, "--site=resid_post.1", "--stories=1"],
        "evaluated": ["steer", "evaluate", steering, *model, "--contrast=sentiment"],
    }
    for name, command in commands.items():
        out = [] if name in ("evaluation", "apply") else ["--out", tmp_path / name]
        assert run(*command, *out, "--device-map", made / "gap.json", "--offload-folder", tmp_path / "off") == 2, name
        assert "device_map leaves out 1 of the model's modules: model.layers.1. Give" in capsys.readouterr().err, name


def test_a_file_of_options_is_equal_to_the_flags(made: Path, tmp_path: Path):
    flags = ["--device-map", "auto", "--max-memory", "0=70GiB", "cpu=100GiB", "--offload-folder", tmp_path]
    command = [*map(str, jobs(made)["store"]), "--out", str(tmp_path / "store")]
    given: Any = parsed([*command, *map(str, flags), "--tp-plan", "None"])
    written = tmp_path / "options.toml"
    assert given.device_map == "auto" and run(*command, *flags, "--write-config", written) == 0
    assert 'max_memory = ["0=70GiB", "cpu=100GiB"]' in written.read_text()
    assert parsed(["extract", "--config", str(written)]) == given
    expected = {"device_map": "auto", "max_memory": {0: "70GiB", "cpu": "100GiB"}, "offload_folder": tmp_path}
    assert given.placing() == expected
    assert set(PlacingConfig().placing().values()) == {None}


def test_options_that_cannot_be_read_are_refused_with_what_was_expected(made: Path, tmp_path: Path):
    def refusal(**options: Any) -> str:
        with pytest.raises(InputError) as error:
            PlacingConfig(**options).placing()
        return str(error.value)

    for limit in ("70GiB", "gpu=70GiB", "0=70", "0=much", "-1=1GiB"):
        assert f"max_memory {limit!r}: expected a device's number or cpu, and a size" in refusal(max_memory=(limit,))
    assert "a device is named twice" in refusal(max_memory=("0=1GiB", "0=2GiB"))
    assert "expected auto, balanced, balanced_low_0, sequential or a mapping" in refusal(device_map="all")
    assert "nowhere.json" in refusal(device_map=str(tmp_path / "nowhere.json"))
    (tmp_path / "list.json").write_text("[1]")
    assert "expected an object, got [1]" in refusal(device_map=str(tmp_path / "list.json"))
    config = ExtractConfig(model=str(made / "model"), sites=("z.2",), corpus=str(made / "text.jsonl"), tp_plan="auto")
    for out, where in ((tmp_path / "store", WhereConfig(engine="ray")), (Path("memory://store"), WhereConfig())):
        with pytest.raises(InputError, match="the first process of torchrun writes to a folder"):
            extract_anywhere(config, out, where)


@pytest.mark.slow
def test_a_store_of_a_model_cut_across_two_processes(made: Path, tmp_path: Path):
    """One process speaks and writes; where it fails the other does not go on."""

    def torchrun(*more: object) -> subprocess.CompletedProcess[str]:
        started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "midlens"]
        command = [*jobs(made)["store"], "--tp-plan=auto", "--out", tmp_path / "store", *more]
        return subprocess.run(
            [*started, *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    done = torchrun()
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines.count(str(tmp_path / "store")) == 1 and sum(line.startswith("tokens ") for line in lines) == 1
    whole, cut = ActivationStore.open(made / "whole/store"), ActivationStore.open(tmp_path / "store")
    cut.verify()
    assert len(cut) == len(whole)
    found, expected = (store.rows("z.2", 0, len(store)) for store in (cut, whole))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    refused = torchrun("--seed=5")  # the store is of another seed
    assert refused.returncode != 0 and "the first of the processes that share the model failed" in refused.stderr

"""A program that ends with iterators open says nothing of them: no traceback, no waiting."""

import subprocess
import sys
from pathlib import Path

import pytest

from interp.extract import extract
from tests.toy_store import SITES, ToyModel, token_file

ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import sys, threading, time
from interp.extract import extract
from interp.shuffle import one_ahead, prefetched
from interp.store import ActivationStore
from interp.stream import ActivationStream
from interp.tokenfile import TokenFile
from saes.paired import PairedRows
from tests.toy_store import SITES, ToyModel

folder, how = sys.argv[1:]
store = ActivationStore.open(f"{folder}/store")
tokens = TokenFile.open(f"{folder}/tokens")
stream = ActivationStream(ToyModel(), tokens, SITES, buffer_bytes=20_000, max_length=32, token_budget=64)
pair = PairedRows(store, store)

def begun():
    iterators = [
        store.batches(SITES, 16, seed=0, workers=2),
        pair.batches(pair.sites[:1], 16, seed=0),
        stream.batches(SITES, 16, seed=0),
        prefetched(lambda item: time.sleep(0.2), range(100), 2),
        one_ahead(lambda item, stopped: time.sleep(0.2), range(100)),
    ]
    for iterator in iterators:
        next(iterator)
    return iterators

class Broken(ToyModel):
    def capture(self, tokens, sites, **options):
        if tokens.numel() > 1 and len(self.shapes) > 4:
            raise RuntimeError("the last word")
        return super().capture(tokens, sites, **options)

match how:
    case "kept":
        kept = [*begun(), store.batches(SITES, 16, seed=0), stream.batches(SITES, 16, seed=0)]
    case "in a traceback":
        held = begun()
        raise RuntimeError("the last word")
    case "elsewhere":
        def use():
            for iterator in begun():
                for _ in iterator:
                    time.sleep(0.05)
        threading.Thread(target=use, daemon=True).start()
        time.sleep(1)
    case "extraction":
        extract(Broken(), tokens, SITES, f"{folder}/broken", token_budget=64, max_length=32, progress=False)
print("done")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("exit")
    tokens = token_file(home / "tokens", [30] * 40)
    extract(ToyModel(), tokens, SITES, home / "store", progress=False)
    return home


@pytest.mark.parametrize("how,fails", [("kept", 0), ("in a traceback", 1), ("elsewhere", 0), ("extraction", 1)])
def test_nothing_is_said_of_iterators_left_open(how, fails, folder):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), how],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stderr.strip()
    assert done.returncode == fails and done.stdout == ("" if fails else "done\n"), said
    assert said.endswith("RuntimeError: the last word") if fails else not said, said
    assert said.count("Traceback") == fails and "ignored" not in said, said

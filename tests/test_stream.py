"""`interp.stream`: rows, order, resume, memory, threads; and training from it."""

import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import interp.stream
from interp.corpus import Document
from interp.errors import InputError
from interp.extract import extract
from interp.loop import checkpoints
from interp.model import HookedModel
from interp.plan import Exclusions
from interp.sealing import digest
from interp.sites import Site
from interp.stream import ActivationStream
from interp.tokenfile import tokenize
from saes.recipe import TrainConfig
from saes.train import fit
from tests.tiny_models import tiny
from tests.toy_store import SITES, ToyModel, token_file

RESID = Site.parse("resid_post.1")
ROW = 12 + 4 * 6 * 2  # three keys, two sites of six float32
LENGTHS = [40, 7, 90, 33, 5, 61, 18, 74, 29, 52] * 3


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens") / "t", LENGTHS)


def streamed(model, tokens, *, generation: int = 300, **settings) -> ActivationStream:
    settings = {"max_length": 32, "token_budget": 128, "dtype": "float32", **settings}
    return ActivationStream(model, tokens, SITES, buffer_bytes=2 * generation * ROW, **settings)


def flat(batches) -> list[torch.Tensor]:
    """Everything a list of batches holds, in order."""
    return [t for batch in batches for t in (*batch.acts.values(), *batch[1:])]


def equal(a, b) -> bool:
    a, b = flat(a), flat(b)
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def places(batches) -> list[tuple[int, int]]:
    return [key for batch in batches for key in zip(batch.doc.tolist(), batch.position.tolist(), strict=True)]


@pytest.mark.parametrize(
    "settings", [{}, {"exclude": Exclusions(False, False, False)}, {"docs": [5, 2, 20, 7, 8, 9, 3]}]
)
def test_every_kept_row_once_an_epoch_and_its_number_known_without_the_model(tokens, tmp_path, settings):
    model = ToyModel()
    stream = streamed(model, tokens, **settings)
    n = len(stream)
    assert model.passes == 0
    store = extract(
        ToyModel(), tokens, SITES, tmp_path / "s", store_dtype="float32", max_length=32, progress=False, **settings
    )
    keys = store.keys(0, len(store))
    expected = sorted(zip(keys.doc.tolist(), keys.position.tolist(), strict=True))
    for epoch in range(2):
        batches = list(stream.batches(SITES, 64, seed=3, epoch=epoch))
        assert sorted(places(batches)) == expected and len(expected) == n
        assert [len(batch.doc) for batch in batches] == [64] * (n // 64) + [n % 64] * (n % 64 > 0)


def test_rows_are_those_of_a_store(tokens, tmp_path):
    """The toy model's rows do not depend on their batch: equal to the last bit."""
    store = extract(ToyModel(), tokens, SITES, tmp_path / "s", store_dtype="bfloat16", max_length=32, progress=False)
    whole = store.gather(SITES, np.arange(len(store)))
    row_of = {key: i for i, key in enumerate(places([whole]))}
    for batch in streamed(ToyModel(), tokens, dtype="bfloat16").batches(SITES, 64, seed=0):
        rows = [row_of[key] for key in places([batch])]
        assert torch.equal(batch.token, whole.token[rows])
        for site, x in batch.acts.items():
            assert x.dtype is torch.bfloat16 and torch.equal(x, whole.acts[site][rows])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_rows_of_a_transformer_are_those_of_a_store_whatever_the_batches(tmp_path, family):
    model = HookedModel.wrap(tiny(family))
    tokens = token_file(tmp_path / "t", [30, 12, 44, 25, 9, 38] * 3)
    sites = ["resid_post.1", "mlp_out.0"]
    store = extract(model, tokens, sites, tmp_path / "s", store_dtype="float32", max_length=24, progress=False)
    stream = ActivationStream(
        model, tokens, sites, max_length=24, token_budget=96, dtype="float32", buffer_bytes=2 * 120 * (12 + 4 * 48 * 2)
    )
    assert stream.material.generations >= 3 and len(stream) == len(store)
    whole = store.gather(sites, np.arange(len(store)))
    row_of = {key: i for i, key in enumerate(places([whole]))}
    for batch in stream.batches(sites, 50, seed=1):
        rows = [row_of[key] for key in places([batch])]
        for site, x in batch.acts.items():
            torch.testing.assert_close(x, whole.acts[site][rows], rtol=1e-5, atol=1e-5)


def test_seeds_and_epochs_have_orders_of_their_own(tokens):
    stream = streamed(ToyModel(), tokens)
    orders = [places(stream.batches([], 64, seed=s, epoch=e)) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert places(streamed(ToyModel(), tokens).batches([RESID], 64, seed=0)) == orders[0]
    documents = [list(dict.fromkeys(doc for doc, _ in order[:300])) for order in orders]
    assert documents[0] != documents[1]  # other documents meet in another epoch


@pytest.mark.parametrize("size", [7, 64, 700])
def test_later_batches_without_the_ones_before(tokens, size):
    whole = list(streamed(ToyModel(), tokens).batches(SITES, size, seed=2, epoch=1))
    step = max(1, len(whole) // 3)
    for first in {*range(0, len(whole), step), len(whole) - 1}:
        left = list(islice(streamed(ToyModel(), tokens).batches(SITES, size, seed=2, epoch=1, first=first), 30))
        assert equal(left, whole[first : first + 30]), first
    assert list(streamed(ToyModel(), tokens).batches(SITES, size, seed=2, epoch=1, first=len(whole))) == []


def test_a_late_start_runs_the_model_over_the_generations_it_needs_alone(tokens):
    model = ToyModel()
    stream = streamed(model, tokens)
    list(stream.batches(SITES, 64, seed=0))
    whole, per_generation = model.passes, model.passes / stream.material.generations
    model.shapes.clear()
    total = -(-len(stream) // 64)
    list(stream.batches(SITES, 64, seed=0, first=total - 1))
    assert 0 < model.passes <= 2 * per_generation < whole / 2


def test_the_order_is_the_one_that_the_trace_foretells(tokens):
    stream = streamed(ToyModel(), tokens)
    order = places(stream.batches(SITES, 64, seed=0, epoch=1))
    where, docs = stream.trace(0, len(stream), seed=0, epoch=1)
    assert [doc for doc, _ in order] == docs.tolist()
    assert sorted(where) == list(range(len(stream)))
    assert np.array_equal(stream.trace(250, 900, seed=0, epoch=1)[0], where[250:900])
    made = [order[i] for i in np.argsort(where)]  # in the order of production a window is in one piece
    breaks = sum(b != (a[0], a[1] + 1) for a, b in pairwise(made))
    assert breaks + 1 == len(stream.material.windows)
    counts = np.bincount(docs)
    assert sorted(stream.document_rows()) == sorted(counts[counts > 0])


def test_generations_keep_to_the_buffer_and_are_of_similar_size(tokens):
    for generation in (124, 300, 500, 10_000):
        stream = streamed(ToyModel(), tokens, generation=generation)
        sizes = np.diff([0, *interp.stream.Schedule(stream.material, seed=0, epoch=0).ends])
        assert sizes.sum() == len(stream) and sizes.max() <= generation
        assert sizes.max() - sizes.min() <= 2 * stream.material.longest


class Alive:
    """Counts the generations in memory."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now: weakref.WeakSet = weakref.WeakSet()
        self.most, self.made = 0, []
        begin = interp.stream.Generation.__init__

        def counted(generation, *args):
            begin(generation, *args)
            self.now.add(generation)
            self.made.append(generation.identity)
            self.most = max(self.most, len(self.now))

        patch.setattr(interp.stream.Generation, "__init__", counted)


class SlowModel(ToyModel):
    def capture(self, *args, **options):
        time.sleep(0.002)
        return super().capture(*args, **options)


@pytest.mark.parametrize("slow", ["consumer", "producer"])
def test_two_generations_at_most_and_both_in_flight(tokens, monkeypatch, slow):
    alive = Alive(monkeypatch)
    gc.disable()  # reference counts alone must let go of what is used up
    try:
        stream = streamed(SlowModel() if slow == "producer" else ToyModel(), tokens, generation=150)
        for _ in stream.batches(SITES, 40, seed=0):
            if slow == "consumer":
                time.sleep(0.005)
        assert stream.material.generations == len(alive.made) >= 6
        assert alive.most == 2  # while one is used the next is being made
        assert len(alive.now) == 0
    finally:
        gc.enable()


def test_the_generation_in_use_serves_the_next_iterator(tokens, monkeypatch):
    """`fit` looks at the first rows, then begins again."""
    alive = Alive(monkeypatch)
    stream = streamed(ToyModel(), tokens, generation=200)
    look = stream.batches(SITES, 40, seed=0)
    first = next(look)
    look.close()
    assert len(alive.now) == 1
    again = stream.batches(SITES, 40, seed=0)
    assert equal([next(again)], [first])
    again.close()
    assert alive.made.count((0, 0, 0)) == 1 and alive.most == 2
    stream.release()
    assert len(alive.now) == 0
    other = stream.batches(SITES, 40, seed=1)
    assert not equal([next(other)], [first])


def test_what_fits_into_one_generation_is_computed_once_for_all_epochs(tokens, monkeypatch):
    alive = Alive(monkeypatch)
    stream = streamed(ToyModel(), tokens, generation=5_000)
    epochs = [list(stream.batches(SITES, 64, seed=0, epoch=epoch)) for epoch in range(3)]
    assert len(alive.made) == 1
    assert len({tuple(places(batches)) for batches in epochs}) == 3
    assert equal(list(streamed(ToyModel(), tokens, generation=5_000).batches(SITES, 64, seed=0, epoch=2)), epochs[2])


class Failing(ToyModel):
    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def capture(self, tokens, sites, **options):
        found = super().capture(tokens, sites, **options)
        if self.passes > self.at:
            raise self.error
        return found


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("one ahead", "reader"))]


@pytest.mark.parametrize("at", [0, 1, 20])
def test_an_error_in_the_model_is_raised_where_its_rows_would_have_come(tokens, at):
    good = list(streamed(ToyModel(), tokens).batches(SITES, 64, seed=0))
    stream = streamed(Failing(at, RuntimeError("the cable was pulled")), tokens)
    seen = []
    with pytest.raises(RuntimeError, match="the cable was pulled"):
        for batch in stream.batches(SITES, 64, seed=0):
            seen.append(batch)
    assert not own_threads()
    assert len(seen) < len(good) and (not seen or equal(seen, good[: len(seen)]))
    assert bool(seen) == (at == 20)


def test_out_of_memory_says_what_to_lower(tokens):
    stream = streamed(Failing(3, RuntimeError("CUDA out of memory. Tried to allocate")), tokens)
    message = (
        r"out of memory on a batch of \d+ windows of \d+ tokens .*: lower token_budget \(now 128\), max_length or buf"
    )
    with pytest.raises(InputError, match=message):
        list(stream.batches(SITES, 64, seed=0))


def test_rows_that_are_not_finite_are_refused_with_their_documents(tokens):
    class Broken(ToyModel):
        def stream(self, tokens):
            return super().stream(tokens).where(tokens[..., None] != 17, float("inf"))

    message = (
        r"site blocks.0.attn.hook_z: \d+ of \d+ rows hold NaN or infinity \(documents 'doc-.*\). Compute in bfloat"
    )
    with pytest.raises(InputError, match=message):
        list(streamed(Broken(), tokens).batches(SITES, 64, seed=0))


def test_leaving_early_stops_the_thread_after_the_pass_it_is_in(tokens):
    class Gated(ToyModel):
        """Counts passes; after the first generation each waits a little."""

        def capture(self, *args, **options):
            time.sleep(0.02)
            return super().capture(*args, **options)

    model = Gated()
    stream = streamed(model, tokens)
    batches = stream.batches(SITES, 64, seed=0)
    next(batches)
    assert own_threads()
    passes, begun = model.passes, time.monotonic()
    batches.close()
    assert not own_threads() and model.passes <= passes + 2 and time.monotonic() - begun < 1
    for batch in stream.batches(SITES, 64, seed=0):
        assert len(batch.doc) == 64
        break  # the iterator is let go of
    gc.collect()
    assert not own_threads()


def test_an_iterator_never_begun_has_begun_nothing(tokens):
    model = ToyModel()
    iterator = streamed(model, tokens).batches(SITES, 64, seed=0)
    assert model.passes == 0 and not own_threads()
    del iterator


CHILD = """
import sys, time
from pathlib import Path
from interp.shuffle import one_ahead
from tests.test_stream import SITES, ToyModel, streamed, token_file
class Slow(ToyModel):
    pause = 0.0
    def capture(self, *args, **options):
        time.sleep(self.pause)
        return super().capture(*args, **options)
tokens = token_file(Path(sys.argv[1]), [40] * 2000)
model = Slow()
kept = streamed(model, tokens, generation=2000).batches(SITES, 64, seed=0)
next(kept)
def wait(item, stopped):
    while item and not stopped():
        time.sleep(0.01)
waiting = one_ahead(wait, range(2))
next(waiting)
model.pause = 0.5  # what is left of the second generation takes 8 s
print("left", flush=True)
raise RuntimeError("a traceback holds the iterator")
"""


def test_a_program_that_dies_with_an_iterator_open_ends_at_once(tmp_path):
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "t")],
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'kernels'}", "OMP_NUM_THREADS": "1", "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"left\n"
    begun = time.monotonic()
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1 and b"a traceback holds the iterator" in errors and b"Exception" not in errors
    assert time.monotonic() - begun < 4


def test_the_manifest_settles_what_the_rows_and_their_order_are(tokens, tmp_path):
    stream = streamed(ToyModel(), tokens)
    store = extract(ToyModel(), tokens, SITES, tmp_path / "s", store_dtype="float32", max_length=32, progress=False)
    (ours,), (theirs,) = stream.manifest["parts"], store.manifest["parts"]
    assert {**ours["spec"], "seed": 0} == theirs["spec"]
    for name in ("rows", "documents", "tokens", "excluded", "file_documents", "first_doc"):
        assert ours[name] == theirs[name], name
    assert stream.manifest["row_shapes"] == store.manifest["row_shapes"]
    assert json.loads(json.dumps(stream.manifest)) == stream.manifest
    same = digest(streamed(ToyModel(), tokens).manifest)
    assert digest(stream.manifest) == same
    others = [{"max_length": 16}, {"token_budget": 64}, {"generation": 299}, {"dtype": "bfloat16"}, {"docs": range(9)}]
    others.append({"exclude": Exclusions(first_position=False)})
    found = {digest(streamed(ToyModel(), tokens, **changed).manifest) for changed in others}
    renamed = ToyModel()
    renamed.revision = "r2"
    assert len(found | {same, digest(streamed(renamed, tokens).manifest)}) == len(others) + 2


def test_it_says_what_it_will_do(tokens):
    stream = streamed(ToyModel(), tokens)
    assert stream.describe() == (
        f"stream of {len(stream):,} rows in {stream.material.generations} generations: mixing horizon 300 rows, "
        "0.00 GiB of memory"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"generation": 100},
            r"holds two generations of 100 rows of 60 bytes; at least 124 are needed \(4 windows .*: give 14,880 or",
        ),
        (
            {"token_budget": 16},
            "token_budget=16 cannot hold one window of 32 tokens; raise token_budget, or lower max_length",
        ),
        ({"docs": [1, 1]}, "docs names 1 documents twice"),
        ({"docs": [99]}, r"docs must lie in 0..29, got 99..99"),
    ],
)
def test_settings_that_cannot_be_are_refused(tokens, options, message):
    with pytest.raises(InputError, match=message):
        streamed(ToyModel(), tokens, **options)


def test_batches_that_cannot_be_are_refused_at_once(tokens):
    stream = streamed(ToyModel(), tokens)
    with pytest.raises(
        InputError,
        match=r"the stream holds blocks.0.attn.hook_z, blocks.1.hook_resid_post, not blocks.0.hook_resid_post",
    ):
        stream.batches(["resid_post.0"], 64, seed=0)
    for size, first in ((0, 0), (64, -1)):
        with pytest.raises(InputError, match=f"got size={size}, first={first}"):
            stream.batches(SITES, size, seed=0, first=first)
    with pytest.raises(InputError, match="no site to extract"):
        ActivationStream(ToyModel(), tokens, [])


TRAINING = {"d_sae": 16, "k": 2, "batch_size": 64, "lr": 3e-3, "sample": 128, "log_every": 5, "checkpoint_every": 10}


class Dying:
    """A stream that is interrupted before it hands out batch `die_at`, looking at the first rows not counted."""

    def __init__(self, stream: ActivationStream, die_at: int) -> None:
        self.stream, self.die_at, self.manifest, self.last = stream, die_at, stream.manifest, False

    def __len__(self) -> int:
        return len(self.stream)

    def batches(self, sites, size, *, seed, first=0, epoch=0):
        for number, batch in enumerate(self.stream.batches(sites, size, seed=seed, first=first, epoch=epoch), first):
            if epoch * -(-len(self) // size) + number == self.die_at:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize(("generation", "die_at"), [(200, 13), (200, 27), (5000, 27)])
def test_training_from_a_stream_interrupted_and_continued_is_uninterrupted(tokens, tmp_path, generation, die_at):
    """Two epochs of 19 batches, checkpoints every 10; interrupted in the first or in the second."""

    def stream():
        return streamed(ToyModel(), tokens, generation=generation)

    assert -(-len(stream()) // 64) == 19
    config = TrainConfig(**TRAINING, epochs=2)
    fit(stream(), config, tmp_path / "whole", site=RESID)
    with pytest.raises(KeyboardInterrupt):
        fit(Dying(stream(), die_at), config, tmp_path / "cut", site=RESID)
    assert not own_threads()
    assert [p.stem for p in checkpoints(tmp_path / "cut" / "training")][-1] == f"step-{die_at // 10 * 10:09d}"
    fit(stream(), config, tmp_path / "cut", site=RESID)
    assert not own_threads()
    whole = {p.relative_to(tmp_path / "whole"): p.read_bytes() for p in (tmp_path / "whole").rglob("*.*")}
    assert {p.relative_to(tmp_path / "cut"): p.read_bytes() for p in (tmp_path / "cut").rglob("*.*")} == whole
    assert {p.name for p in whole} >= {"cfg.json", "sae_weights.safetensors", "metrics.jsonl", "run.json"}
    other = streamed(ToyModel(), tokens, generation=generation + 1)
    with pytest.raises(InputError, match="holds a run with other settings"):
        fit(other, config, tmp_path / "cut", site=RESID)


def test_an_sae_knows_the_stream_it_was_trained_on(tokens, tmp_path):
    sae = fit(streamed(ToyModel(), tokens, docs=list(range(12))), TrainConfig(**TRAINING), tmp_path, site=RESID)
    metadata = sae.config.metadata
    assert metadata["model_name"] == "toy" and metadata["context_size"] == 32
    assert metadata["midlens_store"]["tokens"] == tokens.digest


def test_smollm2_without_a_store(smollm2, tmp_path):
    """Rows equal those of each document run alone; an SAE comes out."""
    texts = ["The sea was calm that morning, and nobody spoke of the letter.", "Two and two make four, he said, twice."]
    documents = [Document(f"d{i}", f"{i}. {texts[i % 2] * (1 + i % 3)}") for i in range(9)]
    tokens = tokenize(documents, smollm2.tokenizer, tmp_path / "t")
    site = Site.parse("resid_post.2")
    stream = ActivationStream(
        smollm2, tokens, [site], max_length=48, dtype="float32", buffer_bytes=2 * 200 * (12 + 4 * 576)
    )
    assert stream.material.generations > 1
    batches = list(stream.batches([site], 32, seed=0))
    assert sum(len(batch.doc) for batch in batches) == len(stream) == int(tokens.lengths.sum()) - len(tokens)
    for doc in range(3):
        alone = smollm2.capture(torch.from_numpy(tokens[doc].astype(np.int64))[None], [site])[site][0]
        for batch in batches:
            mine = batch.doc == doc
            expected = alone[batch.position[mine].long()]
            torch.testing.assert_close(batch.acts[site][mine], expected, rtol=1e-4, atol=1e-3)
    sae = fit(stream, TrainConfig(**{**TRAINING, "batch_size": 32}), tmp_path / "sae", site=site)
    assert sae.config.d_in == 576 and sae.config.metadata["model_name"] == stream.manifest["parts"][0]["spec"]["model"]

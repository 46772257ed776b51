"""Every stage of an extraction overlaps with the others, in bounded memory, and nothing in the loop waits."""

import os
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from interp.batching import windows_of
from interp.corpus import Document
from interp.extract import extract, prepare
from interp.masks import one_sequence_per_row
from interp.model import HookedModel
from interp.pinned import SLOTS, Landing, Mark, PinnedRing
from interp.pipeline import Runner, assemble
from interp.plan import Exclusions, Selector
from interp.shards import ShardWriter
from interp.sites import Site
from interp.stages import NAMES, Stages
from interp.tokenfile import tokenize
from tests.tiny_models import tiny
from tests.toy_store import SITES, ToyModel, documents, files_of, token_file, word_tokenizer

SMALL = {"max_length": 16, "token_budget": 64, "rows_per_shard": 400}


def test_stages_add_up_and_the_busiest_is_named():
    stages = Stages()
    assert stages.limiting() == "none"
    stages.add("forward", 2.0)
    stages.add("disk", 1.5)
    stages.add("disk", 1.0)
    stages.add("stall", 9.0)  # waiting is no work
    assert stages.as_dict() == {"tokens": 0, "forward": 2, "copy": 0, "writer": 0, "disk": 2.5, "stall": 9}
    assert stages.limiting() == "disk"
    with pytest.raises(KeyError):
        stages.add("coffee", 1.0)


def test_a_run_times_every_stage(tmp_path):
    extraction = prepare(ToyModel(), token_file(tmp_path / "t", [40] * 9), SITES, tmp_path / "s", **SMALL)
    assert extraction.stages.limiting() == "none"
    extraction.run(progress=False)
    seconds = extraction.stages.as_dict()
    assert tuple(seconds) == NAMES
    assert all(seconds[name] > 0 for name in NAMES if name != "copy")


class Gate:
    """A disk that is slower than everything else: a batch is not written before all others that may be computed are.

    It holds every batch until the caller's thread has run out of room or of batches, so each batch but the first finds
    the next ones waiting when it is done: the disk is never idle, and the run takes as long as the disk alone.
    """

    def __init__(self, monkeypatch, model: ToyModel, batches: int) -> None:
        self.model, self.batches, self.written = model, batches, 0
        self.most_ahead, self.waiting, self.order = 0, [], []
        self.alive: weakref.WeakSet = weakref.WeakSet()
        self.most_alive = 0
        real, compute = ShardWriter.put, Runner.compute

        def put(sink, contents):
            self.hold()
            self.order.append(np.frombuffer(contents["token"], np.int32).tolist())
            real(sink, contents)
            self.written += 1

        def computed(runner, ready):
            rows = compute(runner, ready)
            for tensor in rows.acts.values():
                self.alive.add(tensor)
            self.most_alive = max(self.most_alive, len(self.alive))
            return rows

        monkeypatch.setattr(ShardWriter, "put", put)
        monkeypatch.setattr(Runner, "compute", computed)

    def hold(self) -> None:
        wanted = min(self.batches, self.written + SLOTS + 1)
        deadline = time.monotonic() + 20
        while self.model.passes < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.002)  # whoever would go beyond the bound has the time to
        self.waiting.append(self.model.passes - self.written - 1)
        self.most_ahead = max(self.most_ahead, self.model.passes - self.written)


def test_a_slow_disk_is_never_idle_and_holds_up_everything_else(tmp_path, monkeypatch):
    file = token_file(tmp_path / "t", [13] * 200)
    one_shard = {**SMALL, "rows_per_shard": 10**6}
    plain = extract(ToyModel(), file, SITES, tmp_path / "plain", **one_shard, progress=False)
    model = ToyModel()
    extraction = prepare(model, file, SITES, tmp_path / "s", **one_shard)
    batches = len(extraction.plan.buckets)
    gate = Gate(monkeypatch, model, batches)
    store = extraction.run(progress=False)
    assert gate.written == batches > 4 * SLOTS
    # Never idle: behind each batch on its way to the disk wait as many as there may be.
    assert gate.waiting == [min(SLOTS, batches - 1 - i) for i in range(batches)]
    # Bounded: SLOTS on their way, and one computed that has no slot yet.
    assert gate.most_ahead == SLOTS + 1
    assert gate.most_alive <= (SLOTS + 1) * len(SITES)
    assert [t for tokens in gate.order for t in tokens] == plain.keys(0, len(plain)).token.tolist()
    assert files_of(store.path) == files_of(plain.path)


@pytest.mark.parametrize("stage", ["digest", "put"])
def test_an_error_behind_a_full_queue_ends_the_run(tmp_path, monkeypatch, stage):
    model = ToyModel()
    extraction = prepare(model, token_file(tmp_path / "t", [13] * 99), SITES, tmp_path / "s", **SMALL)

    def broken(*_):
        while model.passes < SLOTS + 1:  # until the caller's thread waits for room
            time.sleep(0.001)
        time.sleep(0.01)
        raise ValueError("the disk is gone")

    monkeypatch.setattr(ShardWriter, stage, broken)
    with pytest.raises(ValueError, match="the disk is gone"):
        extraction.run(progress=False)
    assert model.passes == SLOTS + 1
    assert not any(thread.name in ("hash", "disk") for thread in threading.enumerate())


class FakeDevice:
    """A device whose copies are made when they are waited for, and whose host buffers hold nonsense until then."""

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []
        self.waits: list[str] = []

    def buffer(self, shape, dtype) -> torch.Tensor:
        self.buffers.append(torch.zeros(tuple(shape), dtype=dtype))
        return self.buffers[-1]

    def mark(self, device) -> Mark:
        return Mark(device, FakeEvent(self, ()))

    def send(self, pairs) -> list[Landing]:
        for _, target in pairs:
            target.copy_(torch.full_like(target, 1, dtype=target.dtype))
        return [Landing(torch.device("cpu"), FakeEvent(self, ()), FakeEvent(self, pairs))]


class FakeEvent:
    def __init__(self, device: FakeDevice, pairs) -> None:
        self.device, self.pairs = device, pairs

    def synchronize(self) -> None:
        self.device.waits.append(threading.current_thread().name)
        for source, target in self.pairs:
            target.copy_(source)

    def elapsed_time(self, later: "FakeEvent") -> float:
        return 250.0 if later.pairs else 4000.0  # milliseconds


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_fixed_ring_of_buffers_is_reused_and_only_the_writer_waits(tmp_path, monkeypatch, dtype):
    file = token_file(tmp_path / "t", [30, 7, 16, 2, 9] * 40)
    settings = {**SMALL, "store_dtype": dtype}
    plain = extract(ToyModel(), file, SITES, tmp_path / "plain", **settings, progress=False)
    model = ToyModel()
    extraction = prepare(model, file, SITES, tmp_path / "s", **settings)
    device = extraction.runner.transfers = FakeDevice()
    waiting = Counter()
    for name in ("cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__"):
        count_calls(monkeypatch, torch.Tensor, name, waiting)
    count_calls(monkeypatch, torch.cuda, "synchronize", waiting)
    store = extraction.run(progress=False)
    monkeypatch.undo()
    assert files_of(store.path) == files_of(plain.path)
    batches = len(extraction.plan.buckets)
    assert batches > 5 * SLOTS
    tensors = len(SITES) * (2 if dtype == "bfloat16" else 4)  # rows and a flag; with scales and errors
    used, left = divmod(len(device.buffers), tensors)  # a slot gets its buffers when it is first needed
    assert 1 <= used <= SLOTS and not left
    assert device.waits == ["hash"] * batches
    assert not [call for call in waiting if call[0] == "MainThread"], waiting
    seconds = extraction.stages.as_dict()
    assert seconds["forward"] == pytest.approx(4.0 * batches) and seconds["copy"] == pytest.approx(0.25 * batches)
    assert extraction.stages.limiting() == "forward"


def test_the_plan_in_words_may_be_asked_for_twice(tmp_path):
    file = token_file(tmp_path / "t", [30, 7, 16, 2, 9] * 9)
    plain = extract(ToyModel(), file, SITES, tmp_path / "plain", **SMALL, progress=False)
    model = ToyModel()
    extraction = prepare(model, file, SITES, tmp_path / "s", **SMALL)
    extraction.runner.transfers = FakeDevice()
    assert "time" in extraction.describe() and "time" in extraction.describe()
    assert files_of(extraction.run(progress=False).path) == files_of(plain.path)
    assert model.passes == len(extraction.plan.buckets)


def count_calls(monkeypatch, owner, name: str, calls: Counter) -> None:
    real = getattr(owner, name)

    def counted(*args, **kwargs):
        calls[threading.current_thread().name, name] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def test_a_ring_without_a_free_buffer_says_so():
    ring = PinnedRing(FakeDevice(), 3)
    begun = ring.transfers.mark(torch.device("cpu"))
    sent = [ring.send({"acts": {"a": torch.ones(2, 4)}}, begun)[1] for _ in range(SLOTS)]
    with pytest.raises(AssertionError, match="release the rows of an earlier batch first"):
        ring.send({"acts": {"a": torch.ones(2, 4)}}, begun)
    sent[0].release()
    with pytest.raises(AssertionError, match="4 rows where 3 were announced"):
        ring.send({"acts": {"a": torch.ones(4, 4)}}, begun)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "mistral", "qwen3", "gpt2", "gpt_neox"])
def test_a_pass_never_asks_the_device(tmp_path, family):
    """On the meta device there are shapes and no values: whoever asked for one would get an error."""
    from transformers import masking_utils

    before = getattr(masking_utils, "find_packed_sequence_indices", None)
    no_pad = {"pad_token_id": None} if family == "gpt2" else {}  # as published; with one, GPT-2 looks for it to warn
    model = HookedModel.wrap(tiny(family, **no_pad).to("meta"))
    sites = [Site.parse(site) for site in ("resid_post.1", "mlp_out.0")]
    file = token_file(tmp_path / "t", [30, 7, 1, 9])
    extraction = prepare(ToyModel(), file, SITES, tmp_path / "s", **SMALL)  # for its plan
    for dtype in (torch.bfloat16, torch.int8):
        runner = Runner(model, sites, dtype)
        for index in range(len(extraction.plan.buckets)):
            ready = assemble(extraction.plan, extraction.selector, index)
            rows = runner.compute(ready)
            assert {x.device.type for x in rows.acts.values()} == {"meta"}
            assert len(rows.acts["blocks.1.hook_resid_post"]) == len(ready.keys["token"])
    assert getattr(masking_utils, "find_packed_sequence_indices", None) is before


def test_other_threads_keep_the_question_that_is_spared():
    from transformers import masking_utils

    packed = torch.tensor([[0, 1, 0, 1]])
    with one_sequence_per_row(torch.device("meta")):
        assert masking_utils.find_packed_sequence_indices(packed) is None
        with ThreadPoolExecutor(1) as other:
            found = other.submit(lambda: masking_utils.find_packed_sequence_indices(packed)).result()
    assert found.tolist() == [[0, 0, 1, 1]] == masking_utils.find_packed_sequence_indices(packed).tolist()


def test_several_tensors_at_once_give_the_same_bytes(tmp_path, monkeypatch):
    file = token_file(tmp_path / "t", [40] * 30)
    plain = extract(ToyModel(), file, SITES, tmp_path / "plain", **SMALL, progress=False)
    monkeypatch.setattr("interp.shards._SPREAD_FROM", 1)
    monkeypatch.setattr("interp.extraction._threads", lambda: 3)
    used = set()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *a: (used.add(threading.current_thread().name), real(*a))[1])
    store = extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL, progress=False)
    assert {name.split("_")[0] for name in used} == {"MainThread", "spread"}  # the header, and everything else
    assert files_of(store.path) == files_of(plain.path)


def test_a_document_of_forty_windows_is_covered_once(tmp_path):
    file = token_file(tmp_path / "t", [40 * 16, 5])
    store = extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL, progress=False)
    keys = store.keys(0, len(store))
    found = sorted(zip(keys.doc.tolist(), keys.position.tolist(), strict=True))
    assert found == [(0, p) for p in range(640) if p % 16] + [(1, p) for p in range(1, 5)]
    places = zip(keys.doc.tolist(), keys.position.tolist(), strict=True)
    assert keys.token.tolist() == [int(file[d][p]) for d, p in places]


@pytest.mark.parametrize("bos", [False, True])
def test_rows_of_windows_against_a_loop_over_positions(tmp_path, monkeypatch, bos):
    """The selection of all positions at once, against one position at a time; a few windows at a time or all."""
    monkeypatch.setattr("interp.plan._AT_ONCE", 50)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "w9 {{ messages[0]['content'] }} w8"
    chat = [Document("c", "", ({"role": "user", "content": "w3 w4 </s> " * 9},))]
    special = [Document("s", "w1 </s> w2 <unk> " * 7)]
    file = tokenize([*documents([1, 30, 16, 15, 17]), *chat, *special], tokenizer, tmp_path / "t", prepend_bos=bos)
    windows = windows_of(file.lengths, max_length=8, bos=bos)
    own = int(bos)
    for exclude in (Exclusions(), Exclusions(first_position=False), Exclusions(True, False, False)):
        expected, reasons = [], Counter()
        for doc, start, length in zip(windows.doc, windows.start, windows.length, strict=True):
            kept = 0
            for place in range(length):
                at = int(start) + place
                token = file.bos if place < own else int(file[int(doc)][at])
                written = place >= own and file.template[file.offsets[doc] + at]
                why = [
                    name
                    for name, out in (
                        ("first_position", place == 0),
                        ("special_tokens", token in file.special_ids),
                        ("template", written),
                    )
                    if out and getattr(exclude, name)
                ]
                reasons.update(why[:1])
                kept += not why
            expected.append(kept)
        counts: dict[str, int] = {}
        assert Selector(file, exclude).rows(windows, counts).tolist() == expected
        assert {name: n for name, n in counts.items() if n} == reasons


@pytest.mark.parametrize("rows_per_shard", [1, 40, 100, 10**6])
def test_shards_are_as_many_whole_batches_as_fit(tmp_path, rows_per_shard):
    settings = {**SMALL, "rows_per_shard": rows_per_shard}
    file = token_file(tmp_path / "t", [40, 3, 17, 8, 30] * 9)
    plan = prepare(ToyModel(), file, SITES, tmp_path / "s", **settings).plan
    sizes = [int(n) for n in plan.buckets.windows.length - 1]  # rows of a window: all but its first position
    shards = [plan.batches_of(shard) for shard in range(len(plan.shard_rows))]
    assert [i for batches in shards for i in batches] == list(range(len(plan.buckets)))
    rows = [sum(sizes[slice(*plan.buckets.span(i))]) for i in range(len(plan.buckets))]
    for shard, batches in enumerate(shards):
        held = sum(rows[i] for i in batches)
        assert plan.shard_rows[shard] == held
        assert held <= rows_per_shard or len(batches) == 1
        assert shard + 1 == len(shards) or held + rows[batches.stop] > rows_per_shard

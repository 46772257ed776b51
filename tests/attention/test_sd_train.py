"""Twins: windows, order, resume bit for bit, what is logged, refusals; the cascade on planted ranks."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.attention import sd_model
from interp.attention.cascade import kernel_ranks, log_spaced, operating_ranks, rank_metrics, rank_rows
from interp.attention.sd_attention import ATTENTION, sd_operator
from interp.attention.sd_data import batches, chosen_documents, windows
from interp.attention.sd_model import BOS, SIZES, Twin, TwinConfig
from interp.attention.sd_train import MODEL, Training, TwinTraining, load_twin, train_twin
from interp.corpus import Corpus, Document
from interp.errors import InputError
from interp.loop import Pace, train


@pytest.fixture(autouse=True)
def toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "toy", (3, 16, 2))


def toy(**changed: object) -> TwinTraining:
    given = {"size": "toy", "n_ctx": 16, "batch": 4, "total_bytes": 100 * 64, "warmup": 10, "log_every": 10}
    return TwinTraining(**(given | {"checkpoint_every": 50, "compute": "float32"} | changed))  # pyright: ignore


def corpus(n: int = 40) -> Corpus:
    words = ["water", "stone", "river", "glass", "light"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size=4 + number % 9)) for number in range(n)]
    return Corpus(tuple(Document(f"d{number}", text) for number, text in enumerate(texts)), "toy")


def run(config: TwinTraining, folder: Path, *, until: int | None = None) -> Training:
    """As `train_twin` does, on the toy corpus; `until` stops as a kill would, after that many steps."""
    data = windows(corpus(), config.n_ctx)
    training = Training(config, data.batch(data.full.nonzero()[:2, 0])[0])

    def given(first: int):
        for number, batch in enumerate(batches(data, config.batch, seed=config.seed, first=first), first):
            if number == until:
                raise KeyboardInterrupt
            yield batch

    pace = Pace(steps=config.steps, log_every=config.log_every, checkpoint_every=config.checkpoint_every)
    train(training, given, pace, folder, settings=dataclasses.asdict(config), label="toy")
    return training


def test_windows_hold_every_byte_once() -> None:
    texts = [
        "a" * 3,
        "".join(chr(97 + i % 26) for i in range(16)),
        "".join(chr(65 + i % 26) for i in range(39)),
        "é" * 9,
    ]
    documents = Corpus(tuple(Document(str(i), text) for i, text in enumerate(texts)), "four")
    found = windows(documents, 16, once=True)
    for number, text in enumerate(texts):
        mine = found.documents == number
        asked = found.targets[mine][found.targets[mine] >= 0]
        assert bytes(asked.tolist()) == text.encode()
    tokens, targets = found.batch(torch.arange(len(found)))
    assert (tokens[:, 0] == BOS).all()
    both = (targets[:, :-1] >= 0) & (targets[:, 1:] >= 0)
    assert (tokens[:, 1:][both] == targets[:, :-1][both]).all()
    assert found.full.tolist() == [False, True, True, True, True, True, True]
    assert found.spread(9).tolist() == [1, 2, 5] and found.spread(2).tolist() == [1, 2]
    again = windows(documents, 16)
    assert torch.equal(again.tokens, found.tokens) and (again.targets >= 0).sum() > (found.targets >= 0).sum()


def test_order_is_a_function_of_seed_and_number() -> None:
    data = windows(corpus(), 16)

    def taken(seed: int, first: int, n: int) -> list[Tensor]:
        source = batches(data, 4, seed=seed, first=first)
        return [next(source)[0] for _ in range(n)]

    per_epoch = len(data) // 4
    whole = taken(0, 0, 2 * per_epoch + 3)
    for first in (1, per_epoch - 1, per_epoch, 2 * per_epoch):
        assert all(torch.equal(a, b) for a, b in zip(whole[first:], taken(0, first, 3), strict=False))
    assert not torch.equal(torch.cat(whole[:5]), torch.cat(taken(1, 0, 5)))
    assert not torch.equal(torch.cat(whole[:5]), torch.cat(whole[per_epoch : per_epoch + 5]))
    with pytest.raises(InputError, match="a batch of 999 windows"):
        next(batches(data, 999, seed=0))


@pytest.mark.parametrize(("attention", "compute"), [("sd_token", "bfloat16"), ("standard", "float32")])
def test_resume_is_bit_exact(tmp_path: Path, attention: str, compute: str) -> None:
    """50 + kill at 73 + resume = 100, in weights, moments and the bytes of the log."""
    config = toy(attention=attention, compute=compute)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "killed", until=73)
    assert len((tmp_path / "killed/metrics.jsonl").read_text().splitlines()) == 7
    resumed = run(config, tmp_path / "killed")
    ours, theirs = whole.tensors(), resumed.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "killed/metrics.jsonl").read_bytes()


def test_a_step_that_overflows_takes_a_gradient_of_zero() -> None:
    """One byte whose embedding overflows the cubic form: counted; without momentum, and decay, nothing moves."""
    training = Training(toy(weight_decay=0.0, lr=1e-3, warmup=0), torch.zeros(1, 16, dtype=torch.long))
    with torch.no_grad():
        training.model.embedding[7] = 1e15
    good, bad = torch.full((2, 16), 3), torch.full((2, 16), 7)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    training.step((bad, good))
    assert all(torch.equal(p, before[name]) for name, p in training.model.named_parameters())
    assert math.isnan(training.metrics()["loss"])  # every step skipped: `interp.loop` ends such a run
    training.step((good, good))
    training.step((bad, good))
    found = training.metrics()
    assert found["skipped"] == 1 and 0 < found["loss"] < 10
    assert not torch.equal(training.model.unembedding, before["unembedding"])


def test_it_learns_and_logs_ranks(tmp_path: Path) -> None:
    for attention, norm in (("sd_token", None), ("sd_kernel", None), ("standard", None), ("standard", False)):
        folder = tmp_path / f"{attention}-{norm}"
        training = run(toy(attention=attention, norm=norm), folder)
        assert training.model.config.norm == (attention == "standard" and norm is None)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["loss"] < 0.7 * math.log(256) < lines[0]["loss"]
        ranked = [line["step"] for line in lines if "operating_erank2_0" in line]
        assert ranked == [10, 20, 40, 80, 100]
        assert 2 <= lines[-1]["operating_erank2_2"] <= 16 and 2 <= lines[-1]["kernel_r90_1"] <= 16


def test_trained_twin_comes_back(tmp_path: Path) -> None:
    lines = [json.dumps({"id": d.id, "text": d.text}) for d in corpus(200)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    config = toy(corpus=str(tmp_path / "text.jsonl"), total_bytes=1280, elu_first=1, head_widths=(4, 8, 6))
    said: list[str] = []
    path = train_twin(config, tmp_path / "out", announce=said.append)
    assert path == tmp_path / "out" / MODEL and "parameters" in said[0]
    model, how = load_twin(tmp_path / "out")
    assert how == config and model.config.kinds == ("elu", "sd_token", "sd_token")
    state = {name.removeprefix("weight."): p for name, p in _last(tmp_path / "out").items()}
    assert all(torch.equal(p, state[name]) for name, p in model.named_parameters())
    assert train_twin(config, tmp_path / "out") == path
    with pytest.raises(InputError, match="holds a run with other settings"):
        train_twin(dataclasses.replace(config, seed=3), tmp_path / "out")


def _last(folder: Path) -> dict[str, Tensor]:
    from interp.loop import checkpoints
    from interp.tensorfile import read_tensors

    return read_tensors(checkpoints(folder / "training")[-1], "checkpoint")[0]


def test_the_diagonal_is_not_decayed() -> None:
    """Decay would pull softplus(delta) of the kernel-space form up, from 0.018 to 0.69."""
    training = Training(toy(attention="sd_kernel", norm=True), torch.zeros(1, 4, dtype=torch.long))
    decay = {id(p): group["weight_decay"] for group in training.optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in training.model.named_parameters()}
    assert all(
        (found[name] == 0) == (name.endswith("delta") or ".norm_" in name or name[:5] == "norm.") for name in found
    )


def test_sizes_are_what_they_are_called() -> None:
    for size in set(SIZES) - {"toy"}:
        with torch.device("meta"):
            layers, width, heads = SIZES[size]
            kinds = ("standard",) * layers
            shape = TwinConfig(kinds=kinds, width=width, heads=heads, head_widths=(width // heads,) * layers)  # pyright: ignore
            blocks = sum(p.numel() for p in sd_model.Block(shape, 0).parameters()) * layers
        assert abs((blocks + 513 * width) / (float(size[:-1]) * 1e6) - 1) < 0.08, size


def test_start_keeps_the_stream_in_bounds_without_norm() -> None:
    for kind in ATTENTION:
        shape = TwinConfig(kinds=(kind,) * 8, width=64, heads=2, head_widths=(32,) * 8, n_ctx=64, norm=False)  # pyright: ignore
        model = Twin(shape)
        x = model.embed(torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0)))
        for block in model.layers():
            x = block(x)
        assert 0.9 < float(x.detach().square().mean()) < 4, kind


def test_operating_ranks_are_those_of_the_dense_skew_part() -> None:
    config = toy(attention="sd_token", n_ctx=40)
    model = Twin(config.shape()).double()
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ranks, inputs = operating_ranks(model, tokens), model.attention_inputs(tokens)
        for found, block, x in zip(ranks, model.layers(), inputs, strict=True):
            q, k, _ = block.attention.qkv(x, torch.float64)
            operator = sd_operator(q, k, torch.zeros(2, 2, 40, dtype=torch.float64))
            w = torch.linalg.svdvals((operator - operator.mT) / 2).square()
            w = w / w.sum(-1, keepdim=True)
            torch.testing.assert_close(found.erank2, torch.special.entr(w).sum(-1).exp(), rtol=1e-6, atol=0)
            assert (found.numerical <= 16).all()


def test_planted_plane_has_rank_two() -> None:
    """Keys that are a fixed multiple of one direction: the skew part is one plane, in weights and on text."""
    model = Twin(toy(rotary=False).shape())
    with torch.no_grad():
        qkv = model.layers()[1].attention.w_qkv
        qkv[0, 1:8] = 0
        qkv[0, 9:] = 0
    kernel = kernel_ranks(model)
    torch.testing.assert_close(kernel[1].erank1, torch.full((2,), 2.0, dtype=torch.float64), rtol=1e-5, atol=0)
    assert (kernel[1].numerical == 2).all() and (kernel[0].erank1 > 4).all()
    rows = rank_rows(model, torch.arange(32).view(2, 16))
    assert abs(rows[1]["operating_erank2"] - 2) < 1e-4 < rows[0]["operating_erank2"] - 2
    assert rows[0]["content_erank2"] == rows[0]["operating_erank2"]
    metrics = rank_metrics(model, torch.arange(32).view(2, 16))
    assert metrics["operating_erank2_0"] == rows[0]["operating_erank2"] and rows[2]["head_width"] == 8


def test_rotary_positions_alone_spread_a_plane() -> None:
    """Constant q and k are one direction each: no skew part as they are, a plane per frequency once turned."""
    model = Twin(toy().shape())
    with torch.no_grad():
        model.embedding[:] = model.embedding[0].clone()
    row = rank_rows(model, torch.zeros(1, 16, dtype=torch.long))[0]
    assert row["content_erank1"] == 0 and row["operating_numerical"] >= 4


def test_log_spacing() -> None:
    assert [step for step in range(700) if log_spaced(step, 20)] == [20, 40, 80, 160, 320, 640]


def test_chosen_documents_do_not_depend_on_the_rest() -> None:
    few = chosen_documents(corpus(40), 40)
    many = [d.id for d in chosen_documents(corpus(60), 60)]
    assert [d.id for d in few] == [name for name in many if int(name[1:]) < 40]
    assert len(chosen_documents(corpus(), 7)) == 7


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": "2m"}, r"size must be one of 1m, 7m, .*, got '2m'"),
        ({"elu_first": 4}, "elu_first must lie between 0 and 3 layers, got 4"),
        ({"head_widths": (4, 8)}, "one width per layer, got 2 for 3 layers"),
        ({"head_widths": (4, 8, 5)}, "must be even and at least 2.*got 5"),
        ({"total_bytes": 3}, r"total_bytes \(3\) is less than one step of 64"),
        ({"compute": "float16"}, "compute must be one of float32, bfloat16, got 'float16'"),
        ({"lr": 0.0}, "must be above 0"),
    ],
)
def test_refusals(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        toy(**changed)


def test_too_long_a_text() -> None:
    with pytest.raises(InputError, match="takes 16 positions at most, got 17"):
        Twin(toy().shape())(torch.zeros(1, 17, dtype=torch.long))

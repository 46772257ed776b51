"""Scores of head behaviour: hand-made patterns, brute force, heads planted in a model that do exactly one thing."""

import math

import pytest
import torch
from torch import Tensor

from interp.attention import behaviour as module
from interp.attention.behaviour import Behaviour, behaviour, behaviour_rows, repeated_tokens
from interp.errors import InputError
from interp.model import HookedModel
from tests.tiny_models import FAMILIES, random_tokens, tiny
from tests.wrapped_models import wrapped

NAMES = Behaviour._fields


def brute_force(pattern: Tensor, tokens: Tensor) -> dict[str, float]:
    """The definitions as loops over one sequence of one head."""
    n = len(tokens)
    sums, counts = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0)
    for t in range(n):
        sources = {
            "previous_token": [t - 1] if t >= 2 else [],
            "sink_share": [0] if t >= 2 else [],
            "duplicate_token": [s for s in range(t) if tokens[s] == tokens[t]],
            "induction": [s for s in range(1, t) if tokens[s - 1] == tokens[t]],
        }
        for name, chosen in sources.items():
            sums[name] += sum(float(pattern[t, s]) for s in chosen)
            counts[name] += bool(chosen)
    return {name: sums[name] / counts[name] if counts[name] else math.nan for name in NAMES}


def one_hot_pattern(target: list[int]) -> Tensor:
    """Position t attends to target[t] alone."""
    return torch.eye(len(target))[target][None, None]


TOKENS = torch.tensor([[9, 5, 6, 7, 8, 5, 6, 7, 8]])  # a first token, then 5 6 7 8 twice
HAND_MADE = {
    "previous_token": [0, 0, 1, 2, 3, 4, 5, 6, 7],
    "sink_share": [0] * 9,
    "duplicate_token": [0, 1, 2, 3, 4, 1, 2, 3, 4],
    "induction": [0, 1, 2, 3, 4, 2, 3, 4, 5],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_hand_made_pattern_scores_one_in_its_own_behaviour_and_zero_in_the_others(name):
    scores = behaviour(one_hot_pattern(HAND_MADE[name]), TOKENS)._asdict()
    # Inducing from position 8, whose token 8 stood at 4, attends to 5: no overlap with the position before it.
    assert {n: float(v) for n, v in scores.items()} == {n: float(n == name) for n in NAMES}


def test_even_attention_scores_chance():
    n = 9
    pattern = (torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None])[None, None]
    scores = behaviour(pattern, TOKENS)
    late = [1 / (t + 1) for t in range(2, n)]
    for name in ("previous_token", "sink_share"):
        assert float(getattr(scores, name)) == pytest.approx(sum(late) / len(late))
    repeats = [1 / (t + 1) for t in range(5, n)]
    for name in ("duplicate_token", "induction"):
        assert float(getattr(scores, name)) == pytest.approx(sum(repeats) / len(repeats))


def test_without_a_repeat_two_scores_are_not_a_number():
    scores = behaviour(torch.eye(4)[None, None], torch.tensor([[3, 4, 5, 6]]))
    assert scores.duplicate_token.isnan().all() and scores.induction.isnan().all()
    assert float(scores.previous_token) == float(scores.sink_share) == 0


def test_scores_equal_loops_on_random_patterns():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 5, (3, 12), generator=generator)  # many repeats, also side by side
    pattern = torch.rand(3, 2, 12, 12, generator=generator).tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    scores = behaviour(pattern, tokens)
    for b in range(3):
        for h in range(2):
            expected = brute_force(pattern[b, h], tokens[b])
            assert {n: float(v[b, h]) for n, v in scores._asdict().items()} == pytest.approx(expected, abs=1e-12)


def planted() -> HookedModel:
    """Two layers of attention: in each the heads look at the previous token, the same token and position 0, but head 2
    of layer 1 reads what head 0 of layer 0 moved (the previous token's identity) and so induces.

    The stream is three blocks of 64: the token's own vector, the previous token's, and the position's.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    width, vocabulary, length = 64, 48, 40
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=3 * width, n_head=3, n_layer=2, n_positions=length, n_inner=1,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, scale_attn_weights=False,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    names, places = torch.eye(width)[:vocabulary], torch.eye(width)[:length]
    following = torch.eye(width).roll(1, 1)  # place t -> place t + 1
    first = torch.zeros(width, width)
    first[:, 0] = 1  # every place asks for place 0
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        body = hf.transformer
        body.wte.weight[:, :width] = names
        body.wpe.weight[:, 2 * width :] = places
        for index, block in enumerate(body.h):
            block.ln_1.weight.fill_(1)
            w = block.attn.c_attn.weight.view(3 * width, 3, 3, width)  # from, (q k v), head, to
            token, moved, place = (slice(i * width, (i + 1) * width) for i in range(3))
            w[place, 0, 0], w[place, 1, 0] = torch.eye(width), following * 3  # t asks for the key "place t - 1"
            w[token, 0, 1], w[token, 1, 1] = torch.eye(width), torch.eye(width) * 3
            if index == 0:
                w[place, 0, 2], w[place, 1, 2] = first, torch.eye(width) * 3
                w[token, 2, 0] = torch.eye(width) / 10  # about 1 after LayerNorm, as long as the other blocks
                block.attn.c_proj.weight.view(3, width, 3 * width)[0, :, moved] = torch.eye(width)
            else:
                w[token, 0, 2], w[moved, 1, 2] = torch.eye(width), torch.eye(width) * 3
        body.ln_f.weight.fill_(1)
    return HookedModel.wrap(hf)


def test_planted_heads_are_found():
    rows = behaviour_rows(planted(), sequences=4, length=18, seed=1, progress=False)
    assert [(row["layer"], row["head"]) for row in rows] == [(layer, head) for layer in range(2) for head in range(3)]
    expected = ["previous_token", "duplicate_token", "sink_share", "previous_token", "duplicate_token", "induction"]
    for row, name in zip(rows, expected, strict=True):
        if name == "duplicate_token":
            assert 0.45 < row[name] < 0.51, row  # the other half looks at the token's own position, as alike
        else:
            assert row[name] > 0.97, row
        assert all(row[other] < 0.1 for other in NAMES if other != name), row


def test_an_inducing_head_without_its_mover_does_not_induce():
    model = planted()
    with torch.no_grad():
        model.hf.transformer.h[0].attn.c_proj.weight.zero_()
    rows = behaviour_rows(model, sequences=4, length=18, seed=1, progress=False)
    assert rows[5]["induction"] < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_loops_over_the_independent_pattern(family):
    from interp.plain import plain_run
    from interp.sites import Point, Site

    model = wrapped(family)
    rows = behaviour_rows(model, sequences=2, length=6, seed=3, progress=False)
    tokens = repeated_tokens(model, sequences=2, length=6, seed=3)
    run = plain_run(model.hf.config.to_dict(), model.hf.state_dict(), tokens)
    for row in rows:
        pattern = run.sites[Site(Point.PATTERN, row["layer"])][:, row["head"]]
        each = [brute_force(pattern[b], tokens[b]) for b in range(2)]
        for name in NAMES:
            assert row[name] == pytest.approx(sum(scores[name] for scores in each) / 2, abs=1e-5)
    assert len(rows) == model.cfg.n_layers * model.cfg.n_heads


def test_the_seed_decides_and_pieces_do_not(monkeypatch):
    model = wrapped("llama")
    whole = behaviour_rows(model, sequences=3, length=8, seed=5, progress=False)
    assert whole == behaviour_rows(model, sequences=3, length=8, seed=5, progress=False)
    assert whole != behaviour_rows(model, sequences=3, length=8, seed=6, progress=False)
    monkeypatch.setattr(module, "_HELD", 1)
    for a, b in zip(whole, behaviour_rows(model, sequences=3, length=8, seed=5, progress=False), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_tokens_repeat_and_are_neither_special_nor_alike():
    tokens = repeated_tokens(wrapped("llama"), sequences=3, length=20, repeats=3)
    assert tokens.shape == (3, 60) and tokens.min() > 2
    assert torch.equal(tokens[:, :20], tokens[:, 20:40]) and torch.equal(tokens[:, :20], tokens[:, 40:])
    assert all(len(row.unique()) == 20 for row in tokens) and not torch.equal(tokens[0], tokens[1])


def test_given_tokens_are_used():
    model = wrapped("gpt2")
    tokens = random_tokens(model.hf, 2, 9)
    rows = behaviour_rows(model, tokens=tokens, layers=[1], progress=False)
    pattern = model.capture(tokens, ["pattern.1"])
    expected = behaviour(next(iter(pattern.values())).detach(), tokens)
    assert [row["layer"] for row in rows] == [1] * 4
    assert [row["previous_token"] for row in rows] == pytest.approx(expected.previous_token.mean(0).tolist())


def test_bad_input_is_named():
    model = wrapped("llama")
    with pytest.raises(InputError, match="200 distinct tokens; the model has 128 positions and 94 tokens"):
        repeated_tokens(model, length=200)
    with pytest.raises(InputError, match="one sequence, one token and two repeats, got sequences=8, length=64"):
        repeated_tokens(model, repeats=1)
    with pytest.raises(InputError, match="does not belong to tokens of shape"):
        behaviour(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="no layer was asked for"):
        behaviour_rows(model, layers=[], progress=False)
    with pytest.raises(InputError, match="the model has 3 layers"):
        behaviour_rows(model, length=5, layers=[7], progress=False)


def test_scores_of_the_real_model(smollm2):
    rows = behaviour_rows(smollm2, sequences=2, length=24, progress=False)
    assert len(rows) == 270
    for name in NAMES:
        scores = torch.tensor([row[name] for row in rows])
        assert (scores >= 0).all() and (scores <= 1).all()
        assert scores.max() > 0.5, name  # each behaviour has its heads in a trained model
    tokens = repeated_tokens(smollm2, sequences=2, length=24)
    pattern = smollm2.capture(tokens, ["pattern.7"])
    for head in (0, 5):
        found = next(iter(pattern.values()))[:, head].detach()
        each = [brute_force(found[b], tokens[b]) for b in range(2)]
        row = next(r for r in rows if (r["layer"], r["head"]) == (7, head))
        for name in NAMES:
            assert row[name] == pytest.approx(sum(scores[name] for scores in each) / 2, abs=1e-6)


def test_tiny_is_deterministic():
    assert behaviour_rows(HookedModel.wrap(tiny("gpt2")), length=5, progress=False) == behaviour_rows(
        wrapped("gpt2"), length=5, progress=False
    )

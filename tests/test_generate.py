"""Generation: batch = one by one, cache = no cache, left = right padding, with edits that go by position."""

import math

import pytest
import torch
from scipy import stats

from interp.errors import InputError
from interp.generate import Sampling
from interp.model import HookedModel
from interp.sites import Site
from tests.tiny_models import VARIANTS, tiny

LENGTHS = [9, 3, 14, 1]
NEW = 6


def prompts(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, model.cfg.d_vocab, (n,), generator=generator) for n in LENGTHS]


def padded(rows, side):
    width = max(len(row) for row in rows)
    out = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row if side == "right" else out[i, : len(row)]
        if side == "left":
            out[i, width - len(row) :] = row
    return out, torch.tensor([len(row) for row in rows])


def positional_edits(model):
    """Pushes that change with the absolute position and with being prompt or answer, on the stream and in a block."""
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(5))

    def push(x, where):
        size = torch.sin(1.3 * where.positions) + 2.0 * (where.positions >= where.prompt[:, None])
        return x + 1.5 * size[..., None] * direction

    def damp(x, where):
        return x * torch.where(where.positions % 3 == 0, 0.2, 1.0)[..., None]

    return {Site.parse("resid_post.0"): push, Site.parse("attn_out.1"): damp}


def greedy_by_hand(model, prompt, edits, count):
    """One row, one full forward pass per token, nothing shared with the loop under test."""
    row, new = prompt[None], []
    n = torch.tensor([len(prompt)])
    for _ in range(count):
        where = torch.arange(row.shape[1])[None]
        with torch.no_grad(), model.edited({s: by_hand(e, where, row.shape[1], n) for s, e in edits.items()}):
            new.append(model(row)[0, -1].argmax())
        row = torch.cat([row, new[-1].view(1, 1)], 1)
    return torch.stack(new)


def by_hand(edit, positions, length, prompt):
    from interp.running import Where

    return lambda x, _: edit(x, Where(positions, torch.tensor([length]), prompt))


@pytest.mark.parametrize("variant,edited", [*((v, True) for v in VARIANTS), ("llama", False), ("gemma2", False)])
def test_batched_padded_and_cached_generation_is_one_row_by_hand(variant, edited):
    model = HookedModel.wrap(tiny(variant))
    edits = positional_edits(model) if edited else {}
    rows = prompts(model)
    expected = torch.stack([greedy_by_hand(model, row, edits, NEW) for row in rows])
    assert len(set(map(tuple, expected.tolist()))) > 1
    options = {"edits": edits, "max_new_tokens": NEW, "stop_tokens": ()}
    for side in ("right", "left"):
        tokens, lengths = padded(rows, side)
        for use_cache in (True, False):
            got = model.generate(tokens, lengths=lengths, padding=side, use_cache=use_cache, **options)
            assert torch.equal(got, expected), (side, use_cache)
    assert torch.equal(model.generate(rows[1][None], **options)[0], expected[1])
    assert len(model.board) == 0


def test_the_edit_matters_and_so_does_its_position():
    model = HookedModel.wrap(tiny("llama"))
    tokens, lengths = padded(prompts(model), "right")
    edits = positional_edits(model)
    shifted = {
        site: lambda x, where, e=edit: e(x, where._replace(positions=where.positions + 1))
        for site, edit in edits.items()
    }
    plain, pushed, wrong = (
        model.generate(tokens, lengths=lengths, edits=e, max_new_tokens=NEW, stop_tokens=())
        for e in ({}, edits, shifted)
    )
    assert not torch.equal(plain, pushed) and not torch.equal(pushed, wrong)


def test_greedy_equals_transformers_generate():
    hf = tiny("gemma2")
    model = HookedModel.wrap(hf)
    tokens, lengths = padded(prompts(model), "left")
    mask = (torch.arange(tokens.shape[1]) >= (tokens.shape[1] - lengths)[:, None]).long()
    theirs = hf.generate(
        tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    ours = model.generate(tokens, lengths=lengths, padding="left", max_new_tokens=NEW, stop_tokens=())
    assert torch.equal(ours, theirs[:, tokens.shape[1] :])


def test_where_tells_absolute_positions_prompts_and_padding():
    model = HookedModel.wrap(tiny("mistral"))
    tokens, lengths = padded(prompts(model), "right")
    seen = {}
    for use_cache in (True, False):
        calls = seen[use_cache] = []

        def watch(x, where, calls=calls):
            calls.append(where)
            return x

        model.generate(
            tokens,
            lengths=lengths,
            edits={Site.parse("embed"): watch},
            max_new_tokens=3,
            stop_tokens=(),
            use_cache=use_cache,
        )
        assert len(calls) == 3
        for step, where in enumerate(calls):
            assert torch.equal(where.prompt, lengths) and torch.equal(where.lengths, lengths + step)
            for row in range(len(lengths)):
                real = where.positions[row][where.positions[row] < where.lengths[row]]
                new = [int(lengths[row]) + step - 1]
                assert real.tolist() == (new if use_cache and step else list(range(int(lengths[row]) + step)))


def test_rows_stop_at_their_stop_token_and_are_padded():
    hf = tiny("qwen3")
    model = HookedModel.wrap(hf)
    tokens, lengths = padded(prompts(model), "right")
    free = model.generate(tokens, lengths=lengths, max_new_tokens=NEW, stop_tokens=())
    stop = int(free[0, 2])
    got = model.generate(tokens, lengths=lengths, max_new_tokens=NEW, stop_tokens=[stop])
    for row, want in zip(got, free, strict=True):
        hits = (want == stop).nonzero()
        end = int(hits[0]) + 1 if len(hits) else NEW
        assert torch.equal(row[:end], want[:end][: len(row)]) and bool((row[end:] == hf.config.pad_token_id).all())
    alone = model.generate(tokens[:1, : lengths[0]], max_new_tokens=NEW, stop_tokens=[stop])
    assert alone.shape[1] == int((free[0] == stop).nonzero()[0]) + 1
    hf.generation_config.eos_token_id = [stop, 1]
    assert torch.equal(model.generate(tokens[:1, : lengths[0]], max_new_tokens=NEW), alone)


def test_sampling_is_seeded_per_row_and_the_same_with_and_without_cache():
    model = HookedModel.wrap(tiny("gemma3_text"))
    rows = prompts(model)
    tokens, lengths = padded(rows, "right")
    options = {"max_new_tokens": NEW, "temperature": 1.5, "top_p": 0.9, "top_k": 30, "stop_tokens": ()}
    batch = model.generate(tokens, lengths=lengths, seed=7, **options)
    assert torch.equal(batch, model.generate(tokens, lengths=lengths, seed=7, use_cache=False, **options))
    assert not torch.equal(batch, model.generate(tokens, lengths=lengths, seed=8, **options))
    for i, row in enumerate(rows):
        assert torch.equal(model.generate(row[None], seed=7 + i, **options)[0], batch[i])


def test_draws_follow_the_distribution():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0, 0.5]])
    pick = Sampling(temperature=0.7, seed=3).picker(1)
    counts = torch.bincount(torch.cat([pick(logits) for _ in range(4000)]), minlength=5)
    expected = (logits[0].double() / 0.7).softmax(-1) * 4000
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.15, 0.3, 0.05]]))
    weights, order = Sampling(temperature=1.0, top_k=2).distribution(logits)
    assert order[0, :2].tolist() == [1, 3] and weights[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0, 0])
    weights, _ = Sampling(temperature=1.0, top_p=0.6).distribution(logits)
    assert weights[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0, 0])
    weights, _ = Sampling(temperature=1.0, top_p=0.39).distribution(logits)
    assert weights[0].tolist() == pytest.approx([1, 0, 0, 0, 0])


@pytest.mark.parametrize("variant", ["llama", "gpt2"])
def test_gradient_checkpointing_takes_the_cache_away_and_changes_no_token(variant):
    hf = tiny(variant, **({"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if variant == "gpt2" else {}))
    model = HookedModel.wrap(hf)
    tokens, lengths = padded(prompts(model), "right")
    expected = model.generate(tokens, lengths=lengths, max_new_tokens=NEW, stop_tokens=())
    hf.train().activation_checkpointing_enable()
    assert torch.equal(model.generate(tokens, lengths=lengths, max_new_tokens=NEW, stop_tokens=()), expected)


def test_no_gradient_and_no_hook_is_left_behind_when_an_edit_raises():
    model = HookedModel.wrap(tiny("gpt2"))
    tokens, _ = padded(prompts(model), "right")

    def broken(x, where):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.generate(tokens, edits={Site.parse("resid_post.1"): broken})
    assert len(model.board) == 0 and torch.is_grad_enabled()


def test_bad_input():
    model = HookedModel.wrap(tiny("gpt2"))
    tokens, lengths = padded(prompts(model), "right")
    with pytest.raises(InputError, match=r"max_new_tokens=0: expected 1 or more"):
        model.generate(tokens, max_new_tokens=0)
    with pytest.raises(InputError, match=r"14 tokens and max_new_tokens=120 exceed the 128 learned positions"):
        model.generate(tokens, lengths=lengths, max_new_tokens=120)
    with pytest.raises(InputError, match=r"temperature=-1"):
        model.generate(tokens, temperature=-1.0)
    with pytest.raises(InputError, match=r"top_k=0"):
        model.generate(tokens, temperature=1.0, top_k=0)
    with pytest.raises(InputError, match=r"top_p=1.5"):
        model.generate(tokens, temperature=1.0, top_p=1.5)
    with pytest.raises(InputError, match=r"generated tokens need the unembedding"):
        HookedModel.wrap(tiny("llama").base_model).generate(tokens)
    with pytest.raises(InputError, match=r"logits for new token 0 are NaN; an edit"):
        model.generate(tokens, edits={Site.parse("resid_post.0"): lambda x, where: x * math.nan})


def test_smollm2_answers_with_and_without_cache(smollm2):
    ids = smollm2.tokenizer(["The capital of France is", "One, two, three, four,"]).input_ids
    tokens, lengths = padded([torch.tensor(row) for row in ids], "right")
    got = smollm2.generate(tokens, lengths=lengths, max_new_tokens=4)
    assert smollm2.tokenizer.decode(got[0]).startswith(" Paris")
    assert smollm2.tokenizer.decode(got[1]).startswith(" five")
    assert torch.equal(got, smollm2.generate(tokens, lengths=lengths, max_new_tokens=4, use_cache=False))

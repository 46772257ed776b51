"""Scopes: which token is steered does not depend on the cache, the padding, the batch, or on who else listens."""

from typing import get_args

import jaxtyping
import pytest
import torch
from torch import Tensor

from interp.batching import Batch
from interp.effects import compare
from interp.errors import InputError
from interp.model import HookedModel
from interp.running import Where
from interp.sites import Site
from interp.steering.edits import AffineEdit
from interp.steering.scopes import Scope, scoped
from interp.steering.steering import Steering, generate_steered, steered
from tests.steering.steering_cases import LENGTHS, affine, draw, every_kind, padded, ragged, steering_for
from tests.tiny_models import FAMILIES
from tests.wrapped_models import hooks_of, wrapped

SCOPES = get_args(Scope)
NEW = 3
MASKS = [[0, 1, 0, 0, 1, 1, 0, 0, 1], [0, 1, 1], [1] + [0] * 12 + [1], [1]]
"""Of the prompts in `ragged`."""


def mask(side: str) -> Tensor:
    """The masks as a batch; the padding is True, and must not matter."""
    return padded([torch.tensor(row, dtype=torch.bool) for row in MASKS], side, value=1)[0]


def chosen(scope: str, row: int, length: int) -> list[int]:
    """The positions a scope means in a sequence of `length` tokens that began as prompt `row`, counted out."""
    prompt = LENGTHS[row]
    return {
        "all": list(range(length)),
        "prompt": list(range(prompt)),
        "last-prompt": [prompt - 1],
        "generated": list(range(prompt, length)),
        "mask": [p for p in range(prompt) if MASKS[row][p]],
    }[scope]


def by_equation(edit: AffineEdit, x: Tensor) -> Tensor:
    """One vector."""
    assert edit.delta is not None
    return x + edit.beta * (edit.U @ (edit.V.T @ x - edit.c) + edit.delta)


def at_positions(edit: AffineEdit, positions: list[int]):
    """An edit of a lone sequence that knows its positions from the test, not from `Where`."""

    def run(x: Tensor, where: Where) -> Tensor:
        for p in positions:
            x[0, p] = by_equation(edit, x[0, p])
        return x

    return run


def greedy_by_hand(model: HookedModel, steering: Steering, row: int, prompt: Tensor) -> Tensor:
    """New tokens of one row: a full pass for every token, without cache, padding or scopes."""
    tokens = prompt[None]
    for _ in range(NEW):
        positions = chosen(steering.scope, row, tokens.shape[1])
        edits = {site: at_positions(edit, positions) for site, edit in steering.edits.items()}
        with torch.no_grad(), model.edited(edits):
            tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens[0, len(prompt) :]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_one_row_by_hand_with_and_without_cache_in_either_padding(family: str, scope: Scope):
    model = wrapped(family)
    steering, rows = steering_for(model, scope), ragged(model)
    expected = torch.stack([greedy_by_hand(model, steering, i, row) for i, row in enumerate(rows)])
    plain = model.generate(
        *[padded(rows, "right")[0]], lengths=torch.tensor(LENGTHS), max_new_tokens=NEW, stop_tokens=()
    )
    assert not torch.equal(expected, plain)  # the edit is strong enough to be seen
    for side in ("right", "left"):
        tokens, lengths = padded(rows, side)
        hooks = steering.hooks(mask(side) if scope == "mask" else None, padding=side)
        for use_cache in (True, False):
            found = model.generate(
                tokens,
                lengths=lengths,
                padding=side,
                edits=hooks,
                max_new_tokens=NEW,
                stop_tokens=(),
                use_cache=use_cache,
            )
            assert torch.equal(found, expected), (side, use_cache)


def test_neighbouring_scopes_differ_so_that_one_position_off_would_show():
    model, found = wrapped("llama"), {}
    rows = ragged(model)
    for scope in ("all", "prompt", "last-prompt", "generated"):
        found[scope] = [greedy_by_hand(model, steering_for(model, scope), i, row) for i, row in enumerate(rows)]
    plain = model.generate(padded(rows, "right")[0], lengths=torch.tensor(LENGTHS), max_new_tokens=1, stop_tokens=())
    first = {scope: [int(new[0]) for new in news] for scope, news in found.items()}
    assert first["generated"] == plain[:, 0].tolist()  # the first new token is picked before anything is generated
    assert first["all"] == first["prompt"] and first["last-prompt"] != first["generated"]
    assert len({tuple(map(int, torch.cat(new))) for new in found.values()}) == 4


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_a_plain_pass_steers_the_same_tokens_in_either_padding_alone_or_batched_and_inside_capture(
    family: str, scope: Scope
):
    model = wrapped(family)
    steering, rows = steering_for(model, scope), ragged(model)
    sites = ["resid_post.0", "attn_out.1", "resid_post.2"]
    with torch.no_grad():
        for side in ("right", "left"):
            tokens, lengths = padded(rows, side)
            hooks = steering.hooks(mask(side) if scope == "mask" else None, padding=side)
            with model.edited(hooks):
                logits, acts = model.run_recorded(tokens, sites, lengths=lengths, padding=side)
            assert logits is not None
            for i, row in enumerate(rows):
                cut = slice(len(row)) if side == "right" else slice(tokens.shape[1] - len(row), None)
                alone = {s: at_positions(e, chosen(scope, i, len(row))) for s, e in steering.edits.items()}
                with model.edited(alone):
                    expected, inside = model.run_recorded(row[None], sites)
                torch.testing.assert_close(logits[i, cut], expected[0], rtol=1e-4, atol=1e-4)
                for site in acts:
                    torch.testing.assert_close(acts[site][i, cut], inside[site][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_not_selected_is_bit_exactly_what_it_was_padding_included(scope: Scope):
    model, site = wrapped("llama"), Site.parse("resid_post.0")
    tokens, lengths = padded(ragged(model), "right")
    steering = Steering({site: affine(1)}, scope)
    with torch.no_grad():
        clean = model.capture(tokens, [site], lengths=lengths)[site]
        with model.edited(steering.hooks(mask("right") if scope == "mask" else None)):
            found = model.capture(tokens, [site], lengths=lengths)[site]
    for i, length in enumerate(LENGTHS):
        changed = [p for p in range(tokens.shape[1]) if not torch.equal(found[i, p], clean[i, p])]
        assert changed == chosen(scope, i, length)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", every_kind())
def test_zero_strength_changes_no_bit_of_any_logit(kind: str, scope: Scope):
    model = wrapped("gemma2")
    tokens, lengths = padded(ragged(model), "right")
    steering = Steering.of(model, {s: every_kind()[kind] for s in ("resid_pre.1", "mlp_out.2", "resid_post.3")})
    given = mask("right") if scope == "mask" else None
    hooks = Steering(steering.edits, scope).at(0).hooks(given)
    with torch.no_grad():
        clean = model(tokens, lengths=lengths)
        with model.edited(hooks):
            assert torch.equal(model(tokens, lengths=lengths), clean)
        with model.edited(Steering(steering.edits, "all").hooks()):
            assert not torch.equal(model(tokens, lengths=lengths), clean)


def test_every_row_of_a_batch_is_steered_alike():
    model = wrapped("qwen3")
    row = ragged(model)[0]
    tokens = row.expand(5, -1)
    for scope in ("all", "prompt", "last-prompt"):
        with torch.no_grad(), steered(model, steering_for(model, scope)):
            found = model(tokens)
            torch.testing.assert_close(found, found[:1].expand_as(found), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[:1], model(tokens[:1]), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found, model(tokens), atol=0.1)


def test_a_mask_ends_with_the_prompt_unless_it_is_extended():
    model, site = wrapped("llama"), Site.parse("resid_post.1")
    rows = ragged(model)
    tokens, lengths = padded(rows, "right")
    options = {"lengths": lengths, "max_new_tokens": NEW, "stop_tokens": ()}
    steering = Steering({site: affine(1)}, "mask")
    whole = torch.ones_like(tokens, dtype=torch.bool)
    prompt = model.generate(tokens, edits=Steering(steering.edits, "prompt").hooks(), **options)
    everywhere = model.generate(tokens, edits=Steering(steering.edits, "all").hooks(), **options)
    generated = model.generate(tokens, edits=Steering(steering.edits, "generated").hooks(), **options)
    assert not torch.equal(prompt, everywhere)
    for use_cache in (True, False):
        options["use_cache"] = use_cache
        assert torch.equal(model.generate(tokens, edits=steering.hooks(whole), **options), prompt)
        assert torch.equal(model.generate(tokens, edits=steering.hooks(whole, extend=True), **options), everywhere)
        assert torch.equal(model.generate(tokens, edits=steering.hooks(~whole, extend=True), **options), generated)


def test_sites_with_heads_are_steered_head_by_head():
    model, site = wrapped("llama"), Site.parse("z.1")
    edit = affine(3, d=16)
    tokens, lengths = padded(ragged(model), "right")
    with torch.no_grad():
        clean = model.capture(tokens, [site], lengths=lengths)[site]
        with steered(model, Steering({site: edit}, "last-prompt")):
            found = model.capture(tokens, [site], lengths=lengths)[site]
    for i, length in enumerate(LENGTHS):
        for head in range(4):
            torch.testing.assert_close(found[i, length - 1, head], by_equation(edit, clean[i, length - 1, head]))
        assert torch.equal(found[i, : length - 1], clean[i, : length - 1])


def test_effects_of_a_steering_are_those_of_the_steered_model():
    model = wrapped("mistral")
    tokens, lengths = padded(ragged(model), "right")
    zeros = torch.zeros(len(tokens), dtype=torch.int64)
    steering = steering_for(model, "last-prompt")
    found = compare(model, [Batch(tokens, lengths, zeros, zeros)], {"s": steering.hooks(), "0": steering.at(0).hooks()})
    assert found.kl["0"] == 0 and found.ce["0"] == found.ce_clean
    assert found.kl["s"] == 0  # the last token of a document predicts none that is counted
    everywhere = {"s": steering_for(model, "all").hooks()}
    assert compare(model, [Batch(tokens, lengths, zeros, zeros)], everywhere).kl["s"] > 0.1


def test_a_scope_that_never_meets_a_token_is_told():
    model = wrapped("llama")
    tokens, lengths = padded(ragged(model), "right")
    with pytest.warns(
        UserWarning, match="'generated' met no token: nothing was steered. Passes outside generation have"
    ):
        with torch.no_grad(), steered(model, steering_for(model, "generated")):
            model(tokens, lengths=lengths)
    with steered(model, steering_for(model, "generated")):
        model.generate(tokens, lengths=lengths, max_new_tokens=2)
    behind = torch.arange(tokens.shape[1]) >= lengths[:, None]
    with pytest.warns(UserWarning, match="'mask' met no token: nothing was steered"):
        with torch.no_grad(), steered(model, steering_for(model, "mask"), mask=behind):
            model(tokens, lengths=lengths)


def test_hooks_are_gone_after_an_exception():
    model = wrapped("gpt2")
    before, tokens = hooks_of(model.hf), ragged(model)[0][None]
    with torch.no_grad():
        clean = model(tokens)
        with pytest.raises(ZeroDivisionError), steered(model, steering_for(model)):
            model(tokens)
            raise ZeroDivisionError
        with (
            pytest.raises(InputError, match="an edit of width 20"),
            model.edited(Steering({Site.parse("embed"): affine(1, d=20)}).hooks()),
        ):
            model(tokens)
        assert hooks_of(model.hf) == before and len(model.board) == 0
        assert torch.equal(model(tokens), clean)


def test_bad_scopes_and_masks(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the type checker of the tests would come first
    edit, some = affine(1), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(InputError, match="unknown scope 'decode': expected one of all, prompt, last-prompt, generated"):
        scoped(edit, "decode")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="padding='both'"):
        scoped(edit, "mask", some, padding="both")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="a mask was given for the scope 'all'"):
        scoped(edit, "all", some)
    with pytest.raises(InputError, match="scope='mask' needs the mask"):
        scoped(edit, "mask")
    with pytest.raises(InputError, match="the mask is False everywhere"):
        scoped(edit, "mask", ~some)
    model = wrapped("llama")
    tokens, lengths = padded(ragged(model), "right")
    for wrong, text in ((some, "2 rows, the running batch 4"), (some.repeat(2, 1), "3 columns, and a prompt of the")):
        with pytest.raises(InputError, match=text), torch.no_grad():
            with steered(model, steering_for(model, "mask"), mask=wrong):
                model(tokens, lengths=lengths)


def test_smollm2_writes_the_same_steered_text_with_and_without_cache(smollm2):
    prompts, d, texts = ["The capital of France is", "My dog"], smollm2.cfg.d_model, {}
    edit = AffineEdit(draw(0, d, 2), draw(1, d, 2) / d**0.5, draw(2, 2), 3 * draw(3, d), 0.5)
    texts = {"plain": generate_steered(smollm2, prompts, None, max_new_tokens=3)}
    for scope in ("all", "last-prompt", "generated"):
        steering = Steering.of(smollm2, {"resid_post.10": edit, "mlp_out.20": edit}, scope=scope)
        texts[scope] = generate_steered(smollm2, prompts, steering, max_new_tokens=3)
        assert texts[scope] == generate_steered(smollm2, prompts, steering, max_new_tokens=3, use_cache=False)
        assert texts[scope][1:] == generate_steered(smollm2, prompts[1:], steering, max_new_tokens=3)
    assert len({*map(tuple, texts.values())}) == 4
    assert texts["plain"] == generate_steered(smollm2, prompts, steering.at(0), max_new_tokens=3)
    assert texts["generated"][0].startswith(" Paris")  # picked before anything is steered

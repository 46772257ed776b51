"""The oracle finds mistakes: each fault, planted in the model or in the capture, makes the parity check fail.

The faults are those that implementations of these families really have had. For each the check must pass without it,
fail with it, and name the place: the first deviating site in execution order is the one where the fault was planted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.compat import all_sites
from interp.model import HookedModel
from interp.parity import parity
from interp.parity_table import ParityError, ParityTable
from tests.tiny_models import random_tokens, tiny

TOLERANCE = 1e-5
Plant = Callable[[pytest.MonkeyPatch, HookedModel], None]


def interleaved(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Any:
    """Rotates dimensions 2i and 2i + 1 together, which is right for Meta's order of rows and wrong for this one."""
    half = cos.shape[-1] // 2
    cos, sin = (x[..., :half].unsqueeze(unsqueeze_dim) for x in (cos, sin))

    def turn(x: torch.Tensor) -> torch.Tensor:
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    return turn(q), turn(k)


def tile_heads(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    patch.setattr("transformers.models.llama.modeling_llama.repeat_kv", lambda x, n: x.repeat(1, n, 1, 1))


def tile_heads_in_scores(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    import interp.recording as recording

    right = recording.attention_scores
    patch.setattr(
        recording,
        "attention_scores",
        lambda q, k, **options: right(q, k.repeat(1, 1, q.shape[2] // k.shape[2], 1), **options),
    )


def widen_window(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    import transformers.masking_utils as masks

    right = masks.sliding_window_overlay
    patch.setattr(masks, "sliding_window_overlay", lambda window: right(window + 1))


def widen_window_in_scores(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    windows = tuple(None if w is None else w + 1 for w in model.cfg.windows)
    change(model, windows=windows)


def take_before_post_norm(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    model.anatomy = dataclasses.replace(model.anatomy, attn_out="self_attn.o_proj")


def take_mlp_before_post_norm(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    model.anatomy = dataclasses.replace(model.anatomy, mlp_out="mlp.down_proj")


def drop_rope_scaling(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    frequencies = model.hf.model.rotary_emb.inv_freq
    pairs = torch.arange(len(frequencies)) / len(frequencies)
    frequencies.copy_(model.hf.config.rope_parameters["rope_theta"] ** -pairs)


def one_rope_for_all_layers(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    rotary = model.hf.model.rotary_emb
    rotary.sliding_attention_inv_freq.copy_(rotary.full_attention_inv_freq)


def turn_interleaved(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    patch.setattr("transformers.models.llama.modeling_llama.apply_rotary_pos_emb", interleaved)


def turn_interleaved_in_capture(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    patch.setattr("interp.recording.rotate", lambda x, cos, sin: interleaved(x, x, cos, sin, unsqueeze_dim=2)[0])


def drop_soft_cap(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    for block in model.hf.model.layers:
        block.self_attn.attn_logit_softcapping = None


def drop_soft_cap_in_scores(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    change(model, attn_cap=None)


def drop_final_cap(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    config = model.hf.config
    right = config.to_dict()
    config.final_logit_softcapping = None
    patch.setattr(type(config), "to_dict", lambda self: right)  # the plain forward pass keeps reading the right value


def scale_by_head_width(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    for block in model.hf.model.layers:
        block.self_attn.scaling = model.cfg.d_head**-0.5


def drop_embedding_scale(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    model.hf.model.embed_tokens.embed_scale = torch.tensor(1.0)


def drop_query_norm(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    model.anatomy = dataclasses.replace(model.anatomy, q_norm=None)


def swap_query_and_key(patch: pytest.MonkeyPatch, model: HookedModel) -> None:
    model.anatomy = dataclasses.replace(model.anatomy, fused="blocks")


def change(model: HookedModel, **spec: Any) -> None:
    model.anatomy = dataclasses.replace(model.anatomy, spec=dataclasses.replace(model.anatomy.spec, **spec))


FAULTS: list[tuple[str, Plant, str]] = [
    ("llama", tile_heads, "blocks.0.attn.hook_z"),
    ("llama", tile_heads_in_scores, "blocks.0.attn.hook_attn_scores"),
    ("mistral", widen_window, "blocks.0.attn.hook_z"),
    ("gemma2", widen_window, "blocks.0.attn.hook_z"),
    ("mistral", widen_window_in_scores, "blocks.0.attn.hook_attn_scores"),
    ("gemma2", take_before_post_norm, "blocks.0.hook_attn_out"),
    ("gemma2", take_mlp_before_post_norm, "blocks.0.hook_mlp_out"),
    ("gemma3_text", take_before_post_norm, "blocks.0.hook_attn_out"),
    ("llama", drop_rope_scaling, "blocks.0.attn.hook_rot_q"),
    ("gemma3_text", one_rope_for_all_layers, "blocks.0.attn.hook_rot_q"),
    ("llama", turn_interleaved, "blocks.0.attn.hook_z"),
    ("llama", turn_interleaved_in_capture, "blocks.0.attn.hook_rot_q"),
    ("gemma2", drop_soft_cap, "blocks.0.attn.hook_z"),
    ("gemma2", drop_soft_cap_in_scores, "blocks.0.attn.hook_attn_scores"),
    ("gemma2", drop_final_cap, "logits"),
    ("gemma2", scale_by_head_width, "blocks.0.attn.hook_z"),
    ("gemma2", drop_embedding_scale, "hook_embed"),
    ("gemma3_text", drop_embedding_scale, "hook_embed"),
    ("qwen3", drop_query_norm, "blocks.0.attn.hook_rot_q"),
    ("gpt_neox", swap_query_and_key, "blocks.0.attn.hook_q"),
]


@pytest.mark.parametrize(("family", "plant", "first"), FAULTS, ids=[f"{f}-{p.__name__}" for f, p, _ in FAULTS])
def test_the_fault_is_found_where_it_is(family: str, plant: Plant, first: str, monkeypatch: pytest.MonkeyPatch):
    model = HookedModel.wrap(tiny(family, attn_implementation="eager"))
    check(model).raise_if_above(TOLERANCE)
    plant(monkeypatch, model)
    table = check(model)
    with pytest.raises(ParityError, match="by more than 1e-05 relative, in execution order"):
        table.raise_if_above(TOLERANCE)
    assert table.worst()[1].relative > 1000 * TOLERANCE
    assert table.above(TOLERANCE)[0].split(" ")[0] == first


def test_batches_that_look_at_padding_are_found(monkeypatch: pytest.MonkeyPatch):
    """Left padding fed as if it were right padding: every sequence alone is right, the batch is not."""
    model = HookedModel.wrap(tiny("llama"))
    tokens, lengths = random_tokens(model.hf, 2, 24), torch.tensor([24, 15])
    right = model._forward
    monkeypatch.setattr(model, "_forward", lambda t, n, frame: right(t.roll(3, dims=1), n, frame))
    assert parity(model, tokens, lengths=lengths, opinions=("plain",)).worst()[1].relative > 0.1


def check(model: HookedModel) -> ParityTable:
    """Of the first layer, the ends and the logits; every fault shows there, if at all."""
    sites = [site for site in all_sites(model) if site.layer in (None, 0)]
    tokens, lengths = random_tokens(model.hf, 2, 24), torch.tensor([24, 15])
    return parity(model, tokens, lengths=lengths, sites=sites, opinions=("plain",))

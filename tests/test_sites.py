"""Site names: TransformerLens's, read and written back; order of execution; errors that teach."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InputError
from interp.sites import Point, Site

IN_BLOCK = [p for p in Point if p.in_block]
sites = st.builds(
    lambda point, layer, head: Site(point, layer, head if point.per_head else None),
    st.sampled_from(IN_BLOCK),
    st.integers(0, 200),
    st.none() | st.integers(0, 200),
) | st.sampled_from([Site(Point.EMBED), Site(Point.LN_FINAL)])


@given(sites)
def test_names_round_trip(site: Site):
    assert Site.parse(str(site)) == site
    assert Site.parse(site) is site
    head = "" if site.head is None else f"[{site.head}]"
    short = site.point.short + ("" if site.layer is None else f".{site.layer}")
    assert Site.parse(short + head) == site


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_the_names_are_transformerlens_s():
    """Every in-block name but the heads' is a hook of a real TransformerLens model of this kind."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=8, d_head=4, n_heads=2, d_mlp=16, d_vocab=5, act_fn="silu", gated_mlp=True,
        normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=4,
    )  # fmt: skip
    names = set(HookedTransformer(config).hook_dict)
    ours = {str(Site(p, 0 if p.in_block else None)) for p in Point}
    assert ours <= names, ours - names


def test_two_spellings_are_one_site():
    assert Site.parse("blocks.15.hook_resid_post") == Site.parse("resid_post.15") == Site(Point.RESID_POST, 15)
    assert len({Site.parse("blocks.3.attn.hook_z[5]"), Site.parse("z.3[5]")}) == 1


def test_order_is_the_order_of_execution():
    names = (
        "embed resid_pre.0 ln1.0 q.0 rot_q.0 pattern.0 z.0 attn_out.0 resid_mid.0 ln2.0 mlp_post.0 mlp_out.0 "
        "resid_post.0 resid_pre.1 resid_post.10 ln_final"
    )
    order = [Site.parse(n) for n in names.split()]
    for shuffled in itertools.islice(itertools.permutations(order), 0, 5000, 97):
        assert sorted(shuffled) == order


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resid_pots.3", "names no site"),
        ("blocks.x.hook_resid_post", "names no site"),
        ("blocks.3.hook_embed", "names no site"),
        ("hook_resid_post", "names no site"),
        ("resid_post.3[2]", "no head axis"),
        ("", "names no site"),
    ],
)
def test_wrong_names(text: str, says: str):
    with pytest.raises(InputError, match=says):
        Site.parse(text)


def test_layer_where_there_is_none():
    with pytest.raises(InputError, match="takes no layer, got layer=3"):
        Site(Point.LN_FINAL, 3)
    with pytest.raises(InputError, match="takes a layer, got layer=None"):
        Site(Point.Q)
    with pytest.raises(InputError, match="count from 0"):
        Site(Point.Q, -1)

"""Two stores of one text as rows of two models: alignment, refusals, and latents of one model told from shared ones."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from interp.errors import InputError
from interp.extract import extract
from interp.plan import Exclusions
from interp.sites import Site
from interp.store import ActivationStore
from saes.evaluate import names_of
from saes.paired import ModelSite, PairedRows, source_shares
from saes.recipe import TrainConfig
from saes.row_quality import measure_rows, thresholds_of
from saes.sae import SAE
from saes.sweep import sweep
from saes.train import fit
from tests import planted
from tests.toy_store import SITES, ToyModel, token_file

NAMES = ("base", "chat")
BOTH = [ModelSite(name, SITES[0]) for name in NAMES]


class Other(ToyModel):
    """The same text, another model, wider."""

    name, revision = "other", "r2"

    def __init__(self) -> None:
        super().__init__(width=4)
        self.table = torch.randn(self.table.shape, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def stores(tmp_path: Path) -> tuple[ActivationStore, ActivationStore]:
    """The second in another order: another seed and other batches; documents longer than a window among them."""
    tokens = token_file(tmp_path / "tokens", [9, 40, 25, 3, 70] * 4)
    a = extract(ToyModel(), tokens, SITES, tmp_path / "a", max_length=32, progress=False, store_dtype="float32")
    options = {"seed": 5, "token_budget": 64, "store_dtype": "float32", "progress": False}
    return a, extract(Other(), tokens, SITES[:1], tmp_path / "b", max_length=32, **options)


def test_rows_are_matched_whatever_the_order_of_the_stores(stores):
    """Against a table of the second store's rows by document and position."""
    a, b = stores
    keys_a, keys_b = (store.keys(0, len(store)) for store in stores)
    assert not torch.equal(keys_a.doc, keys_b.doc)
    table = {
        (int(d), int(p)): b.rows(SITES[0], i, i + 1)[0]
        for i, (d, p) in enumerate(zip(keys_b.doc, keys_b.position, strict=True))
    }
    rows = PairedRows(a, b)
    assert len(rows) == len(a) == len(table)
    sites = [ModelSite("chat", SITES[0]), ModelSite("base", SITES[1])]
    alone = list(a.batches([SITES[1]], 50, seed=3, epoch=1))
    found = list(rows.batches(sites, 50, seed=3, epoch=1))
    for ours, plain in zip(found, alone, strict=True):
        assert list(ours.acts) == sites
        assert torch.equal(ours.acts[sites[1]], plain.acts[Site.parse(SITES[1])])
        assert all(torch.equal(x, y) for x, y in zip(ours[1:], plain[1:], strict=True))
        expected = [table[int(d), int(p)] for d, p in zip(ours.doc, ours.position, strict=True)]
        assert torch.equal(ours.acts[sites[0]], torch.stack(expected))
    later = list(rows.batches(sites, 50, seed=3, epoch=1, first=4))
    assert all(torch.equal(x.acts[sites[0]], y.acts[sites[0]]) for x, y in zip(later, found[4:], strict=True))


def test_provenance_names_both_models(tmp_path, stores):
    config = TrainConfig(architecture="batchtopk", d_sae=12, k=2, tokens=640, batch_size=64)
    sae = fit(PairedRows(*stores), config, tmp_path / "sae", site=BOTH)
    known = SAE.load(tmp_path / "sae").config.metadata
    assert sae.config.sources == (6, 4)
    assert known["hook_names"] == ["base:blocks.1.hook_resid_post", "chat:blocks.1.hook_resid_post"]
    assert known["model_name"] == "base: toy; chat: other"
    assert known["midlens_store"]["revision"] == {"base": "r1", "chat": "r2"}
    assert known["midlens_store"]["tokens"] == stores[0].specs[0].tokens
    assert str(ModelSite("base", "resid_post.15")) == "base:blocks.15.hook_resid_post"
    turned = PairedRows(*reversed(stores))
    with pytest.raises(InputError, match=r"other settings \(store: "):
        fit(turned, config, tmp_path / "sae", site=BOTH)


def test_stores_of_different_text_are_refused(tmp_path, stores):
    a, _ = stores
    other = token_file(tmp_path / "others", [9, 40, 25, 3, 70] * 4, seed=1)
    tokens = token_file(tmp_path / "tokens", [9, 40, 25, 3, 70] * 4)
    made = {
        "corpus: .* in base, .* in chat; tokens: .* in base, .* in chat": extract(
            Other(), other, SITES, tmp_path / "c", max_length=32, progress=False
        ),
        "max_length: 32 in base, 16 in chat": extract(
            Other(), tokens, SITES, tmp_path / "d", max_length=16, progress=False
        ),
        r"excluded: \['first_position', .*\] in base, \[\] in chat": extract(
            Other(),
            tokens,
            SITES,
            tmp_path / "e",
            max_length=32,
            progress=False,
            exclude=Exclusions(False, False, False),
        ),
    }
    for message, store in made.items():
        with pytest.raises(InputError, match=rf"do not hold the same rows of the same text \(.*{message}.*\): extract"):
            PairedRows(a, store)


def test_stores_that_claim_the_same_text_but_hold_other_rows_are_refused(tmp_path):
    tokens = planted.token_file(tmp_path / "tokens", [10] * 4)
    doc, position = torch.arange(40) // 10, torch.arange(40) % 10
    a = planted.store(tmp_path / "a", tokens, torch.randn(40, 3), doc, position)
    shorter = planted.store(tmp_path / "b", tokens, torch.randn(39, 3), doc[:39], position[:39])
    with pytest.raises(
        InputError, match=r"40 rows.*39 rows.*base has token \d+, document 3, position 9 and chat no row"
    ):
        PairedRows(a, shorter)
    moved = position.clone()
    moved[17] = 8
    twice = planted.store(tmp_path / "c", tokens, torch.randn(40, 3), doc, moved)
    with pytest.raises(
        InputError, match=r"base has token \d+, document 1, position 7 and chat token \d+, document 1, pos"
    ):
        PairedRows(a, twice)
    manifest = json.loads((a.path / "manifest.json").read_text())
    whole, rows = manifest["parts"][0], [shard["rows"] for shard in manifest["shards"]]
    first = {**whole, "shards": 1, "rows": rows[0]}
    rest = {**whole, "plan": "plan-00001.json", "shards": len(rows) - 1, "rows": sum(rows[1:])}
    (a.path / "manifest.json").write_text(json.dumps({**manifest, "parts": [first, rest]}))
    with pytest.raises(InputError, match=r"has 2 parts and chat .* 1: not one text"):
        PairedRows(ActivationStore.open(a.path), shorter)


def test_names_and_sites_are_checked(stores):
    for names in (("a", "a"), ("a:b", "c"), ("", "c")):
        with pytest.raises(InputError, match="two different words without a colon"):
            PairedRows(*stores, names=names)
    rows = PairedRows(*stores, names=("x", "y"))
    with pytest.raises(InputError, match=r"hold x:blocks.0.attn.hook_z, x:blocks.1.hook_resid_post, .*, not y:"):
        next(rows.batches([ModelSite("y", SITES[1])], 8, seed=0))
    with pytest.raises(InputError, match="size must be positive"):
        rows.batches([ModelSite("x", SITES[1])], 0, seed=0)


def test_latents_of_one_model_are_told_from_shared_ones(tmp_path):
    """8 latents in both models, 5 in each alone; the second store is shuffled and four times as loud."""
    d, shared, alone, n = 16, 8, 5, 4000
    g = torch.Generator().manual_seed(0)
    f = shared + 2 * alone
    codes = torch.zeros(n, f).scatter(1, torch.rand(n, f, generator=g).topk(3).indices, 1.0)
    codes *= 1 + torch.rand(n, f, generator=g)
    a, b = (normalize(torch.randn(f, d, generator=g), dim=1) for _ in NAMES)
    b[shared : shared + alone] = 0
    a[shared + alone :] = 0
    tokens = planted.token_file(tmp_path / "tokens", [40] * 100)
    doc, position = torch.arange(n) // 40, torch.arange(n) % 40
    order = torch.randperm(n, generator=g)
    base = planted.store(tmp_path / "a", tokens, codes @ a, doc, position)
    chat = planted.store(tmp_path / "b", tokens, 4 * (codes @ b)[order], doc[order], position[order])
    config = TrainConfig(
        architecture="batchtopk", d_sae=f + 6, k=3, batch_size=256, tokens=60_000, lr=2e-2, dead_after_tokens=4000
    )
    sites = [ModelSite(name, planted.SITE) for name in NAMES]
    sae = fit(PairedRows(base, chat), config, tmp_path / "sae", site=sites)
    rows = sae.W_dec.detach() / torch.tensor([1.0] * d + [4.0] * d)
    match = (normalize(torch.cat([a, b], dim=1), dim=1) @ normalize(rows, dim=1).T).max(dim=1)
    assert (match.values > 0.95).all(), match.values
    share = source_shares(SAE.load(tmp_path / "sae"))
    assert share[0, match.indices[:shared]].sub(0.5).abs().max() < 0.1
    assert share[0, match.indices[shared : shared + alone]].min() > 0.8
    assert share[1, match.indices[shared + alone :]].min() > 0.8
    torch.testing.assert_close(share.sum(0), torch.ones(config.width(2 * d)))
    norms = [sae.W_dec[:, :d].norm(dim=1), sae.W_dec[:, d:].norm(dim=1) * 0.25]
    torch.testing.assert_close(source_shares(sae, [1.0, 0.25])[0], norms[0] / (norms[0] + norms[1]))
    with pytest.raises(InputError, match=r"the 2 sources need a scale each .*, got \[1.0\]"):
        source_shares(sae, [1.0])
    with pytest.raises(InputError, match="shares of sources are for crosscoders"):
        source_shares(planted.orthonormal_sae(4, 4, 2))


def test_rows_of_two_models_are_measured(tmp_path, stores):
    """Against the second store's rows found by document and position; limits of massive rows are per source."""
    rows = PairedRows(*stores)
    config = TrainConfig(architecture="batchtopk", d_sae=12, k=2, tokens=640, batch_size=64)
    sae = fit(rows, config, tmp_path / "sae", site=BOTH)
    a, b = stores
    n = len(a)
    keys_a, keys_b = (store.keys(0, n) for store in stores)
    place = {key: i for i, key in enumerate(zip(keys_b.doc.tolist(), keys_b.position.tolist(), strict=True))}
    partner = [place[key] for key in zip(keys_a.doc.tolist(), keys_a.position.tolist(), strict=True)]
    sources = [a.rows(SITES[0], 0, n), b.rows(SITES[0], 0, n)[partner]]
    assert torch.equal(rows.rows(BOTH[1], 3, 20), sources[1][3:20]) and torch.equal(
        rows.keys(3, 20).doc, keys_a.doc[3:20]
    )
    norms = [x.norm(dim=1) for x in sources]
    limits = {site: float(norm.quantile(0.9)) for site, norm in zip(BOTH, norms, strict=True)}
    usual = (norms[0] <= limits[BOTH[0]]) & (norms[1] <= limits[BOTH[1]])
    assert 0 < int((~usual).sum()) < n // 4
    found = measure_rows(sae, rows, BOTH, threshold=limits)
    with torch.no_grad():
        x = torch.cat(sources, 1)
        x_hat = sae(x)

    def explained(y: torch.Tensor, y_hat: torch.Tensor) -> float:
        y, y_hat = y.double(), y_hat.double()
        return float(1 - (y - y_hat).square().sum() / (y - y.mean(0)).square().sum())

    assert found.kept.explained_variance == pytest.approx(explained(x[usual], x_hat[usual]), rel=1e-6)
    assert found.all_rows.explained_variance == pytest.approx(explained(x, x_hat), rel=1e-6)
    assert found.massive_rows == int((~usual).sum()) and found.n_documents == len(set(keys_a.doc.tolist()))
    for site, columns in zip(BOTH, (slice(0, 6), slice(6, 10)), strict=True):
        own = explained(x[usual][:, columns], x_hat[usual][:, columns])
        assert found.sources[str(site)].explained_variance == pytest.approx(own, rel=1e-6)
    known = thresholds_of(sae, rows, BOTH)
    assert list(known.values()) == sae.config.metadata["massive_norm_threshold"] and list(known) == BOTH
    named = measure_rows(sae, rows, [f"{name}:resid_post.1" for name in NAMES], threshold=limits)
    assert named.kept == found.kept and named.sources == found.sources


def test_what_is_measured_where_it_does_not_belong_is_refused(tmp_path, stores):
    rows = PairedRows(*stores)
    config = TrainConfig(architecture="batchtopk", d_sae=12, k=2, tokens=128, batch_size=64)
    sae = fit(rows, config, tmp_path / "sae", site=BOTH)
    one = r"reads two models \(base:blocks\.1\..*, chat:blocks\.1.*\).*one.*measure_rows, on a saes\.paired\.PairedRows"
    with pytest.raises(InputError, match=one):
        measure_rows(sae, stores[0], BOTH)
    with pytest.raises(InputError, match=one):
        names_of(sae, stores[0])
    with pytest.raises(InputError, match=r"made for the site base:.*, chat:.*, and is asked to work on chat:.*, base:"):
        measure_rows(sae, rows, BOTH[::-1])
    with pytest.raises(InputError, match=r"paired stores hold base:blocks\.0.*, not blocks\.1\.hook_resid_post"):
        measure_rows(sae, rows, [SITES[0], SITES[1]], force=True)
    for models in ("base: toy; chat: third", "base: third; chat: other"):
        sae.config.metadata["model_name"] = models
        with pytest.raises(InputError, match=rf"made for the model {models}, .* on base: toy; chat: other"):
            measure_rows(sae, rows, BOTH)
    sae.config.metadata["model_name"] = "base: hub/Toy; chat: Other"  # other spellings of the same
    assert measure_rows(sae, rows, BOTH).kept.n_tokens == len(rows)


def test_a_sweep_of_crosscoders_over_two_models_is_evaluated_on_held_out_rows(tmp_path, stores):
    rows = PairedRows(*stores)
    config = TrainConfig(architecture="batchtopk", d_sae=12, k=2, tokens=128, batch_size=64)
    found = sweep(rows, {"one": config}, tmp_path / "sweep", site=BOTH, evaluate_on=rows, show=False)
    sae = SAE.load(tmp_path / "sweep" / "one")
    expected = measure_rows(sae, rows, BOTH, threshold=thresholds_of(sae, rows, BOTH))
    assert found.figures()["one"]["explained_variance"] == expected.kept.explained_variance
    other = PairedRows(stores[1], stores[1])
    with pytest.raises(InputError, match=r"holds activations of base: other; chat: other, the rows to train"):
        sweep(rows, {"one": config}, tmp_path / "other", site=BOTH, evaluate_on=other, show=False)

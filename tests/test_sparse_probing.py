"""k-sparse probing: planted features, pooling one text at a time, splits that do not leak, bundled texts, the model."""

import json
from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sparse
import scipy.stats
import torch

from interp.corpus import Document
from interp.errors import InputError
from interp.model import HookedModel
from interp.stats import wilson
from saes.labelled import TASKS, LabelledTexts, bundled, from_corpus, read_labelled
from saes.pooling import Pooled, pool
from saes.sae import SAE, SAEConfig
from saes.sparse_probing import probe, problems, rank, sparse_probing
from tests import planted
from tests.planted import SITE
from tests.tiny_models import tiny


def _texts(n: int, classes: int = 2) -> LabelledTexts:
    labels = tuple(f"c{i % classes}" for i in range(n))
    return LabelledTexts("planted", tuple(f"text {i}" for i in range(n)), labels)


def _pooled(data: LabelledTexts, f: int = 40, d: int = 10, seed: int = 0) -> Pooled:
    """Sparse positive noise in f features and dense noise in d coordinates, without a word about the labels."""
    rng = np.random.default_rng(seed)
    features = np.where(rng.random((len(data), f)) < 0.3, rng.random((len(data), f)), 0).astype(np.float32)
    return Pooled(sparse.csr_array(features), rng.normal(size=(len(data), d)).astype(np.float32))


def test_a_planted_feature_is_found_and_reads_the_label():
    data = _texts(120)
    pooled = _pooled(data)
    features = pooled.features.toarray()
    features[:, 17] = np.where(np.array(data.labels) == "c0", 2.0, 0.1)
    found = probe(Pooled(sparse.csr_array(features), pooled.residual), data)
    (only,) = found.classes
    assert only.name == "c1" and only.features[0] == 17, "chosen though it is lower in the class: the difference counts"
    score = only.sparse[1]
    assert score.accuracy == score.f1 == score.auc == 1 and score.n_test == 36
    assert score.low == pytest.approx(wilson(36, 36).low) and score.high == 1
    assert only.dense.accuracy < 0.7 and only.coordinates[1].accuracy < 0.7, "the activation itself says nothing here"
    # 5 permutations of 36 test labels: standard error 0.037
    assert all(abs(value - 0.5) < 0.15 for value in only.control.values())
    assert found.summary()["sparse_k1"] == 1 and set(found.to_json()) == {"mean_accuracy", "task", "pool", "classes"}


def test_two_features_are_needed_for_an_and():
    """Label = both of two features: one alone reaches 3/4 at most, two together all."""
    rng = np.random.default_rng(1)
    a, b = rng.random(400) < 0.7, rng.random(400) < 0.7
    data = LabelledTexts("and", ("t",) * 400, tuple("yes" if both else "no" for both in a & b))
    pooled = _pooled(data)
    features = 0.1 * pooled.features.toarray()
    features[:, 3], features[:, 8] = a, b
    (only,) = probe(Pooled(sparse.csr_array(features), pooled.residual), data, ks=(1, 2)).classes
    assert set(only.features) == {3, 8} and only.sparse[2].accuracy == 1 and only.sparse[1].accuracy < 0.9


def test_selection_sees_training_texts_only():
    """A feature that is the label, but on test texts alone, must not be chosen."""
    data = _texts(120)
    test, positive = data.is_test(), np.array(data.labels) == "c1"
    pooled = _pooled(data)
    features = pooled.features.toarray()
    features[:, 5] = np.where(test, 100.0 * positive, 0.3)
    (only,) = probe(Pooled(sparse.csr_array(features), pooled.residual), data).classes
    assert 5 not in only.features


def test_rank_is_the_difference_of_means():
    rng = np.random.default_rng(0)
    rows, positive = rng.normal(size=(50, 20)), rng.random(50) < 0.4
    difference = rows[positive].mean(0) - rows[~positive].mean(0)
    assert rank(rows, positive).tolist() == np.argsort(-np.abs(difference)).tolist()
    assert rank(sparse.csr_array(rows), positive).tolist() == rank(rows, positive).tolist()
    assert rank(rows, positive, signed=True).tolist() == np.argsort(-difference).tolist()


def test_scores_are_their_definitions():
    """AUC as the share of pairs in order, F1 from counts; both for a probe that errs."""
    data = _texts(200)
    rng = np.random.default_rng(4)
    positive, test = np.array(data.labels) == "c1", data.is_test()
    values = positive + rng.normal(size=200) * 0.7 + 3
    pooled = _pooled(data)
    features = np.zeros((200, 12), np.float32)
    features[:, 2] = values
    (only,) = probe(Pooled(sparse.csr_array(features), pooled.residual), data, ks=(1,)).classes
    x, y = features[test, 2], positive[test]
    pairs = x[y][:, None] - x[~y][None]
    assert only.sparse[1].auc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-9)
    # A probe on one rising feature is a threshold: among all thresholds one gives its accuracy and its F1.
    cuts = [(x > cut) for cut in [*x, x.min() - 1]]
    f1 = [2 * (g & y).sum() / (2 * (g & y).sum() + (g ^ y).sum()) for g in cuts]
    found = (only.sparse[1].accuracy, only.sparse[1].f1)
    assert any(found == pytest.approx(((g == y).mean(), f), abs=1e-9) for g, f in zip(cuts, f1, strict=True))
    assert 0.6 < found[0] < 0.95


def test_of_several_classes_each_is_a_balanced_problem():
    data = _texts(90, classes=3)
    test = data.is_test()
    found = list(problems(data, test, np.random.default_rng(0)))
    assert [problem.name for problem in found] == ["c0", "c1", "c2"]
    for problem in found:
        labels = np.array(data.labels)[problem.chosen]
        assert ((labels == problem.name) == problem.positive).all() and len(set(problem.chosen)) == len(problem.chosen)
        for side in (True, False):
            inside = test[problem.chosen] == side
            assert (problem.positive & inside).sum() == (~problem.positive & inside).sum() > 0
    assert len(probe(_pooled(data), data).classes) == 3


def test_groups_are_never_split():
    labels = tuple("ab"[i % 2] for i in range(60)) + ("a",) * 30
    groups = tuple(f"pair-{i // 2}" for i in range(60)) + tuple(f"own-{i // 3}" for i in range(30))
    data = LabelledTexts("g", ("t",) * 90, labels, groups)
    test = data.is_test(share=0.3, seed=1)
    sides: dict[str, set[bool]] = {}
    for group, side in zip(groups, test.tolist(), strict=True):
        sides.setdefault(group, set()).add(side)
    assert all(len(side) == 1 for side in sides.values())
    held = [group for group, side in sides.items() if True in side]
    assert sum(g.startswith("pair") for g in held) == 9 and sum(g.startswith("own") for g in held) == 3
    assert (test != data.is_test(share=0.3, seed=2)).any() and (test == data.is_test(share=0.3, seed=1)).all()
    lonely = LabelledTexts("g", ("t",) * 8, tuple("aaaabbbb"), tuple("11112222"))
    with pytest.raises(InputError, match=r"the test side has no text of a, b: their groups are too few"):
        lonely.is_test()


def _tiny() -> HookedModel:
    return HookedModel.wrap(tiny("llama"), planted.word_tokenizer())


@pytest.mark.parametrize("how", ["mean", "max"])
def test_pooling_equals_one_text_at_a_time(how):
    model, sae = _tiny(), planted.orthonormal_sae(48, 24, 8)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{w}" for w in rng.integers(3, 97, n)) for n in (7, 2, 19, 1, 12)]
    texts.append("w5 <s> w9 </s> w3")  # special tokens count nothing
    found = pool(sae, model, texts, SITE, how=how, token_budget=40)
    assert sparse.issparse(found.features) and found.features.shape == (6, 24)
    for i, text in enumerate(texts):
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False).input_ids])
        with torch.no_grad():
            x = model.hf(ids, output_hidden_states=True).hidden_states[2][0]
            kept = [t for t, token in enumerate(ids[0].tolist()) if t > 0 and token > 2] or [0]
            codes = sae.encode(x[kept]).dense()
        np.testing.assert_allclose(found.residual[i], x[kept].mean(0), rtol=1e-4, atol=1e-5)
        expected = codes.mean(0) if how == "mean" else codes.amax(0)
        np.testing.assert_allclose(found.features[[i]].toarray()[0], expected, rtol=1e-4, atol=1e-5)


def test_pooling_cuts_long_texts_and_refuses_a_foreign_sae():
    model = _tiny()
    long = " ".join(f"w{i % 90 + 3}" for i in range(60))
    cut = pool(planted.orthonormal_sae(48, 24, 8), model, [long], SITE, max_length=10)
    short = pool(planted.orthonormal_sae(48, 24, 8), model, [" ".join(long.split()[:10])], SITE)
    np.testing.assert_allclose(cut.residual, short.residual, rtol=1e-5)
    with pytest.raises(InputError, match=r"for the site blocks\.0\.hook_resid_post"):
        pool(planted.orthonormal_sae(48, 24, 8, hook_name="blocks.0.hook_resid_post"), model, ["w5"], SITE)
    with pytest.raises(InputError, match="does not say which site it belongs to"):
        pool(planted.orthonormal_sae(48, 24, 8), model, ["w5"])


@pytest.mark.parametrize("task", TASKS)
def test_bundled_texts_are_balanced_and_not_told_by_their_length(task):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    data = bundled(task)
    counts = Counter(data.labels)
    assert len(set(counts.values())) == 1 and len(data) >= 80 and len(set(data.texts)) == len(data)
    lengths = np.array([[len(text), len(text.split())] for text in data.texts], float)
    lengths = StandardScaler().fit_transform(np.concatenate([lengths, lengths**2], 1))
    accuracies = []
    for seed in range(3):
        test = data.is_test(seed=seed)
        for problem in problems(data, test, np.random.default_rng(seed)):
            held, x = test[problem.chosen], lengths[problem.chosen]
            fitted = LogisticRegression().fit(x[~held], problem.positive[~held])
            accuracies.append(fitted.score(x[held], problem.positive[held]))
    assert np.mean(accuracies) < 0.65, "characters and words alone must not give the label away"


def test_the_real_model_is_probed(smollm2):
    """Who tells the story, at layer 6: the activation says it; a random dictionary keeps a part; shuffled, nothing."""
    W = torch.nn.functional.normalize(torch.randn(600, 576, generator=torch.Generator().manual_seed(0)))
    weights = {"W_enc": W.T, "b_enc": torch.zeros(600), "W_dec": W, "b_dec": torch.zeros(576)}
    sae = SAE.of_weights(SAEConfig(d_in=576, d_sae=600, k=16), **weights)
    found = sparse_probing(sae, smollm2, bundled("person"), "resid_post.6")
    (only,) = found.classes
    assert only.dense.accuracy > 0.9 and only.dense.auc > 0.95
    assert only.sparse[5].accuracy > found.mean("control", 5)
    assert only.sparse[5].low < only.sparse[5].accuracy < only.sparse[5].high
    # 5 permutations of 24 to 26 test labels: standard error 0.045
    assert all(abs(value - 0.5) < 0.2 for value in only.control.values())


def test_texts_of_the_corpus_have_equal_length_and_keep_modules_together():
    documents = [
        Document(f"{package}/mod{i // 3}:f{i}", " ".join(f"{package}{i}w{j}" for j in range(20 + i)))
        for package in ("numpy", "scipy", "rare")
        for i in range(3 if package == "rare" else 15)
    ]
    data = from_corpus(documents, per_class=12, words=24)
    assert data.classes == ("numpy", "scipy") and {len(text.split()) for text in data.texts} == {24}
    assert Counter(data.labels) == {"numpy": 11, "scipy": 11}, "documents under 24 words are skipped"
    assert set(data.groups) == {f"{p}/mod{i}" for p in ("numpy", "scipy") for i in range(1, 5)}
    assert data.texts[0].split()[0] == "numpy4w0" and data.texts[-1].split()[0] == "scipy14w5", "from the middle"


def test_own_texts_are_read_and_refused_with_the_reason(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"text": f"t{i}", "label": i % 2, "group": i // 2} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    data = read_labelled(path)
    assert data.name == "mine" and data.labels[:3] == ("0", "1", "0") and data.groups[:3] == ("0", "0", "1")
    for text, message in (
        ('{"text": "a"}', r'line 1: expected \{"text"'),
        ("nothing", "line 1 is not JSON"),
        ('{"text": " ", "label": 1}', "text 0 is empty"),
        ('{"text": "a", "label": 1}', "expected two classes or more with at least 4 texts each"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_labelled(path)
    with pytest.raises(InputError, match="cannot read labelled texts"):
        read_labelled(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no bundled task 'colour'; known: language"):
        bundled("colour")
    with pytest.raises(InputError, match="2 texts, 1 labels"):
        LabelledTexts("x", ("a", "b"), ("c",))
    with pytest.raises(InputError, match=r"ks=\[0\]: expected numbers from 1 to 10"):
        probe(_pooled(_texts(40)), _texts(40), ks=(0,))


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (7, 12), (50, 100), (1, 1)])
def test_wilson_is_scipys(right, n):
    for level in (0.9, 0.95):
        theirs = scipy.stats.binomtest(right, n).proportion_ci(level, method="wilson")
        assert wilson(right, n, level=level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_refuses_the_impossible():
    assert wilson(0, 0) == (0, 1)
    with pytest.raises(InputError, match="expected 0 <= successes <= n"):
        wilson(3, 2)

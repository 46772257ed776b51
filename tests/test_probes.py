"""Linear probes against scikit-learn, and the controls against what they are known to show."""

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.probe_metrics import Counts, exactly, macro_auc, score
from interp.probes import (
    LinearProbe,
    control_labels,
    fit_logistic,
    fit_probe,
    fit_ridge,
    selectivity,
    shuffled,
)


def rows(n=400, d=7, q=5, seed=0):
    """Activations of very different scales with an offset, noisy linear labels, and a mask."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.logspace(-1, 1, d, dtype=torch.float64) + 2
    z = x @ torch.randn(d, q, generator=g, dtype=torch.float64) * 0.2
    z = z - z.mean(0)
    y = z + torch.randn(n, q, generator=g, dtype=torch.float64) > 0
    mask = torch.rand(n, q, generator=g) < 0.7
    return x, y, mask


def classes_of(x, q, c, seed=1):
    g = torch.Generator().manual_seed(seed)
    z = torch.einsum("nd,qcd->nqc", x, torch.randn(q, c, x.shape[1], generator=g, dtype=torch.float64)) * 0.2
    z = z - z.mean(0) + torch.randn(z.shape, generator=g, dtype=torch.float64)
    return z.argmax(2)


@pytest.mark.parametrize("C", [0.03, 1.0, 20.0])
def test_logistic_equals_scikit_learn_output_by_output(C):
    from sklearn.linear_model import LogisticRegression

    x, y, mask = rows()
    probe = fit_logistic(x, y, mask=mask, C=C, tol=1e-9)
    assert probe.converged(1e-9)
    for j in range(y.shape[1]):
        m = mask[:, j].numpy()
        there = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(x.numpy()[m], y[:, j].numpy()[m])
        np.testing.assert_allclose(probe.weight[j, 0], there.coef_[0], atol=2e-6)
        np.testing.assert_allclose(probe.bias[j], there.intercept_, atol=2e-5)
        np.testing.assert_allclose(probe.probabilities(x)[:, j, 0], there.predict_proba(x.numpy())[:, 1], atol=2e-6)
        assert (probe.predict(x)[:, j].numpy() == there.predict(x.numpy())).all()


def test_classes_equal_scikit_learn_also_where_one_is_missing():
    from sklearn.linear_model import LogisticRegression

    x, _, _ = rows()
    y = classes_of(x, q=3, c=4)
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    mask[:, 2] &= y[:, 2] != 1
    probe = fit_logistic(x, y, mask=mask, classes=4, tol=1e-8)
    for j in range(3):
        m = mask[:, j].numpy()
        there = LogisticRegression(tol=1e-10, max_iter=10_000).fit(x.numpy()[m], y[:, j].numpy()[m])
        seen = list(there.classes_)
        ours, theirs = probe.probabilities(x)[:, j], there.predict_proba(x.numpy())
        np.testing.assert_allclose(ours[:, seen], theirs, atol=1e-5)
        np.testing.assert_allclose(probe.weight[j, seen], there.coef_, atol=1e-5)
        assert ours[:, [k for k in range(4) if k not in seen]].sum() == 0


def test_ridge_equals_scikit_learn():
    from sklearn.linear_model import Ridge

    x, y, mask = rows()
    mask[:, 1] = mask[:, 0]
    probe = fit_ridge(x, y, mask=mask, alpha=3.0)
    for j in range(y.shape[1]):
        m = mask[:, j].numpy()
        there = Ridge(alpha=3.0).fit(x.numpy()[m], y[:, j].numpy()[m].astype(float))
        np.testing.assert_allclose(probe.weight[j, 0], there.coef_, atol=1e-9)
        np.testing.assert_allclose(probe.bias[j, 0], there.intercept_, atol=1e-9)


def test_float32_agrees_with_float64_and_states_its_gradient():
    x, y, mask = rows(d=20, q=8)
    fine, coarse = fit_logistic(x, y, mask=mask, tol=1e-9), fit_logistic(x, y, mask=mask, dtype=torch.float32)
    assert coarse.weight.dtype == torch.float32 and coarse.converged(1e-4)
    assert (fine.probabilities(x) - coarse.probabilities(x)).abs().max() < 0.01
    stopped = fit_logistic(x, y, mask=mask, max_iter=1)
    assert not stopped.converged(1e-4)


def test_what_is_stated_as_gradient_is_the_objectives():
    x, y, mask = rows()
    probe = fit_logistic(x, y, mask=mask, C=0.5, max_iter=2)
    w, b = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    z = torch.einsum("nd,qcd->nqc", x, w)[:, :, 0] + b[:, 0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y.double(), reduction="none")
    counts = mask.sum(0)
    (((loss * mask).sum(0) + (w**2).sum((1, 2)) / (2 * 0.5)) / counts).sum().backward()
    assert w.grad is not None and b.grad is not None
    largest = torch.maximum(w.grad.abs().amax((1, 2)), b.grad.abs().amax(1))
    torch.testing.assert_close(probe.gradient, largest, rtol=1e-6, atol=1e-12)


def test_an_output_with_one_label_is_constant_and_leaves_the_others_alone():
    x, y, mask = rows()
    alone = fit_logistic(x, y[:, 1:], mask=mask[:, 1:], tol=1e-9)
    y[:, 0] = True
    probe = fit_logistic(x, y, mask=mask, tol=1e-9)
    assert (probe.probabilities(x)[:, 0] == 1).all() and (probe.weight[0] == 0).all()
    torch.testing.assert_close(probe.weight[1:], alone.weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_masked_rows_change_nothing(kind):
    x, y, mask = rows()
    flipped = torch.where(mask, y, ~y)
    one, two = fit_probe(kind, x, y, mask=mask), fit_probe(kind, x, flipped, mask=mask)
    assert torch.equal(one.weight, two.weight)


def test_metrics_equal_scikit_learn_with_ties():
    from sklearn.metrics import roc_auc_score

    g = torch.Generator().manual_seed(0)
    scores = (torch.randn(300, 4, 1, generator=g) * 2).round()  # many ties
    y = torch.rand(300, 4, generator=g) < torch.sigmoid(scores[:, :, 0])
    mask = torch.rand(300, 4, generator=g) < 0.6
    y[:, 3] = True  # no negatives: left out
    found = macro_auc(scores, y[:, :, None], mask)
    one = [roc_auc_score(y[m, j].numpy(), scores[m, j, 0].numpy()) for j in range(3) for m in [mask[:, j]]]
    assert found.value == pytest.approx(np.mean(one), abs=1e-12) and found.low < found.value < found.high
    chances = torch.randn(300, 2, 3, generator=g).softmax(2)
    kinds = torch.randint(0, 3, (300, 2), generator=g)
    hot = torch.nn.functional.one_hot(kinds, 3) > 0
    several = macro_auc(chances, hot, torch.ones_like(kinds, dtype=torch.bool))
    there = [roc_auc_score(kinds[:, j].numpy(), chances[:, j].numpy(), multi_class="ovr") for j in range(2)]
    assert several.value == pytest.approx(np.mean(there), abs=1e-7)


def test_the_auc_interval_covers_the_truth():
    # Scores N(1, 1) and N(0, 1): the AUC is Phi(1 / sqrt 2). Four copies of an output are no more than one.
    truth, rng, hits, copies_width = 0.7602499, np.random.default_rng(0), 0, []
    for _ in range(200):
        y = torch.from_numpy(rng.random(150) < 0.5)
        s = torch.from_numpy(rng.normal(size=150)) + y
        found = macro_auc(s[:, None, None], y[:, None, None], torch.ones(150, 1, dtype=torch.bool))
        copied = macro_auc(
            s[:, None, None].expand(150, 4, 1), y[:, None, None].expand(150, 4, 1), torch.ones(150, 4, dtype=torch.bool)
        )
        hits += found.low <= truth <= found.high
        copies_width.append((copied.high - copied.low) / (found.high - found.low))
    assert 180 <= hits <= 198  # 95 % of 200 are 190, three deviations are 9
    np.testing.assert_allclose(copies_width, 1, rtol=1e-9)


def test_exact_match_wants_the_whole_group():
    right = torch.tensor([[True, True, True, False], [True, False, True, True]])
    everything = torch.ones_like(right)
    assert exactly(right, everything, 2).value == 0.5
    masked = torch.tensor([[True, True, False, False], [True, True, False, True]])
    counts = exactly(right, masked, 2)
    assert counts.right.tolist() == [1, 1] and counts.counted.tolist() == [1, 2]


def test_scores_of_a_known_probe():
    x = torch.tensor([[2.0], [-1.0], [0.5], [-3.0]])
    probe = LinearProbe("logistic", torch.ones(1, 1, 1), torch.zeros(1, 1), torch.zeros(1))
    found = score(probe, x, torch.tensor([[True], [True], [False], [False]]), draws=50).scores
    p = 1 / (1 + np.exp(-x[:, 0].numpy()))
    assert found.accuracy.value == 0.5 and found.auc.value == 0.75
    assert found.mse.value == pytest.approx(np.mean((p - [1, 1, 0, 0]) ** 2), abs=1e-6)


def test_intervals_are_over_rows():
    one = Counts(np.array([0.0, 4.0] * 50), np.full(100, 4.0)).estimate(draws=500)
    width = one.high - one.low
    assert 0.15 < width < 0.25  # 100 rows, all outputs of a row alike: 2 * 1.96 * 0.5 / sqrt(100), not / sqrt(400)


def test_shuffled_gives_nobody_its_own():
    given = shuffled(50, seed=3)
    assert sorted(given) == list(range(50)) and (given != np.arange(50)).all()
    assert (given == shuffled(50, seed=3)).all() and (given != shuffled(50, seed=4)).any()


def test_selectivity_tells_memory_from_reading():
    """One-hot word types: a probe that memorises the types does as well on the control; a linear fact is selective."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 40, size=1200)
    task = torch.from_numpy(types % 2 == 0)[:, None]
    control = control_labels(types, task, seed=1)
    assert all(len(set(control[types == t, 0].tolist())) == 1 for t in range(40))
    memory = torch.eye(40)[types]
    fact = task.float() + 0.1 * torch.randn(1200, 1, generator=torch.Generator().manual_seed(0))
    train, test = slice(0, 900), slice(900, None)

    def right(x, y):
        return (fit_logistic(x[train], y[train]).predict(x[test]) == y[test])[:, 0].numpy()

    by_memory = selectivity(right(memory, task), right(memory, control))
    assert by_memory.task == by_memory.control == 1 and by_memory.value == 0
    by_fact = selectivity(right(fact, task), right(fact, control))
    assert by_fact.task == 1 and by_fact.value > 0.2 and by_fact.interval.low > 0.1


def test_bad_input_is_named():
    x, y, _ = rows(n=30)
    with pytest.raises(InputError, match="expected n d, n q"):
        fit_logistic(x[:0], y[:0])
    with pytest.raises(InputError, match="output 0 has no row at all"):
        fit_ridge(x, y, mask=torch.zeros_like(y))
    with pytest.raises(InputError, match="expected booleans, or integers with `classes`"):
        fit_logistic(x, y.long())
    with pytest.raises(InputError, match="integers from 0 to classes - 1"):
        fit_logistic(x, y.long() + 5, classes=3)
    with pytest.raises(InputError, match="C=0: expected a number above 0"):
        fit_logistic(x, y, C=0)
    with pytest.raises(InputError, match="not finite"):
        fit_logistic(x * torch.inf, y)
    with pytest.raises(InputError, match="expected one of logistic, ridge"):
        fit_probe("lasso", x, y)
    with pytest.raises(InputError, match="probe of width 7"):
        fit_ridge(x, y).scores(x[:, :3])

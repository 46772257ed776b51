"""`Codes` against dense matrices."""

import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from saes.codes import Codes


def of_dense(dense: torch.Tensor) -> Codes:
    """An independent construction: scipy's."""
    csr = scipy.sparse.csr_matrix(dense.numpy())
    indices, offsets = (torch.from_numpy(part).long() for part in (csr.indices, csr.indptr))
    return Codes(torch.from_numpy(csr.data), indices, offsets, dense.shape[1])


@given(n=st.integers(0, 6), f=st.integers(1, 7), seed=st.integers(0, 99))
def test_dense_transpose_rows_and_counts(n, f, seed):
    g = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, f, generator=g) * (torch.rand(n, f, generator=g) > 0.6)
    codes = of_dense(dense)
    assert torch.equal(codes.dense(), dense)
    assert torch.equal(codes.counts, (dense > 0).sum(1))
    assert codes.n_tokens == n
    assert torch.equal(codes.rows, dense.nonzero()[:, 0])
    turned = codes.transpose()
    assert turned.n_features == n and turned.n_tokens == f
    assert torch.equal(turned.dense(), dense.T)
    for feature in range(f):  # one column: the tokens on which a feature fires, in order
        column = slice(int(turned.offsets[feature]), int(turned.offsets[feature + 1]))
        assert torch.equal(turned.indices[column], dense[:, feature].nonzero()[:, 0])
        assert torch.equal(turned.values[column], dense[dense[:, feature] > 0, feature])


def test_fixed_k_keeps_zeros_until_pruned():
    values = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 3.0]])
    indices = torch.tensor([[1, 0], [2, 1], [0, 2]])
    codes = Codes.of_fixed_k(values, indices, 4)
    assert codes.counts.tolist() == [2, 2, 2]
    pruned = codes.pruned()
    assert pruned.counts.tolist() == [1, 0, 2]
    assert torch.equal(pruned.dense(), codes.dense())
    assert pruned.indices.tolist() == [1, 0, 2] and pruned.values.tolist() == [2.0, 1.0, 3.0]


def test_gradients_pass_through():
    values = torch.tensor([[2.0, 0.0], [1.0, 3.0]], requires_grad=True)
    codes = Codes.of_fixed_k(values, torch.tensor([[1, 0], [0, 2]]), 3)
    for made in (codes.dense(), codes.pruned().dense(), codes.transpose().dense().T):
        (gradient,) = torch.autograd.grad((made * torch.arange(6.0).view(2, 3)).sum(), values)
        assert gradient[0, 0] == 1 and gradient[1].tolist() == [3.0, 5.0]

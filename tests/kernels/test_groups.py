"""Selection in two stages: maxima of groups, their members, and the largest of a flat list."""

import pytest
import torch
from midlens_kernels import _groups


@pytest.mark.parametrize("f", [8, 64, 71, 7])
def test_members_and_left_over_are_all_columns_once(f):
    g = f // _groups.GROUP
    columns = torch.cat([_groups.members(torch.arange(g), f).flatten(), _groups.left_over(f, torch.device("cpu"))])
    assert sorted(columns.tolist()) == list(range(f))


@pytest.mark.parametrize("block", [1, 200, 2**18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_maxima_are_those_of_the_members(weighted, dtype, block, monkeypatch):
    monkeypatch.setattr(_groups, "BLOCK", block)
    g = torch.Generator().manual_seed(0)
    pre, weight = torch.randn(9, 43, generator=g).to(dtype), torch.rand(43, generator=g) + 0.5
    scores = pre * weight if weighted else pre
    truth = scores[:, _groups.members(torch.arange(5), 43)].amax(2)
    assert torch.equal(_groups.group_maxima(pre, weight if weighted else None), truth)


@pytest.mark.parametrize("by", [_groups._largest_by_numpy, _groups._largest_by_topk], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("m,count", [(1, 1), (50, 1), (50, 49), (50, 50), (3000, 700)])
def test_the_largest_by_either_way(m, count, dtype, by):
    """With many ties, and minus infinities."""
    values = torch.randint(-20, 20, (m,), generator=torch.Generator().manual_seed(m)).to(dtype)
    values[::7] = -torch.inf
    at = by(values, count)
    assert at.dtype == torch.int64 and len(set(at.tolist())) == count
    assert sorted(values[at].tolist()) == sorted(values.tolist())[m - count :]


def test_the_way_taken_here():
    assert torch.equal(_groups.largest(torch.tensor([1.0, 3.0, 2.0]), 1), torch.tensor([1]))

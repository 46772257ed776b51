"""Sparse and dense entries are the same computation, in low precision too."""

import pytest
import torch

from saes.config import SAEConfig
from saes.entries import entries_above
from saes.sae import SAE


@pytest.mark.parametrize("compute", [None, torch.bfloat16], ids=str)
def test_dense_and_sparse_entries_send_the_same_gradients(compute):
    """With a product in bfloat16 as well: what is rounded is the product, never a gradient."""
    g = torch.Generator().manual_seed(0)
    d, f = 24, 56
    found = []
    for dense in (True, False):
        g.manual_seed(0)
        sae = SAE(SAEConfig(d_in=d, d_sae=f, architecture="standard"))
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=g))
        x, target = torch.randn(40, d, generator=g), torch.randn(40, d, generator=g)
        entries = entries_above(sae, sae.centred(x), torch.zeros(f), dense=dense, compute=compute)
        assert (entries.indices is None) == dense
        (entries.decode(entries.pre.relu(), sae.W_dec) - target).square().mean().backward()
        found.append({name: parameter.grad for name, parameter in sae.named_parameters()})
    for name in ("encoder", "b_enc", "W_dec", "b_dec"):
        # Entries are sums over 40 rows that may cancel: what rounding leaves is relative to the largest of them.
        dense, sparse = (gradients[name] for gradients in found)
        assert (dense - sparse).abs().max() <= 1e-6 * dense.abs().max(), name
    rounded = found[0]["encoder"].to(torch.bfloat16).float()
    assert not torch.equal(found[0]["encoder"], rounded)

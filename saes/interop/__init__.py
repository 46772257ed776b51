"""Trained SAEs of other tools, read into `SAE` by what they compute, and `SAE`s handed to SAELens.

    load_sae("google/gemma-scope-9b-it-res:layer_20/width_131k/average_l0_81")     -> SAE
    to_saelens(sae)                                                               -> a live sae_lens SAE

Every convention in which the tools differ (scaled inputs, decoder norms in the selection, a bias subtracted or not,
transposed matrices) is turned into weights of `SAE`'s one convention. Dense codes and reconstructions stay those of
the tool itself; the codes' unit changes only where a module of this package says so. There is one module per layout,
and `saes.interop.load` lists them.
"""

from saes.interop.load import Layout as Layout
from saes.interop.load import load_sae as load_sae
from saes.interop.saelens import to_saelens as to_saelens

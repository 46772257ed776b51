"""Statistics of activations for steering and probing: moments, whitening, and where they come from.

    moments = moments_from_model(model, batches, ["resid_post.15"])      # or moments_from_store(store, site)
    q = whitener(moments[site]).solve(s)                                 # Σ^-1 s, shrunk

Parts: `interp.running_moments` (streaming and merging), `interp.whitening` (shrinkage), `interp.activation_rows` (which
rows of a model or a store count).
"""

from interp.activation_rows import (
    Positions,
    PromptRows,
    moments_from_model,
    moments_from_store,
    prompt_rows,
    text_batches,
)
from interp.running_moments import Groups, Moments
from interp.whitening import Whitener, Whitening, shrinkage, whitener

__all__ = [
    "Groups",
    "Moments",
    "Positions",
    "PromptRows",
    "Whitener",
    "Whitening",
    "moments_from_model",
    "moments_from_store",
    "prompt_rows",
    "shrinkage",
    "text_batches",
    "whitener",
]

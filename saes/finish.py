"""From the last state of a run to the SAE for raw activations.

    batchtopk, matryoshka_batchtopk   become jumprelu with one threshold for all features, the running one
    jumprelu                          threshold = exp(log_threshold)
    mean_read between 0 and 1         what was subtracted from the encoder's input goes into its bias
    decoder_norm "weighted"           norms folded away: rows of norm 1 (crosscoder: norms in the sources add up to 1)

Then `Frame.raw` brings everything to the units of the activations, thresholds included.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from saes.losses import row_norms
from saes.recipe import BATCHED
from saes.sae import SAE, fold_decoder_norm
from saes.state import TrainState
from saes.team_files import whole_sae


@torch.no_grad()
def finished(state: TrainState, metadata: Mapping[str, Any]) -> SAE:
    """The trained SAE, in the units of the model's activations."""
    shape, weights = state.whole, whole_sae(state).weights()
    if state.config.architecture == "jumprelu":
        weights["threshold"] = state.team.whole("log_threshold", state.log_threshold).exp()
    if part := state.bias_subtracted:
        weights["b_enc"] = weights["b_enc"] - part * (weights["b_dec"] @ weights["W_enc"])
    if state.config.decoder_norm == "weighted":
        weights = fold_decoder_norm(weights, row_norms(weights["W_dec"], shape.sources))
    if state.config.architecture in BATCHED:
        # Of scores, which are pre-activations times norm if those count: in folded units already.
        threshold = state.memory["threshold"].clamp(min=0).to(weights["b_dec"].dtype)
        shape = dataclasses.replace(shape, architecture="jumprelu", k=None)
        weights["threshold"] = threshold.expand(shape.d_sae)
    return SAE.of_weights(dataclasses.replace(shape, metadata=metadata), **state.frame.raw(weights))

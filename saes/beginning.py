"""`first_state`: a run that is about to take its first step, from a sample of its activations."""

import torch
from jaxtyping import Float
from torch import Tensor

from saes.config import SAEConfig
from saes.frame import Frame
from saes.init import QUANTILE_ROWS, quantiles, start
from saes.recipe import TrainConfig
from saes.state import TrainState
from saes.team import ALONE, Team
from saes.team_files import own_features


@torch.no_grad()
def first_state(
    config: TrainConfig,
    shape: SAEConfig,
    frame: Frame,
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n out"] | None = None,
    *,
    steps: int,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    team: Team = ALONE,
) -> TrainState:
    """The state before the first step: first weights and, if the recipe has `start_l0`, biases or thresholds.

    `x` and, of a transcoder, `y` are the sample, raw; the state lies on `device`. Every process of a team is given the
    whole sample and keeps its own features.
    """
    filled = config.filled(shape)
    norm, part = filled.decoder_init_norm, filled.mean_read or 0.0
    assert norm is not None
    sae = start(shape, frame.scaled(x, y), b_dec=config.b_dec, seed=config.seed, norm=norm, mean_read=part)
    sae = own_features(sae, team).to(device)
    state = TrainState(sae, config, frame, steps, batch_size=batch_size, team=team, shape=shape)
    if filled.start_l0 is not None:
        framed = frame.scaled(x.to(device), None if y is None else y.to(device))
        read = state.read(framed.x[framed.kept > 0][:QUANTILE_ROWS])
        state.begin_at(quantiles(state.sae, read, l0=filled.start_l0, of=shape.d_sae))
    return state

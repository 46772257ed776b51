"""How much memory a training run takes, before it starts: stated by formula, checked against measurement.

With P parameters (d f + f d_out, biases, thresholds), batches of n tokens, k active features, all in bytes:

    held       12 P                    float32 weights and Adam's two moments
    forward    4 c f                   pre-activations of c tokens at a time, c f <= max(f, 2^24) (2 c f in bfloat16,
                                       and then 2 d f for the encoder's copy)
               + 3/2 c f + 160 n k     to choose in a whole batch (batchtopk, matryoshka)
    backward   4 P + 4 max(d, d_out) f gradients; while dead features are revived, one gradient twice
    both       about 8 n (d + d_out) + 100 n k       activations, errors, their gradients; codes and their index
               + 12 n (d + d_out)      while dead features are revived
               + 16 n d_out            for every further level of a matryoshka dictionary
    dense      about 24 n f            for standard while it treats all features as active; jumprelu 28, gated 43

    peak = held + both + max(forward, backward)      or held + both + dense + backward, where it applies

The topk family never holds a matrix of n f beyond the c f pre-activations. A checkpoint and the end of the run need
less than a step.
"""

import math
from dataclasses import dataclass

from midlens_kernels import CHUNK

from saes.config import SAEConfig
from saes.recipe import BATCHED, TrainConfig

_DENSE = {"standard": 24, "jumprelu": 28, "gated": 43}
"""Bytes per token and feature."""


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose; see the module's docstring."""

    held: int
    forward: int
    backward: int
    both: int
    dense: int

    @property
    def peak(self) -> int:
        """The most that is allocated at any time in a step."""
        return self.held + self.both + max(self.forward, self.dense + self.backward)

    def text(self) -> str:
        """One line."""
        wide = max(self.forward, self.dense)
        parts = {"weights and optimiser": self.held, "gradients": self.backward, "pre-activations": wide}
        listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        return f"peak {self.peak / 2**30:.2f} GiB ({listed}, activations {self.both / 2**30:.2f})"


def memory_of(config: TrainConfig, shape: SAEConfig) -> Memory:
    """What training `shape` by `config` takes; for penalised architectures, at a dense start."""
    config = config.filled(shape)
    n, d, out, f = config.batch_size, shape.d_in, shape.width_out, shape.d_sae
    parameters = sum(map(math.prod, shape.shapes().values()))
    low = config.compute == "bfloat16"
    chunk = min(n, max(1, CHUNK // f)) * f
    codes = n * max(config.k_start or 0, config.k)
    choosing = chunk * 3 // 2 + 160 * codes if config.architecture in BATCHED else 0
    return Memory(
        held=12 * parameters,
        forward=(2 if low else 4) * chunk + (2 * d * f if low else 0) + choosing,
        backward=4 * parameters + (4 * max(d, out) * f if config.aux_weight else 0),
        both=(20 if config.aux_weight else 8) * n * (d + out)
        + 16 * n * out * (len(config.groups or (1,)) - 1)
        + 100 * codes,
        dense=_DENSE.get(config.architecture, 0) * n * f,
    )

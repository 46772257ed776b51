"""How much memory a training run takes, before it starts: stated by formula, checked against measurement.

With P parameters (d f + f d_out, biases, thresholds), batches of n tokens, k active features, all in bytes:

    held       12 P                    float32 weights and Adam's two moments
    forward    4 c f                   pre-activations of c tokens at a time, c f <= max(f, 2^24) (2 c f in bfloat16,
                                       and then 2 d f for the encoder's copy)
    backward   4 P + 4 max(d, d_out) f gradients; while dead features are revived, one gradient twice
    both       about 32 n (d + d_out) + 100 n k      activations, errors, their gradients; codes and their index
    dense      about 28 n f            for standard, gated and jumprelu while they treat all features as active

    peak = held + both + max(forward, backward)      (+ dense, where it applies)

The topk family never holds a matrix of n f beyond the c f pre-activations. A checkpoint and the end of the run need
less than a step.
"""

import math
from dataclasses import dataclass

from midlens_kernels import CHUNK

from saes.config import SAEConfig
from saes.recipe import PENALISED, TrainConfig


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
        return self.held + self.both + self.dense + max(self.forward, self.backward)

    def text(self) -> str:
        """One line."""
        parts = {"weights and optimiser": self.held, "gradients": self.backward, "pre-activations": self.forward}
        listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        return f"peak {self.peak / 2**30:.2f} GiB ({listed}, activations {(self.both + self.dense) / 2**30:.2f})"


def memory_of(config: TrainConfig, shape: SAEConfig) -> Memory:
    """What training `shape` by `config` takes; for penalised architectures, at a dense start."""
    config = config.filled(shape)
    n, d, out, f = config.batch_size, shape.d_in, shape.width_out, shape.d_sae
    parameters = sum(map(math.prod, shape.shapes().values()))
    low = config.compute == "bfloat16"
    chunk = min(n, max(1, CHUNK // f)) * f
    active = max(config.k_start or 0, config.k)
    return Memory(
        held=12 * parameters,
        forward=(2 if low else 4) * chunk + (2 * d * f if low else 0),
        backward=4 * parameters + (4 * max(d, out) * f if config.aux_weight else 0),
        both=32 * n * (d + out) + 100 * n * active,
        dense=28 * n * f if config.architecture in PENALISED else 0,
    )

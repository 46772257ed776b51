"""The sparse autoencoder, and its folder in the SAELens v6 format (`cfg.json` + `sae_weights.safetensors`).

    codes = rule((x - b_dec) W_enc + b_enc)            k of f entries are active
    x^    = sum_j values[j] W_dec[indices[j]] + b_dec

`x` is `n d`, `W_enc` is `d f`, `W_dec` is `f d`. The encoder is stored with features as rows (`encoder`, `f d`;
`W_enc` is its transpose, sharing memory): its gradient and that of `x` then read and write contiguous rows. TopK: Gao
et al. 2024, https://arxiv.org/abs/2406.04093.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from midlens_kernels import topk_decode
from torch import Tensor, nn

from interp.errors import InputError
from interp.sealing import read_json, write_json
from interp.tensorfile import read_tensors, write_tensors
from saes.activations import TopK
from saes.codes import Codes
from saes.config import SAEConfig as SAEConfig

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


class SAE(nn.Module):
    """A sparse autoencoder; made with zero weights, see `saes.init` for a start and `SAE.load` for a trained one."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        dtype = getattr(torch, config.dtype)
        self.encoder = nn.Parameter(torch.zeros(config.d_sae, config.d_in, dtype=dtype))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae, dtype=dtype))
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, config.d_in, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in, dtype=dtype))
        self.rule = TopK(config.k)

    @property
    def W_enc(self) -> Float[Tensor, "d f"]:
        """The encoder's weights, a view of the stored rows."""
        return self.encoder.T

    def activate(self, x: Float[Tensor, "n d"]) -> Codes:
        """Encode with a number of entries that does not depend on the data: zeros are kept. For training."""
        if x.shape[-1] != self.config.d_in:
            where = self.config.metadata.get("hook_name")
            raise InputError(
                f"this SAE reads activations of width {self.config.d_in}{f' ({where})' if where else ''}, "
                f"got width {x.shape[-1]}: they come from another model or site"
            )
        x = x.to(self.encoder.dtype)
        return self.rule(x - self.b_dec if self.config.apply_b_dec_to_input else x, self.W_enc, self.b_enc)

    def encode(self, x: Float[Tensor, "n d"]) -> Codes:
        """The active features of each token and their activations (all > 0), in the units of x."""
        return self.activate(x).pruned()

    def decode(self, codes: Codes) -> Float[Tensor, "n d"]:
        """The reconstruction, in the SAE's own dtype."""
        return topk_decode(codes.values, codes.indices, self.W_dec, offsets=codes.offsets) + self.b_dec

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Encode and decode."""
        return self.decode(self.activate(x))

    def save(self, path: str | Path) -> None:
        """Write the folder `path`; `sae_lens` loads it as its own. `cfg.json` comes last: with it, the SAE is whole."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        weights = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        write_tensors(path / WEIGHTS, weights)
        write_json(path / CFG, self.config.to_cfg())

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "SAE":
        """Read a folder written by `save`, or by SAELens 6."""
        path = Path(path)
        cfg = read_json(path / CFG, "SAE")
        config = SAEConfig.from_cfg(cfg, str(path / CFG))
        weights = _checked(read_tensors(path / WEIGHTS, "SAE")[0], config, path / WEIGHTS)
        if cfg.get("rescale_acts_by_decoder_norm"):
            weights = fold_decoder_norm(weights)
        return cls.of_weights(config, **weights).to(device)

    @classmethod
    def of_weights(
        cls,
        config: SAEConfig,
        *,
        W_enc: Float[Tensor, "d f"],
        b_enc: Float[Tensor, " f"],
        W_dec: Float[Tensor, "f d"],
        b_dec: Float[Tensor, " d"],
    ) -> "SAE":
        """An SAE holding copies of these tensors."""
        with torch.device("meta"):
            sae = cls(config)
        state = {"encoder": W_enc.T, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        own = {
            name: tensor.detach().to(getattr(torch, config.dtype)).clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }
        sae.load_state_dict(own, assign=True)
        return sae.requires_grad_(True)


def fold_decoder_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that act alike without SAELens's `rescale_acts_by_decoder_norm`.

    Under that setting pre-activations are multiplied by their decoder row's norm before selection and the codes
    divided by it when decoding. A positive factor commutes with ReLU: the encoder takes the norm, and the rows become
    units.
    """
    norm = weights["W_dec"].norm(dim=1)
    return {
        "W_enc": weights["W_enc"] * norm,
        "b_enc": weights["b_enc"] * norm,
        "W_dec": weights["W_dec"] / norm[:, None],
        "b_dec": weights["b_dec"],
    }


def _checked(weights: dict[str, Tensor], config: SAEConfig, path: Path) -> dict[str, Any]:
    """The four tensors, after comparing names, shapes and finiteness with what the config promises."""
    d, f = config.d_in, config.d_sae
    expected = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        raise InputError(f"{path} holds {found}, but {CFG} calls for {expected}; the two files do not belong together")
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise InputError(f"{path}: {', '.join(bad)} holds NaN or infinite values; the SAE is unusable")
    return weights

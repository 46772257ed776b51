"""The sparse autoencoder, and its folder in the SAELens v6 format (`cfg.json` + `sae_weights.safetensors`).

    codes = rule((x - b_dec) W_enc + b_enc)            few of f entries are active, see `saes.activations`
    x^    = sum_j values[j] W_dec[indices[j]] + b_dec  (+ x W_skip^T)

`x` is `n d`, `W_enc` is `d f`, `W_dec` is `f d_out`. The encoder is stored with features as rows (`encoder`, `f d`;
`W_enc` is its transpose, sharing memory): its gradient and that of `x` then read and write contiguous rows. TopK: Gao
et al. 2024, https://arxiv.org/abs/2406.04093; transcoders: https://arxiv.org/abs/2406.11944 and, with skip,
https://arxiv.org/abs/2501.18823; crosscoders read and write several sites, laid side by side (`join`, `split`).
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from midlens_kernels import topk_decode
from torch import Tensor, nn

from interp.display import Shown
from interp.errors import InputError
from interp.sealing import read_json, write_json
from interp.tensorfile import read_tensors, write_tensors
from saes.activations import Gated, JumpReLU, ReLU, Rule, TopK
from saes.cfg_json import from_cfg, to_cfg
from saes.codes import Codes
from saes.config import Dtype
from saes.config import SAEConfig as SAEConfig

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_DTYPES = tuple(getattr(torch, name) for name in get_args(Dtype))


class SAE(Shown, nn.Module):
    """A sparse autoencoder; made with zero weights, see `saes.init` for a start and `SAE.load` for a trained one."""

    threshold: Tensor
    """Of a jumprelu SAE, `f`: a buffer, since no gradient reaches it outside training."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        f, d, out, dtype = config.d_sae, config.d_in, config.width_out, getattr(torch, config.dtype)
        self.encoder = nn.Parameter(torch.zeros(f, d, dtype=dtype))
        self.b_enc = nn.Parameter(torch.zeros(f, dtype=dtype))
        self.W_dec = nn.Parameter(torch.zeros(f, out, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(out, dtype=dtype))
        if config.architecture == "gated":
            self.r_mag = nn.Parameter(torch.zeros(f, dtype=dtype))
            self.b_mag = nn.Parameter(torch.zeros(f, dtype=dtype))
        if config.architecture == "jumprelu":
            self.register_buffer("threshold", torch.zeros(f, dtype=dtype))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(out, d, dtype=dtype))

    def _facts(self) -> dict[str, Any]:
        config = self.config
        known = {name: config.metadata.get(name) for name in ("model_name", "hook_name")}
        facts = {"architecture": config.architecture, "features": config.d_sae, "d_in": config.d_in}
        return {**facts, "k": config.k, **known, "dtype": config.dtype, "device": str(self.b_dec.device)}

    @property
    def W_enc(self) -> Float[Tensor, "d f"]:
        """The encoder's weights, a view of the stored rows."""
        return self.encoder.T

    @property
    def rule(self) -> Rule:
        """What decides which features are active."""
        match self.config.architecture:
            case "standard":
                return ReLU()
            case "topk":
                assert self.config.k is not None
                return TopK(self.config.k)
            case "jumprelu":
                return JumpReLU(self.threshold)
            case "gated":
                return Gated(self.r_mag, self.b_mag)

    def centred(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """What the encoder's weights are applied to: `x` in the SAE's dtype, without the decoder's bias."""
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"an SAE reads a torch.Tensor, got {type(x).__name__}: torch.as_tensor(x) makes one of it")
        if x.ndim != 2:
            raise InputError(
                f"an SAE reads one row per token, (tokens, {self.config.d_in}); got {tuple(x.shape)}: x.reshape(-1, "
                f"{self.config.d_in}) makes rows of it"
            )
        if x.shape[-1] != self.config.d_in:
            where = self.config.metadata.get("hook_name")
            raise InputError(
                f"this SAE reads activations of width {self.config.d_in}{f' ({where})' if where else ''}, "
                f"got width {x.shape[-1]}: they come from another model or site"
            )
        x = x.to(self.encoder.dtype)
        return x - self.b_dec if self.config.apply_b_dec_to_input else x

    def activate(self, x: Float[Tensor, "n d"]) -> Codes:
        """Encode, keeping entries of value zero: a topk SAE then has k entries for every token."""
        return self.rule(self.centred(x), self.W_enc, self.b_enc)

    def encode(self, x: Float[Tensor, "n d"]) -> Codes:
        """The active features of each token and their activations (all > 0), in the units of x."""
        return self.activate(x).pruned()

    def decode(self, codes: Codes, x: Float[Tensor, "n d"] | None = None) -> Float[Tensor, "n out"]:
        """The reconstruction, in the SAE's own dtype; with a skip connection it needs the input `x` as well."""
        if codes.n_features != self.config.d_sae:
            raise InputError(f"these codes are of {codes.n_features} features, this SAE has {self.config.d_sae}")
        y = topk_decode(codes.values, codes.indices, self.W_dec, offsets=codes.offsets) + self.b_dec
        if not self.config.skip:
            return y
        if x is None:
            raise InputError("this transcoder has a skip connection: decode(codes, x) needs its input as well")
        if len(x) != codes.n_tokens:
            raise InputError(f"codes of {codes.n_tokens} tokens with the inputs of {len(x)}: give those they come from")
        return y + x.to(y.dtype) @ self.W_skip.T

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n out"]:
        """Encode and decode."""
        return self.decode(self.activate(x), x)

    def join(self, sources: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, "n d"]:
        """Of a crosscoder: activations of its sources, in order, laid side by side as its input."""
        widths = tuple(x.shape[-1] for x in sources)
        if widths != (self.config.sources or (self.config.d_in,)):
            raise InputError(f"this crosscoder reads sources of widths {self.config.sources}, got {widths}")
        return torch.cat(list(sources), dim=-1)

    def split(self, x_hat: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n _"], ...]:
        """Of a crosscoder: a reconstruction (or decoder rows) cut into its sources."""
        return x_hat.split(list(self.config.sources or (self.config.width_out,)), dim=-1)

    def weights(self) -> dict[str, Tensor]:
        """Every tensor, under SAELens's name and in its orientation; they share this SAE's memory."""
        named = {"W_enc": self.W_enc, ("b_gate" if self.config.architecture == "gated" else "b_enc"): self.b_enc}
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        return named | {name: tensor for name, tensor in own.items() if name not in ("encoder", "b_enc")}

    def save(self, path: str | Path) -> None:
        """Write the folder `path`; `sae_lens` loads it as its own. `cfg.json` comes last: with it, the SAE is whole."""
        path = Path(path)
        dtype = str(self.W_dec.dtype).removeprefix("torch.")  # a module may have been moved to another since
        cfg = to_cfg(dataclasses.replace(self.config, dtype=dtype))  # pyright: ignore[reportArgumentType]
        check_json(cfg, "the SAE's metadata")
        path.mkdir(parents=True, exist_ok=True)
        (path / CFG).unlink(missing_ok=True)  # of an SAE that is being replaced: it must not vouch for new weights
        write_tensors(path / WEIGHTS, self.weights())
        write_json(path / CFG, cfg)

    def to_saelens(self) -> Any:
        """The same SAE as an object of `sae_lens`, its weights copied; refused where SAELens has no such kind."""
        from saes.interop.saelens import to_saelens

        return to_saelens(self)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "SAE":
        """Read a folder written by `save`, or by SAELens 6; other tools' files: `saes.interop.load_sae`."""
        path = Path(path)
        cfg = read_json(path / CFG, "SAE")
        config = from_cfg(cfg, str(path / CFG))
        _refuse_pickle(path / WEIGHTS)
        weights = checked(read_tensors(path / WEIGHTS, "SAE")[0], config, str(path / WEIGHTS))
        if cfg.get("rescale_acts_by_decoder_norm"):
            weights = fold_decoder_norm(weights)
        return cls.of_weights(config, **weights).to(device)

    @classmethod
    def of_weights(cls, config: SAEConfig, **weights: Tensor) -> "SAE":
        """An SAE holding copies of these tensors, named and oriented as `SAEConfig.shapes` says."""
        checked(weights, config, "the tensors given", finite=False)
        with torch.device("meta"):
            sae = cls(config)
        state = dict(weights) | {"encoder": weights["W_enc"].T}
        del state["W_enc"]
        if "b_gate" in state:
            state["b_enc"] = state.pop("b_gate")
        own = {
            name: tensor.detach().to(getattr(torch, config.dtype)).clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }
        sae.load_state_dict(own, assign=True)
        return sae.requires_grad_(True)


def fold_decoder_norm(weights: dict[str, Tensor], norm: Float[Tensor, " f"] | None = None) -> dict[str, Tensor]:
    """Weights that act alike with decoder rows divided by `norm` (their own norms by default).

    Codes are multiplied by it: encoder, biases and thresholds take the factor, and a selection among pre-activations
    becomes one among pre-activations times norm, which is what SAELens's `rescale_acts_by_decoder_norm` selects by.
    A positive factor commutes with ReLU. A row of norm zero is left as it is.
    """
    norm = weights["W_dec"].norm(dim=1) if norm is None else norm
    norm = torch.where(norm > 0, norm, 1)
    scaled = {
        name: weights[name] * norm for name in ("W_enc", "b_enc", "b_gate", "b_mag", "threshold") if name in weights
    }
    return {**weights, **scaled, "W_dec": weights["W_dec"] / norm[:, None]}


def check_json(value: Any, what: str) -> None:
    """Refuse what a JSON file cannot hold, before anything is written."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} cannot be written as JSON ({error}); give strings, finite numbers, lists, dicts"
        ) from None


def checked(weights: dict[str, Tensor], config: SAEConfig, source: str, *, finite: bool = True) -> dict[str, Any]:
    """The tensors, after comparing names and shapes with what the config promises, and looking at their values."""
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != (expected := config.shapes()):
        raise InputError(f"{source} holds {found}, but {CFG} calls for {expected}; the two do not belong together")
    if bad := [f"{name} in {tensor.dtype}" for name, tensor in weights.items() if tensor.dtype not in _DTYPES]:
        raise InputError(f"{source} holds {', '.join(bad)}; expected float32, float64, bfloat16 or float16")
    if config.architecture == "jumprelu" and not bool((sound := weights["threshold"] >= 0).all()):
        raise InputError(
            f"{source}: {int((~sound).sum())} of {len(sound)} thresholds are negative or NaN; JumpReLU needs "
            "thresholds of at least 0 (a log_threshold must be exponentiated first)"
        )
    dtype = getattr(torch, config.dtype)
    if finite and (bad := [name for name, tensor in weights.items() if not all_finite(tensor.to(dtype))]):
        raise InputError(
            f"{source}: {', '.join(bad)} holds NaN or infinite values in {config.dtype}; the SAE is unusable"
        )
    return weights


def _refuse_pickle(path: Path) -> None:
    """Say so where a file is a pickle under another name, instead of calling it damaged."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise InputError(
            f"{path} is a pickle, expected safetensors; a pickle can run any program hidden in it. If you trust "
            "whoever made it: saes.interop.load_sae(path, trust_pickle=True)"
        )


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, by the sum: one pass and no mask, and neither of them gets lost in it."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())  # the sum of finite values may overflow

"""`TrainConfig`: the recipe of a training run. Everything that decides the result stands here.

One flat record for every architecture. A setting that only some architectures have is None until given; given to
another architecture it is refused, since it would be silently without effect. `filled` puts in what the architecture
uses by default.

Losses are fractions of the variance of the activations (`saes.losses`), so that coefficients carry over between models.
Lengths (`bandwidth`, `threshold`, and the inverse length `tanh_scale`) are stated for activations of mean norm sqrt(d),
whatever `input_norm` is: `saes.frame` converts them. To convert from papers: a bandwidth of 0.001 at unit mean square
norm (Gemma Scope) is 0.001 sqrt(d) here; an L1 coefficient c on summed squared error at norm sqrt(d) (SAELens) is about
c / sqrt(d) here; an L0 coefficient at unit mean square norm is the same here.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from interp.errors import InputError
from interp.typed import check_fields
from saes.config import SAEConfig
from saes.schedules import Schedules

Training = Literal["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard", "gated"]
Start = Literal["geometric_median", "mean", "zeros"]
InputNorm = Literal["sqrt_d", "unit_ms", "none"]
DecoderNorm = Literal["unit", "weighted", "free"]
Penalty = Literal["target", "step", "tanh"]
Compute = Literal["float32", "bfloat16"]

SELECTING = ("topk", "batchtopk", "matryoshka_batchtopk")
BATCHED = ("batchtopk", "matryoshka_batchtopk")
PENALISED = ("jumprelu", "standard", "gated")
# Who has a setting, and its default there.
_SPECIFIC: dict[str, tuple[tuple[str, ...], Any]] = {
    "k_start": (SELECTING, None),
    "k_anneal": (SELECTING, 0.1),
    "groups": (("matryoshka_batchtopk",), (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)),
    "threshold_momentum": (BATCHED, 0.99),
    "mean_read": ((*SELECTING, "jumprelu"), None),
    "sparsity": (PENALISED, {"jumprelu": 1.0, "standard": 0.1, "gated": 0.1}),
    "sparsity_warmup": (PENALISED, 0.1),
    "start_l0": (PENALISED, None),
    "p_end": (("standard",), 1.0),
    "p_start": (("standard",), 0.2),
    "p_steps": (("standard",), 10),
    "penalty": (("jumprelu",), "target"),
    "bandwidth": (("jumprelu",), None),
    "threshold": (("jumprelu",), None),
    "threshold_rate": (("jumprelu",), None),
    "tanh_scale": (("jumprelu",), None),
    "pre_act": (("jumprelu",), None),
}


def uses(name: str, architecture: str, penalty: str | None = None) -> bool:
    """Whether a setting of `TrainConfig` has an effect when this architecture is trained (jumprelu: with `penalty`)."""
    if name == "k":
        return architecture in SELECTING or (architecture == "jumprelu" and penalty in (None, "target"))
    if name in ("tanh_scale", "pre_act"):
        return architecture == "jumprelu" and penalty == "tanh"
    return name not in _SPECIFIC or architecture in _SPECIFIC[name][0]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Schedules):
    """How to train an SAE. Defaults of topk: from 200,000 activations of SmolLM2-135M, layer 15, width 4608."""

    architecture: Training = "topk"
    """What is trained; batchtopk and matryoshka_batchtopk are saved as jumprelu, with a learnt threshold."""
    d_sae: int | None = None
    """Number of features; by default `expansion` times the width of the activations."""
    expansion: int = 8
    """Features per dimension, where `d_sae` is not given."""
    k: int = 32
    """Active features per token: exactly (topk), on average (batchtopk), or aimed at (jumprelu's `target` penalty).
    Without effect elsewhere, and since it has a value everywhere, it is not refused there."""
    k_start: int | None = None
    """Active features per token in the first step (topk family), falling linearly to k; by default k itself. Llama
    Scope: the width of the activations."""
    k_anneal: float | None = None
    """Part of the steps over which k falls (topk family; 0.1)."""
    groups: tuple[float, ...] | None = None
    """Nested dictionaries (matryoshka_batchtopk): parts of the features that each level adds, 1 in all."""
    threshold_momentum: float | None = None
    """Of the running mean that becomes the threshold (batchtopk, matryoshka_batchtopk; 0.99); less in runs of under
    1,000 steps, 1 - 10 / steps, so that the first batches are forgotten."""
    sparsity: float | None = None
    """Coefficient of the sparsity penalty (standard, gated, jumprelu)."""
    sparsity_warmup: float | None = None
    """Part of the steps over which `sparsity` rises linearly from 0."""
    start_l0: float | None = None
    """Active features per token before the first step (standard, gated: through the biases; jumprelu: through the
    thresholds). By default 2 k where jumprelu aims at k (thresholds move by about their learning rate a step, and
    would not arrive in a short run), 128 or a quarter of the features, if that is less, for standard and gated (from
    half of the features they would not arrive either); elsewhere whatever the start gives, about half of them."""
    p_end: float | None = None
    """Exponent of the penalty at the end (standard): below 1, p-annealing from 1 in `p_steps` equal steps."""
    p_start: float | None = None
    """Part of the run before p-annealing begins (0.2)."""
    p_steps: int | None = None
    """Steps of p-annealing (10)."""
    penalty: Penalty | None = None
    """jumprelu: `target`: sparsity (L0 / k - 1)^2; `step`: sparsity L0; `tanh`: sparsity sum tanh(tanh_scale f), whose
    straight-through gradients reach all parameters."""
    bandwidth: float | None = None
    """jumprelu: width of the straight-through window; by default 1 for `target`, 2 for `tanh`, 0.001 sqrt(d) for `step`
    (Gemma Scope; with so narrow a window few entries of a batch move a threshold, which takes billions of tokens)."""
    threshold: float | None = None
    """jumprelu: the thresholds' start, and their least where `start_l0` sets it; by default 0.1, for `step` the
    bandwidth."""
    threshold_rate: float | None = None
    """jumprelu: learning rate of the (logarithms of the) thresholds, as a multiple of the others'; 5 for `target`,
    which has to bring them to where k features fire, else 1."""
    tanh_scale: float | None = None
    """jumprelu, `tanh` (4)."""
    pre_act: float | None = None
    """jumprelu, `tanh`: coefficient that pulls dead features towards their threshold (3e-6 / sqrt(d))."""
    epochs: float = 8.0
    """Passes over the store, where `tokens` is not given."""
    tokens: int | None = None
    """Activations to train on, repeats counted."""
    batch_size: int = 1024
    """Activations per step."""
    lr: float | None = None
    """Peak learning rate of Adam; by default 1.6e-3 / sqrt(d_sae / 2^14), in jumprelu 2.4e-3 / (d_sae / 2^14)^(1/4)."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of Adam; 0.999 for the second looks back further than a short run is long. Gemma Scope: 0 and 0.999."""
    warmup: float = 0.05
    """Part of the steps over which the learning rate rises linearly from 0."""
    decay: float = 0.2
    """Last part of the steps, over which it falls linearly to 0."""
    clip: float = 0.03
    """Largest norm of the gradient; the loss is a fraction of the variance. So small that every step counts alike: else
    batches with a few rows of large norm lead."""
    aux_weight: float | None = None
    """Weight of the auxiliary loss that revives dead features; 0 leaves it out. By default 0.2 in the topk family and
    in jumprelu that aims at k (with 1/32, as in Gao et al., many more stay dead in short runs), else 0."""
    k_aux: int | None = None
    """Dead features per token in the auxiliary loss; by default half the width of the activations."""
    dead_after_tokens: int | None = None
    """A feature that has not fired for this many tokens counts as dead; by default 10 million, or a sixteenth of the
    run if that is less."""
    b_dec: Start = "geometric_median"
    """Where the decoder's bias starts."""
    mean_read: float | None = None
    """Part of the decoder's bias, which is about the mean of the activations, that the encoder reads with them (topk
    family, jumprelu): 0 is x - b_dec, 1 is x. By default 0.5, 0 in crosscoders; transcoders read x. Encoders learn
    quickly how to answer what all rows share: fewer features die, and a threshold then holds for rows of several times
    the usual norm, which else fire thousands of features. At 1 many die."""
    decoder_norm: DecoderNorm | None = None
    """`unit`: rows of norm 1 throughout; `weighted`: free rows, their norm counted in selection and penalty and folded
    away at the end; `free`: free rows, norm counted in the penalty only. By default `weighted` in the topk family and
    for crosscoders, `free` for (other) transcoders, else `unit`."""
    decoder_init_norm: float | None = None
    """Norm of the decoder's first rows, and of the encoder's, which are the same (in a transcoder those have norm 1).
    By default 0.1 in the topk family's weighted autoencoders: features that begin small are turned by the first steps
    towards what they read; 0.01 in weighted transcoders and 0 in free ones; else 1."""
    skip: bool = False
    """Of a transcoder: whether it has a linear map from input to output beside the features."""
    input_norm: InputNorm = "sqrt_d"
    """Scale of the activations in training: mean norm sqrt(d), mean square norm 1, or as they are. Adam moves biases
    by the learning rate whatever their scale, so this is no mere change of units."""
    compute: Compute = "float32"
    """Precision of the encoder's dense product; weights, gradients and all else stay in float32."""
    massive: float = 10.0
    """Rows whose norm exceeds this many times the median are kept out of training and counted."""
    sample: int = 16_384
    """Activations, the first of the run's own order, that give scale, median norm and the start of b_dec."""
    seed: int = 0
    log_every: int = 10
    """Steps between lines of metrics and renewals of the list of dead features."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_specific()
        for name in ("expansion", "k", "batch_size", "sample", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        positive = "d_sae epochs clip massive lr tokens k_aux k_start dead_after_tokens p_end p_steps bandwidth"
        for name in (*positive.split(), "threshold", "tanh_scale", "start_l0", "threshold_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name} must be positive, got {value}")
        for name in ("warmup", "decay", "k_anneal", "sparsity_warmup", "p_start", "threshold_momentum", "mean_read"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is a part, between 0 and 1, got {value}")
        for name in ("aux_weight", "sparsity", "pre_act", "decoder_init_norm"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise InputError(f"{name} must not be negative, got {value}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas are two parts, at least 0 and below 1, got {self.betas}")
        if self.p_start == 1:
            raise InputError("p_start=1.0 leaves no steps to p-annealing, which follows this part of the run; lower it")
        if self.p_end is not None and self.p_end > 1:
            raise InputError(f"p_end, the penalty's last exponent, lies above 0 and is at most 1, got {self.p_end}")
        if self.groups is not None and not (self.groups and min(self.groups) > 0 and abs(sum(self.groups) - 1) < 1e-6):
            raise InputError(f"groups are parts of the features: positive, 1 in all; got {self.groups}")

    def _check_specific(self) -> None:
        for name, (having, _) in _SPECIFIC.items():
            if getattr(self, name) is not None and self.architecture not in having:
                raise InputError(
                    f"{name}={getattr(self, name)} was given, but it is a setting of {', '.join(having)}; "
                    f"training {self.architecture} would ignore it"
                )
        if self.penalty in ("step", "tanh") and self.sparsity is None:
            raise InputError(
                f"penalty={self.penalty!r} needs sparsity: how much one active feature may cost, as a fraction of the "
                "variance. Gemma Scope's coefficients for `step` are around 6e-4; `target` needs none, it aims at k"
            )
        if self.penalty != "tanh" and (self.tanh_scale is not None or self.pre_act is not None):
            raise InputError(f"tanh_scale and pre_act belong to penalty='tanh', not to {self.penalty or 'target'!r}")

    def filled(self, shape: SAEConfig) -> "TrainConfig":
        """With the defaults put in that depend on the architecture and on what is trained."""
        values: dict[str, Any] = {}
        for name, (having, default) in _SPECIFIC.items():
            if self.architecture in having and getattr(self, name) is None:
                values[name] = default[self.architecture] if isinstance(default, dict) else default
        if self.architecture in SELECTING:
            values["k_start"] = self.k_start or self.k
        if uses("mean_read", self.architecture):
            values["mean_read"] = None if shape.is_transcoder else self._mean_read(shape.sources)
        if self.architecture == "jumprelu":
            penalty, root = values.get("penalty", self.penalty), math.sqrt(shape.d_in)
            tanh, aims = penalty == "tanh", penalty == "target"
            bandwidth = self.bandwidth or (1.0 if aims else 2.0 if tanh else 0.001 * root)
            values["bandwidth"] = bandwidth
            values["threshold"] = self.threshold or (0.1 if aims or tanh else bandwidth)
            values["threshold_rate"] = self.threshold_rate or (5.0 if aims else 1.0)
            if self.start_l0 is None and aims and 2 * self.k < shape.d_sae:
                values["start_l0"] = 2.0 * self.k
            if tanh:
                values["tanh_scale"] = self.tanh_scale or 4.0
                values["pre_act"] = 3e-6 / root if self.pre_act is None else self.pre_act
        if self.architecture in ("standard", "gated") and self.start_l0 is None and shape.d_sae > 1:
            values["start_l0"] = min(128.0, shape.d_sae / 4)
        if self.aux_weight is None:
            revives = self.architecture in SELECTING or values.get("penalty", self.penalty) == "target"
            values["aux_weight"] = 0.2 if revives else 0.0
        values |= self._decoder(shape)
        values["lr"] = self.lr or self.usual_rate(shape.d_sae)
        values["k_aux"] = self.k_aux or max(1, shape.d_in // 2)
        return dataclasses.replace(self, **values)

    def _decoder(self, shape: SAEConfig) -> dict[str, Any]:
        """How its rows are treated, and how long they are at the start."""
        ranked, norm = self.architecture in SELECTING, self.decoder_norm
        if norm is None:
            norm = "free" if shape.is_transcoder else "weighted" if shape.sources or ranked else "unit"
        weighted = norm == "weighted"
        if shape.is_transcoder:  # rows of norm 0 could not be ranked
            first = 0.01 if weighted else 0.0
        else:
            first = 0.1 if weighted and ranked else 1.0
        if self.decoder_init_norm is not None:
            first = self.decoder_init_norm
        if norm == "unit" and first != 1:
            raise InputError(f"decoder_norm='unit' keeps rows at norm 1; decoder_init_norm={first} contradicts it")
        return {"decoder_norm": norm, "decoder_init_norm": first}

    def _mean_read(self, sources: tuple[int, ...]) -> float:
        usual = 0.5 if uses("mean_read", self.architecture) and not sources else 0.0
        return usual if self.mean_read is None else self.mean_read

    def shape(self, d_in: int, *, d_out: int | None = None, sources: tuple[int, ...] = ()) -> SAEConfig:
        """What is trained, while it is trained: by rank like topk, else under the architecture's own name."""
        if self.skip and d_out is None:
            raise InputError("skip=True, but no second site was given: only a transcoder has a skip connection")
        if self.decoder_norm == "unit" and d_out is not None:
            raise InputError(
                "decoder_norm='unit' was given for a transcoder. Its decoder starts without knowing its encoder; "
                "long rows do harm, and training silences their features. Give 'free' (the default) or 'weighted'"
            )
        if self.mean_read is not None and d_out is not None:
            raise InputError(
                f"mean_read={self.mean_read} was given for a transcoder, which reads activations as they are: its "
                "decoder's bias belongs to another site. Leave it out"
            )
        base = "topk" if self.architecture in SELECTING else self.architecture
        if self.architecture == "jumprelu" and self.penalty in (None, "target") and self.k > self.width(d_in):
            raise InputError(f"the penalty aims at k={self.k} active ones of {self.width(d_in)} features; lower k")
        return SAEConfig(
            d_in=d_in,
            d_sae=self.width(d_in),
            architecture=base,
            k=self.k if base == "topk" else None,
            d_out=d_out,
            skip=self.skip,
            sources=sources,
            apply_b_dec_to_input=d_out is None and not self._mean_read(sources),
        )

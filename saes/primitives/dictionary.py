"""The dictionary of a run: an SAE by folder, preset or hub name, what steering must know of it, an untrained twin.

    sae = given_sae("llama_scope:l15r_32x", model, site)      # SAELens's spelling of a preset's name is understood
    facts = site_facts(model, sae, texts, site)               # mean norm, active features, firing rates, on plain text
    twin = untrained_like(sae, l0=facts.l0)                   # same shape and sparsity, random rows

`untrained_like` has unit rows drawn at random, the same tensor as encoder and as decoder, the trained SAE's centre, and
as many active features a token: what a rule finds in it, it finds without anything having been learnt.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.chat import to_tokens
from interp.errors import InputError
from interp.model import HookedModel
from interp.sealing import read_json
from interp.sites import Site
from interp.tensorfile import read_tensors, write_tensors
from interp.typed import fits
from saes.belongs import check_belongs, places_of
from saes.cfg_json import from_cfg
from saes.config import SAEConfig
from saes.interop import load_sae
from saes.presets import SAE_PRESETS, SAEPreset
from saes.sae import SAE

ALIASES: dict[str, str] = {
    **{f"{release}:l15r_32x": "llama-scope-l15r-32x" for release in ("llama_scope", "llama_scope_lxr_32x")},
    **{
        f"{release}:layer_20/width_131k/average_l0_81": "gemma-scope-9b-it-l20-131k"
        for release in ("gemma_scope", "gemma-scope-9b-it-res")
    },
}
"""SAELens's `release:id` for the presets, and the short forms of the releases' names."""
MASSIVE = 10.0
"""Rows longer than this many times the median are left out, as in training."""


def sae_preset(name: str) -> SAEPreset | None:
    """The preset that a name or alias stands for; an unknown id of a known release is refused with what there is."""
    if (found := ALIASES.get(name, name)) in SAE_PRESETS:
        return SAE_PRESETS[found]
    release = name.partition(":")[0]
    known = [alias for alias in ALIASES if alias.partition(":")[0] == release]
    if known and ":" in name:
        raise InputError(f"there is no preset for {name!r}; of {release} there is {', '.join(known)}")
    return None


class Outlined(NamedTuple):
    """What is known of an SAE without its weights."""

    name: str
    config: SAEConfig | None
    """None for a preset that is not here."""
    d_in: int
    d_sae: int
    site: Site | None
    l0: float | None


def sae_outline(name: str) -> Outlined | None:
    """Of a preset, or of a local folder with a `cfg.json`; None of anything else."""
    if (preset := sae_preset(name)) is not None:
        return Outlined(preset.name, None, preset.d_in, preset.d_sae, preset.site, preset.l0)
    path = Path(name) / "cfg.json"
    if not (path.is_file() and (path.parent / "sae_weights.safetensors").is_file()):
        return None
    config = from_cfg(read_json(path, "SAE"), str(path))
    known = config.metadata.get("hook_name")
    return Outlined(name, config, config.d_in, config.d_sae, Site.parse(known) if known else None, config.k)


def check_outline(found: Outlined, model: str, d: int, *, site: str | None, force: bool = False) -> None:
    """Refuse an SAE of another width, and as far as its files say, of another site or, without `force`, model."""
    _check_width(found.name, found.d_in, model, d)
    if found.config is not None:
        with torch.device("meta"):
            sae = SAE(found.config)
        check_belongs(sae, model=None if force else model)
        _check_site(found.name, sae, site)


def given_sae(name: str, model: HookedModel, site: Site | None, *, force: bool = False) -> SAE:
    """Load an SAE and refuse it unless it belongs to the model, at the site (by default the SAE's own). `force`
    overlooks the model's name."""
    preset = sae_preset(name)
    sae = load_sae(preset.name if preset else name, device=model.device)
    if sae.config.is_transcoder or sae.config.sources:
        raise InputError(
            f"the SAE {name} is a transcoder or crosscoder; primitives are looked for in an SAE that writes where it "
            "reads: give one of a residual stream"
        )
    _check_width(name, sae.config.d_in, model.name, model.cfg.d_model)
    check_belongs(sae, model=None if force else model)
    _check_site(name, sae, site)
    return sae


def sampled_digest(sae: SAE) -> str:
    """sha256 of the shapes and of at most 4096 values, at even distances, of every tensor: it tells SAEs apart, cheaply
    at full size."""
    sha = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        flat = tensor.detach().flatten()
        at = torch.linspace(0, max(0, flat.numel() - 1), min(4096, flat.numel()), dtype=torch.float64).long()
        sha.update(f"{name}|{tuple(tensor.shape)}|".encode() + flat[at.to(flat.device)].float().cpu().numpy().tobytes())
    return sha.hexdigest()


def _check_width(name: str, d: int, model: str, width: int) -> None:
    if d != width:
        raise InputError(
            f"the SAE {name} reads activations of width {d}, {model} has width {width}. Give an SAE that was trained "
            "on this model, or the model it was made for"
        )


def _check_site(name: str, sae: SAE, site: Site | str | None) -> None:
    """There is no way to insist: its recipes would be refused at the other site by all that steers with them."""
    own = sae.config.metadata.get("hook_name")
    try:
        check_belongs(sae, site=places_of(sae, site=site).reads)
    except InputError as error:
        if not own or site is None:
            raise
        raise InputError(
            f"the SAE {name} was made for the site {own}, and is asked to work on {Site.parse(site)}. Leave the site "
            "out (--site), or give an SAE of that site"
        ) from error


@dataclass(frozen=True)
class SiteFacts:
    """Of ordinary tokens of plain text, at the site."""

    mean_norm: float
    l0: float
    """Mean number of active features."""
    n_tokens: int
    density: Float[Tensor, " f"]
    """How often each feature fires, per token."""

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        facts = {"mean_norm": self.mean_norm, "l0": self.l0, "n_tokens": self.n_tokens}
        write_tensors(path, {"density": self.density}, facts)

    @classmethod
    def load(cls, path: Path) -> "SiteFacts":
        """What `save` wrote."""
        tensors, facts = read_tensors(path, "file of facts about a site")
        kinds = {"mean_norm": float, "l0": float, "n_tokens": int}
        known = isinstance(facts, dict) and facts.keys() == kinds.keys() and tensors.keys() == {"density"}
        if not known or not all(fits(facts[name], kind) and facts[name] >= 0 for name, kind in kinds.items()):
            raise InputError(f"{path} is damaged: it does not hold the facts of a site; remove it")
        if tensors["density"].ndim != 1 or not tensors["density"].is_floating_point():
            raise InputError(f"{path} is damaged: its density is no number for each feature; remove it")
        return cls(facts["mean_norm"], facts["l0"], facts["n_tokens"], tensors["density"])


@torch.no_grad()
def site_facts(
    model: HookedModel, sae: SAE, texts: Sequence[str], site: Site, *, max_length: int = 128, batch: int = 16
) -> SiteFacts:
    """Norms and firing of all but first, special and massive tokens."""
    if not texts:
        raise InputError("the facts of a site need one text or more")
    bos = bool(model.preset and model.preset.prepend_bos)
    special = torch.tensor(model.tokenizer.all_special_ids)
    parts = []
    for start in range(0, len(texts), batch):
        coded = to_tokens(model.tokenizer, list(texts[start : start + batch]), prepend_bos=bos)
        lengths = coded.lengths.clamp(max=max_length)
        tokens = coded.tokens[:, : int(lengths.max())]
        place = torch.arange(tokens.shape[1])
        kept = (place > 0) & (place < lengths[:, None]) & ~torch.isin(tokens, special.to(tokens.dtype))
        found = model.capture(tokens.to(model.device), [site], lengths=lengths.to(model.device))[site]
        parts.append(found[kept.to(model.device)].float())
    x = torch.cat(parts)
    norms = x.norm(dim=1)
    if len(x) == 0 or not bool(norms.isfinite().all()):
        raise InputError(f"{len(x)} ordinary tokens at {site}, all finite: {bool(norms.isfinite().all())}; expected "
                         "some, all of them finite")  # fmt: skip
    x = x[norms <= MASSIVE * norms.median()]
    counts = torch.zeros(sae.config.d_sae)
    for rows in x.split(1_024):
        counts += torch.bincount(sae.encode(rows).indices.cpu(), minlength=sae.config.d_sae)
    n = len(x)
    return SiteFacts(float(x.norm(dim=1).double().mean()), float(counts.sum()) / n, n, counts / n)


def untrained_like(sae: SAE, *, l0: float, seed: int = 0) -> SAE:
    """An SAE of the same shape that has learnt nothing; see the module's docstring."""
    config = sae.config
    known = {key: config.metadata[key] for key in ("model_name", "hook_name") if key in config.metadata}
    shape = SAEConfig(
        d_in=config.d_in,
        d_sae=config.d_sae,
        architecture="topk",
        k=min(config.d_sae, max(1, round(l0))),
        metadata=known,
    )
    with torch.device("meta"):
        twin = SAE(shape)
    twin = twin.to_empty(device="cpu")
    with torch.no_grad():
        twin.b_enc.zero_()
        twin.b_dec.copy_(sae.b_dec)
        rows = twin.W_dec.normal_(generator=torch.Generator().manual_seed(seed))
        rows /= rows.norm(dim=1, keepdim=True)
    twin.encoder = twin.W_dec
    return twin.to(sae.b_dec.device)

"""Where an SAE belongs: the sites it reads and writes, the limits of massive norms, and a refusal of anything else.

An SAE's metadata says what it was made for, under SAELens's names: `model_name`, `hook_name`, for a transcoder
`hook_name_out`, for a crosscoder `hook_names`. What it does not say cannot be checked and passes. A preset's SAE may
say of a second model that it is used on it (`saes.presets.USED_ON`): Llama Scope's, trained on the base model, is read
on the chat model.

Compared are names, not contents: models by the last part of their path without case, so that a preset, a hub id and
a local copy are the same; sites as tensors, so that `resid_pre.15` is `resid_post.14`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from interp.errors import InputError
from interp.model import HookedModel
from interp.presets import PRESETS
from interp.sites import Point, Site
from saes.paired import ModelSite, parse_places
from saes.presets import USED_ON
from saes.sae import SAE

PAIRED = "its rows are measured with saes.row_quality.measure_rows, on a saes.paired.PairedRows of both stores"
_ALIASES = {"gpt2-small": "gpt2"}  # TransformerLens's name, which SAELens's files carry


class Places(NamedTuple):
    """The sites whose rows, laid side by side, an SAE reads, and those it writes; of one model, unless said."""

    reads: tuple[Any, ...]
    writes: tuple[Any, ...]

    @property
    def sites(self) -> tuple[Any, ...]:
        """Every site once, those read first."""
        return tuple(dict.fromkeys((*self.reads, *self.writes)))


def places_of(
    sae: SAE, *, site: Any | Sequence[Any] | None = None, site_out: Site | str | None = None, paired: bool = False
) -> Places:
    """The sites of an SAE: as given, else from its metadata. `site` is a list for a crosscoder.

    With `paired` they may be `saes.paired.ModelSite`s, of a crosscoder over two models.
    """
    known = sae.config.metadata
    site = site or known.get("hook_names") or known.get("hook_name")
    if not site:
        raise InputError("the SAE does not say which site it belongs to: name it")
    reads = tuple(parse_places(site))
    if not paired and (of_models := [str(place) for place in reads if isinstance(place, ModelSite)]):
        raise InputError(
            f"the SAE reads two models ({', '.join(of_models)}), and here one model runs or is read: {PAIRED}"
        )
    if not sae.config.is_transcoder:
        if site_out is not None:
            raise InputError(
                f"site_out={site_out} was given, but this SAE writes where it reads; only transcoders do not"
            )
        return Places(reads, reads)
    site_out = site_out or known.get("hook_name_out")
    if site_out is None:
        raise InputError("the transcoder does not say which site it writes: name it (site_out)")
    return Places(reads, (Site.parse(site_out),))


def limits_of(sae: SAE, sites: Sequence[Any]) -> dict[Any, float] | None:
    """The norm above which training left rows out, per site; None where the metadata has no such limit.

    `massive_norm_threshold` is one number, or one for each site read and then the one written.
    """
    known: Any = sae.config.metadata.get("massive_norm_threshold")
    if known is None:
        return None
    found = [float(value) for value in known] if isinstance(known, Sequence) else [float(known)]
    own = _own_sites(sae)
    if len(own) == len(found) and all(site in own for site in sites):
        return {site: found[own.index(site)] for site in sites}
    if len(found) != len(sites):
        raise InputError(
            f"the SAE's massive_norm_threshold is {known!r}, expected a number for each of {', '.join(map(str, sites))}"
        )
    return dict(zip(sites, found, strict=True))


def _own_sites(sae: SAE) -> list[Any]:
    """Sites read and written, as far as the metadata names them in this program's words."""
    known = sae.config.metadata
    names = [*(known.get("hook_names") or [known.get("hook_name")]), known.get("hook_name_out")]
    try:
        return list(parse_places([name for name in names if name]))
    except InputError:
        return []


def check_belongs(
    sae: SAE,
    *,
    model: HookedModel | str | None = None,
    site: Any | Sequence[Any] | None = None,
    site_out: Site | str | None = None,
    d: int | None = None,
    d_out: int | None = None,
    force: bool = False,
) -> None:
    """Refuse an SAE made for another model, site or width than those given; `force` overlooks all but the width."""
    if d is not None and d != sae.config.d_in:
        raise InputError(f"the SAE reads activations of width {sae.config.d_in}, these have width {d}: not its site")
    if d_out is not None and d_out != sae.W_dec.shape[1]:
        raise InputError(f"the SAE writes activations of width {sae.W_dec.shape[1]}, these have width {d_out}")
    if force:
        return
    known = sae.config.metadata
    made, used_on = known.get("model_name"), known.get(USED_ON)
    fits = used_on and not other_model(str(used_on), model)
    if made and not fits and other_model(str(made), model):
        _refuse("model", str(made), str(_name(model)))
    for given, key in ((site, "hook_name"), (site_out, "hook_name_out")):
        own = known.get("hook_names") if key == "hook_name" and known.get("hook_names") else known.get(key)
        if given and own and (a := _same_sites(own)) != (b := _same_sites(given)):
            _refuse("site", ", ".join(a), ", ".join(b))


def check_comparable(sae: SAE, other: SAE, *, name: str, force: bool = False) -> None:
    """Refuse to compare an SAE with one (called `name`) that writes another width, model or site; `force` overlooks
    all but the width."""
    if other.W_dec.shape[1] != sae.W_dec.shape[1]:
        raise InputError(
            f"{name} writes width {other.W_dec.shape[1]}, this SAE width {sae.W_dec.shape[1]}: "
            "only SAEs of one site can be compared"
        )
    if force:
        return
    own, its = sae.config.metadata, other.config.metadata
    models = own.get("model_name"), its.get("model_name")
    if all(models) and other_model(*map(str, models)):
        _not_comparable(name, "model", *models)
    written = [
        known.get("hook_name_out") if one.config.is_transcoder else known.get("hook_names") or known.get("hook_name")
        for one, known in ((sae, own), (other, its))
    ]
    if all(written) and (a := _same_sites(written[0])) != (b := _same_sites(written[1])):
        _not_comparable(name, "site", ", ".join(a), ", ".join(b))


def _not_comparable(name: str, what: str, own: object, its: object) -> None:
    raise InputError(
        f"{name} was made for the {what} {its}, this SAE for {own}: their directions have nothing in common. Give one "
        f"of the same {what}, or insist (force=True, --force) where you know that they belong together"
    )


def other_model(one: HookedModel | str | None, other: HookedModel | str | None) -> bool:
    """Whether two models, or the names they go by, are known to be different ones."""
    names = [name for name in (_name(one), _name(other)) if name]
    return len(names) == 2 and _same_model(names[0]) != _same_model(names[1])


def _refuse(what: str, made: str, given: str) -> None:
    raise InputError(
        f"the SAE was made for the {what} {made}, and is asked to work on {given}. Give the {what} it was made for, or "
        "insist (force=True, --force) where you know that it fits, as for a fine-tuned copy of the same model"
    )


def _name(model: HookedModel | str | None) -> str | None:
    if not isinstance(model, HookedModel):
        return model
    # A model wrapped without a name goes by its class, which says nothing about its weights.
    return None if model.name == type(model.hf).__name__ else model.name


def _same_model(name: str) -> str:
    if "; " in name:  # of two models, each behind a name of its own
        pairs = [part.rpartition(": ") for part in name.split("; ")]
        return "; ".join(f"{label}: {_same_model(own)}" for label, _, own in pairs)
    hub = PRESETS[name].hub_id if name in PRESETS else name
    last = hub.rstrip("/").split("/")[-1].lower()
    return _ALIASES.get(last, last)


def _same_sites(sites: Any) -> list[str]:
    """Names as tensors: the stream before a block is the stream behind the one below it."""
    names = []
    for text in [sites] if isinstance(sites, str | Site | ModelSite) else sites:
        try:
            (place,) = parse_places(text)
        except InputError:  # another tool's name: compared as it stands
            names.append(str(text))
            continue
        model, site = (f"{place.model_name}:", place.site) if isinstance(place, ModelSite) else ("", place)
        if isinstance(site, Site) and site.point is Point.RESID_PRE and site.layer:
            site = Site(Point.RESID_POST, site.layer - 1)
        names.append(f"{model}{site}")
    return names

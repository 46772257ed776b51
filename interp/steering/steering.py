"""`Steering`: fitted edits by site, the tokens they act on and where they come from: one value, kept in files.

    steering = fit_steering(model, ...)                     # or Steering(edits={site: edit}, scope="all", method="...")
    with steered(model, steering.at(2.0)):                   # every pass, capture and generation in here
        logits = model(tokens)
    texts = generate_steered(model, ["I feel"], steering)
    steering.save("runs/horses");  Steering.load("runs/horses").check(model)

Saved as `edits.safetensors` and `steering.json` (written last: without it the folder holds no steering).
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import InputError
from interp.model import Edit, HookedModel
from interp.running import Padding, Where
from interp.sites import Point, Site
from interp.steering.composition import SteeringEdit, compose, kind
from interp.steering.fingerprint import fingerprint, identity
from interp.steering.scopes import Scope, Scoped, scoped

_MAY_BE_INFINITE = ("lo", "hi")


@dataclass(frozen=True, eq=False)
class Steering:
    """Edits by site with their scope, method and provenance; see the module's docstring.

    Of the provenance, `model`, `revision` and `weights` (see `interp.steering.fingerprint.identity`) say which model it
    is for, and `sites` what was measured at each site; the rest is for readers.
    """

    edits: Mapping[Site, SteeringEdit]
    scope: Scope = "all"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    method: str = "custom"

    def __post_init__(self) -> None:
        edits = {Site.parse(site): edit for site, edit in self.edits.items()}
        if not edits or len(edits) < len(self.edits):
            raise InputError("a steering needs one edit or more, each at a site of its own")
        if self.scope not in get_args(Scope):
            raise InputError(f"unknown scope {self.scope!r}: expected one of {', '.join(get_args(Scope))}")
        for site, edit in edits.items():
            kind(edit)
            _require_finite(site, edit)
        object.__setattr__(self, "edits", dict(sorted(edits.items())))

    @classmethod
    def of(
        cls,
        model: HookedModel,
        edits: Mapping[Site, SteeringEdit] | Mapping[str, SteeringEdit],
        *,
        scope: Scope = "all",
        method: str = "custom",
        **provenance: Any,
    ) -> "Steering":
        """Edits for this model, whose identity is written down."""
        parsed = {Site.parse(site): edit for site, edit in edits.items()}
        return cls(parsed, scope, {**identity(model, parsed), **provenance}, method)

    def hooks(
        self, mask: Bool[Tensor, "b t"] | None = None, *, padding: Padding = "right", extend: bool = False
    ) -> dict[Site, Edit]:
        """Edits for `model.edited` and `model.generate(edits=...)`; the arguments are for the scope "mask"."""
        return {
            site: scoped(edit, self.scope, mask, padding=padding, extend=extend) for site, edit in self.edits.items()
        }

    def at(self, beta: float | Mapping[Site, float] | Mapping[str, float]) -> "Steering":
        """The same with every site at strength `beta`, or each named site at its own."""
        if not isinstance(beta, Mapping):
            return replace(self, edits={site: edit.at(beta) for site, edit in self.edits.items()})
        betas = {Site.parse(site): value for site, value in beta.items()}
        if unknown := sorted(set(betas) - set(self.edits)):
            raise InputError(
                f"strengths for {', '.join(map(str, unknown))}, but this steers {', '.join(map(str, self.edits))}"
            )
        return replace(self, edits={s: edit.at(betas[s]) if s in betas else edit for s, edit in self.edits.items()})

    def scaled(self, factor: float) -> "Steering":
        """The same with the strength of every site multiplied: sites keep their proportions."""
        return self.at({site: factor * edit.beta for site, edit in self.edits.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Steering":
        """The same on another device (an edit elsewhere is moved at every call), or in another precision."""
        return replace(self, edits={site: edit.to(device, dtype) for site, edit in self.edits.items()})

    def then(self, other: "Steering", *, force: bool = False) -> "Steering":
        """This and then `other`, as one: composed where they share a site (see `composition`), together elsewhere.

        `force` lets two models through.
        """
        if self.scope != other.scope:
            raise InputError(
                f"steerings of the scopes {self.scope!r} and {other.scope!r} make no single one; nest them: "
                "with steered(model, first), steered(model, second)"
            )
        mine, theirs = self.provenance, other.provenance
        if (why := _two_models(mine, theirs)) and not force:
            raise InputError(f"two steerings of different models: {why}; force=True composes them all the same")
        edits = {**self.edits, **other.edits}
        edits |= {site: compose(self.edits[site], other.edits[site]) for site in self.edits if site in other.edits}
        known = max((mine, theirs), key=lambda one: one.get("weights", {}).get("blocks", -1))
        kept = {name: known[name] for name in ("model", "revision", "weights", "versions") if name in known}
        parts = [{"method": one.method, "provenance": dict(one.provenance)} for one in (self, other)]
        return Steering(edits, self.scope, {**kept, "parts": parts}, f"{self.method}, then {other.method}")

    def check(self, model: HookedModel, *, force: bool = False) -> None:
        """Refuse a model that lacks a site, is of another width, or (without `force`) has other weights."""
        for site, edit in self.edits.items():
            model.anatomy.check(model.hf, site)
            if edit.d != (width := width_of(model, site)):
                raise InputError(f"the edit at {site} is for a width of {edit.d}; {model.name} has {width} there")
        if not force:
            refuse_other_model(self.provenance, model)

    def save(self, folder: str | Path) -> None:
        """Write the folder; see `interp.steering.steering_files`."""
        from interp.steering.steering_files import save_steering

        save_steering(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "Steering":
        """Read what `save` wrote; nothing in it is ever executed."""
        from interp.steering.steering_files import load_steering

        return load_steering(Path(folder))


def refuse_other_model(provenance: Mapping[str, Any], model: HookedModel) -> None:
    """Refuse a model whose weights, or where none are recorded whose name, are not those of the provenance."""
    name, weights = provenance.get("model"), provenance.get("weights")
    if weights is None:
        why = "" if name in (None, model.name) else f"{name}, not {model.name} (by name: no weights are recorded)"
    elif weights["blocks"] > model.loaded_layers:
        why = f"{name} up to layer {weights['blocks']}, and {model.name} has {model.loaded_layers} layers in memory"
    else:
        found, wanted = fingerprint(model, blocks=weights["blocks"]), weights["sha256"]
        same = found == wanted
        why = "" if same else f"the weights of {name} ({wanted[:12]}…) are not those of {model.name} ({found[:12]}…)"
    if why:
        raise InputError(f"this was made for another model: {why}. Load that model, fit again, or pass force=True")


def _require_finite(site: Site, edit: SteeringEdit) -> None:
    for name, x in edit.tensors().items():
        bounds = name.rsplit(".", 1)[-1] in _MAY_BE_INFINITE
        if bool((x.isnan() if bounds else ~x.isfinite()).any()):
            raise InputError(f"the edit at {site} holds NaN or infinite values in {name}; was it fitted on overflow?")


def _two_models(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """In what two provenances contradict each other; fingerprints of different depths do not compare."""
    a, b = mine.get("weights"), theirs.get("weights")
    if a is not None and b is not None and a["blocks"] == b["blocks"]:
        return "" if a["sha256"] == b["sha256"] else f"weights {a['sha256'][:12]}… and {b['sha256'][:12]}…"
    names = mine.get("model"), theirs.get("model")
    return "" if None in names or names[0] == names[1] else f"{names[0]} and {names[1]}"


def width_of(model: HookedModel, site: Site) -> int:
    """Length of the last axis at a site."""
    if site.point.per_head:
        return model.cfg.d_head
    return model.cfg.d_mlp if site.point in (Point.MLP_PRE, Point.MLP_PRE_LINEAR, Point.MLP_POST) else model.cfg.d_model


@contextmanager
def steered(
    model: HookedModel,
    steering: Steering,
    *,
    mask: Bool[Tensor, "b t"] | None = None,
    padding: Padding = "right",
    extend: bool = False,
    force: bool = False,
) -> Iterator[HookedModel]:
    """Steer every pass of `model` in this block; nothing is left behind, however it ends.

    Warns at the end if the scope never met a token: `generated` in a block without generation, say.
    """
    steering.check(model, force=force)
    watched = {
        site: _Watched(hook)
        for site, hook in steering.to(model.device).hooks(mask, padding=padding, extend=extend).items()
        if isinstance(hook, Scoped)
    }
    with model.edited(watched):
        yield model
    if not any(hook.acted for hook in watched.values()):
        warnings.warn(
            f"the scope {steering.scope!r} met no token: nothing was steered. "
            + ("Passes outside generation have a prompt only" if steering.scope == "generated" else "Does it fit?"),
            stacklevel=3,
        )


class _Watched:
    """A scoped edit that remembers whether any position was selected."""

    def __init__(self, hook: Scoped) -> None:
        self.hook = hook
        self._seen: Tensor | None = None
        self._sure = hook.scope in ("all", "prompt", "last-prompt")

    def __call__(self, x: Float[Tensor, "b s ..."], where: Where) -> Float[Tensor, "b s ..."]:
        """As the edit itself."""
        if not self._sure:
            any_here = self.hook.selected(where).any()
            self._seen = any_here if self._seen is None else self._seen | any_here
        return self.hook(x, where)

    @property
    def acted(self) -> bool:
        """Whether any position was selected so far (every pass has a prompt's position, first or later)."""
        return self._sure or (self._seen is not None and bool(self._seen))


def generate_steered(
    model: HookedModel,
    prompts: Sequence[Any],
    steering: Steering | None,
    *,
    mask: Bool[Tensor, "b t"] | None = None,
    extend: bool = False,
    force: bool = False,
    prepend_bos: bool | None = None,
    generation_prompt: bool = False,
    **options: Any,
) -> list[str]:
    """Continuations of texts or chats under a steering (`None`: without), special tokens left out.

    `options` are those of `HookedModel.generate`; a mask is over the right-padded tokens of `model.to_tokens(prompts)`.
    """
    batch = model.to_tokens(prompts, prepend_bos=prepend_bos, generation_prompt=generation_prompt)
    if steering is not None:
        steering.check(model, force=force)
    hooks = None if steering is None else steering.to(model.device).hooks(mask, extend=extend)
    new = model.generate(batch.tokens, lengths=batch.lengths, edits=hooks, **options)
    return [str(model.tokenizer.decode(row, skip_special_tokens=True)) for row in new]

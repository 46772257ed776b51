"""TransformerLens's spelling of captures and hooks, on a `HookedModel`.

    logits, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_z"))
    cache["blocks.3.attn.hook_z"], cache["z", 3], cache[Site.parse("z.3")]
    logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.3.hook_resid_post", fn)])

A hook function is called as `fn(value, hook)`; it returns the new value, or `None` if it changed the value in place or
only looked at it.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from interp.editing import Edit
from interp.errors import InputError
from interp.running import Padding, Where
from interp.sites import Point, Site

if TYPE_CHECKING:
    from interp.model import HookedModel

NamesFilter = None | str | Site | Iterable[str | Site] | Callable[[str], bool]


class Hook(NamedTuple):
    """What a hook function gets beside the value: the site it is at, and the positions."""

    site: Site
    where: Where

    @property
    def name(self) -> str:
        """TransformerLens's name of the site."""
        return str(self.site)

    def layer(self) -> int | None:
        """The layer of the site."""
        return self.site.layer


class Cache(dict[str, Tensor]):
    """Activations by TransformerLens name; also `cache["z", 3]` and `cache[site]`."""

    def __getitem__(self, key: "str | Site | tuple[str, int]") -> Tensor:
        if key not in self:
            raise InputError(f"{_name(key)} is not in this cache. It holds: {', '.join(self)}")
        return super().__getitem__(_name(key))

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_name(key))

    def get(self, key: Any, default: Any = None) -> Any:
        """The activation, or `default` where the cache has none of this name."""
        return self[key] if key in self else default


def _name(key: Any) -> str:
    return str(Site.parse(f"{key[0]}.{key[1]}" if isinstance(key, tuple) else key))


def all_sites(model: "HookedModel") -> list[Site]:
    """Every site of the layers that are loaded, in execution order."""
    points = model.anatomy.points()
    layers = range(model.loaded_layers)
    inside = [Site(point, layer) for layer in layers for point in points if point.in_block]
    ends = [Site(Point.LN_FINAL)] if model.loaded_layers == model.cfg.n_layers else []
    return [Site(Point.EMBED), *inside, *ends]


def run_with_cache(
    model: "HookedModel",
    tokens: Int[Tensor, "b t"],
    names_filter: NamesFilter = None,
    *,
    stop_at_layer: int | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    padding: Padding = "right",
) -> tuple[Tensor | None, Cache]:
    """Logits and the activations that `names_filter` names (all, one, several, or those it is true for).

    With `stop_at_layer` no layer from that one on runs, and the stream entering it comes in place of the logits.
    """
    sites = _chosen(model, names_filter)
    if stop_at_layer is None:
        logits, found = model.run_recorded(tokens, sites, lengths=lengths, padding=padding)
        return logits, Cache({str(site): value for site, value in found.items()})
    layer = stop_at_layer + model.cfg.n_layers if stop_at_layer < 0 else stop_at_layer
    end = Site(Point.RESID_PRE, layer) if layer < model.cfg.n_layers else Site(Point.RESID_POST, layer - 1)
    below = [site for site in sites if site.rank < (layer, 0)]
    above = [str(site) for site in sites if site not in below]
    if above and names_filter is not None and not (below and callable(names_filter)):
        raise InputError(
            f"{', '.join(above[:5])}: not reached with stop_at_layer={stop_at_layer}; name sites below that layer"
        )
    found = model.capture(tokens, dict.fromkeys([*below, end]), lengths=lengths, padding=padding)
    return found[end], Cache({str(site): found[site] for site in below})


def run_with_hooks(
    model: "HookedModel",
    tokens: Int[Tensor, "b t"],
    fwd_hooks: Iterable[tuple[str | Site | Callable[[str], bool], Callable[[Tensor, Hook], Tensor | None]]] = (),
    *,
    lengths: Int[Tensor, " b"] | None = None,
    padding: Padding = "right",
) -> Float[Tensor, "b t v"]:
    """Logits of a pass in which every hook function may replace the value at its site."""
    edits: dict[Site, Edit] = {}
    for names, function in fwd_hooks:
        for site in _chosen(model, names):
            edits[site] = _chained(edits.get(site), site, function)
    with model.edited(edits):
        return model(tokens, lengths=lengths, padding=padding)


def _chained(first: Edit | None, site: Site, function: Callable[[Tensor, Hook], Tensor | None]) -> Edit:
    def edit(x: Tensor, where: Where) -> Tensor:
        x = x if first is None else first(x, where)
        new = function(x, Hook(site, where))
        return x if new is None else new

    return edit


def _chosen(model: "HookedModel", names: NamesFilter) -> list[Site]:
    if names is None:
        return all_sites(model)
    if callable(names):
        if chosen := [site for site in all_sites(model) if names(str(site))]:
            return chosen
        known = ", ".join(str(site) for site in all_sites(model) if site.layer in (None, 0))
        raise InputError(
            f"names_filter is true for no site of this model. It has: {known} (and the same in every layer)"
        )
    return Site.parse_all(names)

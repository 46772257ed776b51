"""Crosscoders over two models: `PairedRows`, two stores of the same text read as one, and how exclusive latents are.

    rows = PairedRows(base, chat)
    fit(rows, TrainConfig(architecture="batchtopk"), path,
        site=[ModelSite("base", "resid_post.15"), ModelSite("chat", "resid_post.15")])

Row i holds both models' activations on the same token of the same document. In a crosscoder trained on them each latent
has a decoder block per model, and

    share of source s = |W_dec[j, s]| / sum over sources of |W_dec[j, .]|          (s f), norms in units of each source

says where it lives: 1/2 in both models, near 0 or 1 in one alone (Lindsey et al. 2024, sparse crosscoders).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.shuffle import prefetched
from interp.sites import Site
from interp.store import ActivationBatch, ActivationStore
from saes.sae import SAE

# What decides which rows a store has and what the model saw before each: of both stores it must be the same.
_SHARED = ("corpus", "tokens", "tokenizer", "bos", "max_length", "excluded", "docs")
# What may differ, and is written down for both.
_OWN = ("revision", "dtype", "compute_dtype", "seed")


@dataclass(frozen=True)
class ModelSite:
    """A site of one of several models; `str` gives `base:blocks.15.hook_resid_post`."""

    model_name: str
    """The short name under which `PairedRows` has the model."""
    site: Site | str

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.parse(self.site))

    def __str__(self) -> str:
        return f"{self.model_name}:{self.site}"


def parse_places(sites: "Site | ModelSite | str | Iterable[Site | ModelSite | str]") -> "list[Site | ModelSite]":
    """Read one site or several: `base:resid_post.15` is a site of one of several models."""
    listed = [sites] if isinstance(sites, Site | ModelSite | str) else sites
    return [ModelSite(*s.split(":", 1)) if isinstance(s, str) and ":" in s else _parsed(s) for s in listed]


def _parsed(site: "Site | ModelSite | str") -> "Site | ModelSite":
    return site if isinstance(site, ModelSite) else Site.parse(site)


class PairedRows:
    """Rows of two stores of the same text, matched by document and position; what `saes.train.fit` needs of a store.

    The first store's order decides that of the rows. The second is read where its rows for them stand: in long
    stretches if both were extracted with the same settings, in single rows if not.
    """

    def __init__(
        self, store_a: ActivationStore, store_b: ActivationStore, names: tuple[str, str] = ("base", "chat")
    ) -> None:
        """`names` tell the models apart in sites and provenance."""
        if len(set(names)) < 2 or not all(name and ":" not in name for name in names):
            raise InputError(f"names have to be two different words without a colon, got {names}")
        self.stores = dict(zip(names, (store_a, store_b), strict=True))
        _check_text(self.stores)
        self.partner = _partners(self.stores)
        self.sites = [ModelSite(name, site) for name, store in self.stores.items() for site in store.sites]
        self.manifest = self._manifest()

    def _manifest(self) -> dict[str, Any]:
        """Of both stores; `parts` under the names that a store's manifest has, values of either by model."""
        parts = []
        for pair in zip(*(store.manifest["parts"] for store in self.stores.values()), strict=True):
            specs = {name: part["spec"] for name, part in zip(self.stores, pair, strict=True)}
            spec = next(iter(specs.values())) | {key: {n: s.get(key) for n, s in specs.items()} for key in _OWN}
            spec["model"] = "; ".join(f"{name}: {s.get('model')}" for name, s in specs.items())
            spec["sites"] = [str(site) for site in self.sites]
            parts.append({**pair[0], "spec": spec})
        shapes = {name: store.manifest["row_shapes"] for name, store in self.stores.items()}
        return {
            "format": "midlens-paired",
            "version": 1,
            "row_shapes": {str(site): shapes[site.model_name][str(site.site)] for site in self.sites},
            "parts": parts,
            "stores": {name: store.manifest for name, store in self.stores.items()},
        }

    def __len__(self) -> int:
        return len(self.partner)

    @property
    def path(self) -> str:
        """Where both are, in words."""
        return " and ".join(str(store.path) for store in self.stores.values())

    def site(self, site: Site | ModelSite | str) -> ModelSite:
        """`site`, after making sure that it is stored."""
        (found,) = parse_places(site)
        if not isinstance(found, ModelSite) or found not in self.sites:
            raise InputError(f"the paired stores hold {', '.join(map(str, self.sites))}, not {found}")
        return found

    def rows(self, site: ModelSite | str, start: int, stop: int) -> Float[Tensor, "n ..."]:
        """Rows start..stop of one site, in the order of the first store."""
        wanted = self.site(site)
        return self.gather([wanted], np.arange(start, stop)).acts[wanted]  # pyright: ignore[reportArgumentType]

    def keys(self, start: int, stop: int) -> ActivationBatch:
        """Token, document and position of rows start..stop (`acts` is empty)."""
        return next(iter(self.stores.values())).keys(start, stop)

    def batches(
        self, sites: Sequence[ModelSite], size: int, *, seed: int, first: int = 0, epoch: int = 0
    ) -> Iterator[ActivationBatch]:
        """Shuffled batches of `size` rows (the last may be smaller): each row once per epoch, in the order of a store.

        `first=k` gives what is left after k batches without reading them.
        """
        if size < 1 or first < 0:
            raise InputError(f"batches: size must be positive and first not negative, got size={size}, first={first}")
        wanted = [self.site(site) for site in sites]
        order = next(iter(self.stores.values())).order(seed=seed, epoch=epoch)

        def read(start: int) -> ActivationBatch:
            return self.gather(wanted, order.rows(start, min(start + size, len(self))))

        return prefetched(read, range(first * size, len(self), size), 1)

    def gather(self, sites: Sequence[ModelSite], rows: Int[np.ndarray, " n"]) -> ActivationBatch:
        """The given rows of the first store, in the given order, with their partners in the second."""
        acts: dict[Any, Tensor] = {}
        keys: ActivationBatch | None = None
        for (name, store), at in zip(self.stores.items(), (rows, self.partner[rows]), strict=True):
            own = [site.site for site in sites if site.model_name == name]
            if keys is None or own:
                found = store.gather(own, at)
                keys = keys or found
                acts |= {ModelSite(name, site): x for site, x in found.acts.items()}
        assert keys is not None
        return keys._replace(acts={site: acts[site] for site in sites})


@torch.no_grad()
def source_shares(sae: SAE, scales: Sequence[float] | None = None) -> Float[Tensor, "s f"]:
    """Of a crosscoder: the part that each source has in every latent's decoder norm; NaN where the row is zero.

    Norms count in units of each source's typical norm, else the louder model would seem to have every latent: `scales`
    are their inverses, by default those that training divided by, from the metadata.
    """
    sources = list(sae.config.sources)
    if not sources:
        raise InputError("shares of sources are for crosscoders; this SAE reads one site")
    scales = scales or sae.config.metadata.get("midlens_training", {}).get("input_scale")
    if scales is None or len(scales) != len(sources):
        raise InputError(f"the {len(sources)} sources need a scale each (1 / typical norm), got {scales}")
    blocks = sae.W_dec.split(sources, dim=1)
    norms = torch.stack([scale * block.norm(dim=1) for scale, block in zip(scales, blocks, strict=True)])
    return norms / norms.sum(0)


def _check_text(stores: Mapping[str, ActivationStore]) -> None:
    """Refuse stores of different text, or of text that was fed to the models differently."""
    (a, first), (b, second) = stores.items()
    numbers = [len(store.manifest["parts"]) for store in (first, second)]
    if numbers[0] != numbers[1]:
        raise InputError(
            f"{a} ({first.path}) has {numbers[0]} parts and {b} ({second.path}) {numbers[1]}: not one text"
        )
    for one, other in zip(first.manifest["parts"], second.manifest["parts"], strict=True):
        differing = {key: (one["spec"].get(key), other["spec"].get(key)) for key in _SHARED}
        listed = [f"{key}: {x!r} in {a}, {y!r} in {b}" for key, (x, y) in differing.items() if x != y]
        if listed:
            raise InputError(
                f"{first.path} and {second.path} do not hold the same rows of the same text ({'; '.join(listed)}): "
                "extract both with the same token file and the same settings"
            )


def _partners(stores: Mapping[str, ActivationStore]) -> Int[np.ndarray, " n"]:
    """For each row of the first store, the row of the second with the same document, position and token."""
    (a, first), (b, second) = stores.items()
    keys = [[x.numpy() for x in store.keys(0, len(store))[1:]] for store in (first, second)]
    orders = [np.lexsort((position, doc)) for _, doc, position in keys]
    columns = [np.stack(key)[:, order] for key, order in zip(keys, orders, strict=True)]
    n = min(columns[0].shape[1], columns[1].shape[1])
    unequal = (columns[0][:, :n] != columns[1][:, :n]).any(0)
    if unequal.any() or len(first) != len(second):
        at = int(unequal.argmax()) if unequal.any() else n
        shown = [
            "no row" if at >= c.shape[1] else "token {}, document {}, position {}".format(*c[:, at]) for c in columns
        ]
        raise InputError(
            f"{a} ({first.path}, {len(first):,} rows) and {b} ({second.path}, {len(second):,} rows) do not hold the "
            f"same tokens: in the order of the text they first differ where {a} has {shown[0]} and {b} {shown[1]}"
        )
    partner = np.empty(len(first), np.int64)
    partner[orders[0]] = orders[1]
    return partner

"""Independent opinions on a model: each a function from one unpadded sequence to the sites (and logits) it can tell.

- `plain`: `interp.plain`, the mathematics in float64. The one that decides.
- `hf_eager`: the same Hugging Face model called by itself with eager attention: resid_pre, resid_post, pattern, logits.
- `transformer_lens`: transformer-lens's `TransformerBridge` over a copy that shares storage (`model.bridge()`).

An opinion that cannot be had raises `Unavailable` with the reason, when it is set up or when it is asked.
"""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from interp.errors import InputError
from interp.model import HookedModel
from interp.plain import plain_run
from interp.quiet import quiet_transformers
from interp.sites import Point, Site

Opinion = Literal["plain", "hf_eager", "transformer_lens"]
OPINIONS: tuple[Opinion, ...] = get_args(Opinion)
LOGITS = "logits"
Values = dict[str, Tensor]
"""Tensors by the site's name, or `logits`."""
Ask = Callable[[Tensor], Values]


class Unavailable(Exception):
    """An opinion that this model, or this installation, cannot have."""


def opinion(name: Opinion, model: HookedModel, wanted: list[Site], *, dtype: torch.dtype) -> Ask:
    """Set up an opinion on `wanted` sites of `model`; `dtype` is that of the plain forward pass."""
    if name == "plain":
        return _plain(model, wanted, dtype)
    return _hf_eager(model, wanted) if name == "hf_eager" else _transformer_lens(model, wanted)


def _pick(sites: Collection[Site], values: dict[Site, Tensor]) -> Values:
    """The wanted sites out of whole ones; one head where a site names one."""
    picked = {}
    for site in sites:
        whole = values.get(Site(site.point, site.layer))
        if whole is not None:
            axis = 1 if site.point in (Point.ATTN_SCORES, Point.PATTERN) else 2
            picked[str(site)] = whole if site.head is None else whole.select(axis, site.head)
    return picked


def _plain(model: HookedModel, wanted: list[Site], dtype: torch.dtype) -> Ask:
    config, weights = model.hf.config.to_dict(), model.hf.state_dict()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    layers = len(model.anatomy.blocks(model.hf))
    whole = {Site(site.point, site.layer) for site in wanted}

    def ask(tokens: Tensor) -> Values:
        run = plain_run(config, weights, tokens, sites=whole, layers=layers, dtype=dtype)
        return _pick(wanted, run.sites) | ({} if run.logits is None else {LOGITS: run.logits})

    return ask


def _hf_eager(model: HookedModel, wanted: list[Site]) -> Ask:
    blocks = model.anatomy.blocks(model.hf)

    def ask(tokens: Tensor) -> Values:
        last: list[Any] = []
        handle = blocks[-1].register_forward_hook(lambda _module, _args, out: last.append(out))
        try:
            with _eager(model.hf):
                out = model.hf(
                    tokens.to(model.device), output_hidden_states=True, output_attentions=True, use_cache=False
                )
        finally:
            handle.remove()
        end = last[0] if isinstance(last[0], Tensor) else last[0][0]
        stream = [*out.hidden_states[: len(blocks)], end]  # Hugging Face's own last entry is after the final norm
        values = {Site(Point.RESID_PRE, i): x for i, x in enumerate(stream[:-1])}
        values |= {Site(Point.RESID_POST, i): x for i, x in enumerate(stream[1:])}
        values |= {Site(Point.PATTERN, i): x for i, x in enumerate(out.attentions)}
        logits = getattr(out, "logits", None)
        return _pick(wanted, values) | ({} if logits is None else {LOGITS: logits})

    return ask


@contextlib.contextmanager
def _eager(hf: nn.Module) -> Iterator[None]:
    """Eager attention for a while; the model's own choice comes back."""
    config = hf.config
    before = config._attn_implementation  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with quiet_transformers():
            hf.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
            yield
    finally:
        hf.set_attn_implementation(before)  # pyright: ignore[reportCallIssue]


def _transformer_lens(model: HookedModel, wanted: list[Site]) -> Ask:
    with _theirs():
        bridge = model.bridge()

    def ask(tokens: Tensor) -> Values:
        with _theirs():
            logits, cache = bridge.run_with_cache(tokens.to(model.device))
        values = {}
        for site in {Site(site.point, site.layer) for site in wanted}:
            if (value := _cached(cache, str(site))) is not None:
                heads = model.cfg.n_heads if site.point is Point.ROT_Q else model.cfg.n_kv_heads
                values[site] = _position_first(value, site, heads)
        return _pick(wanted, values) | {LOGITS: logits}

    return ask


@contextlib.contextmanager
def _theirs() -> Iterator[None]:
    """Another project's code: its warnings are not ours; whatever it raises, parity goes on without it and says why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError as error:
        raise Unavailable(str(error)) from error
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error


def _cached(cache: object, name: str) -> Tensor | None:
    try:
        return cache[name]  # pyright: ignore[reportIndexIssue]
    except KeyError:
        return None


def _position_first(value: Tensor, site: Site, heads: int) -> Tensor:
    """The bridge keeps rotated queries and keys as `b h t e`, everything else position first."""
    rotated = site.point in (Point.ROT_Q, Point.ROT_K)
    return value.transpose(1, 2) if rotated and value.ndim == 4 and value.shape[1] == heads else value

"""A made-up sweep, in the shape of a real one."""

import itertools
from pathlib import Path

from saes.sweep_summary import Summary

ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard", "gated")


def summary(folder: Path, *, held_out: bool = True, unlike: bool = False) -> Summary:
    """As a sweep over all architectures, two widths and four sparsities might leave it."""
    records = {}
    for architecture, width, k in itertools.product(ARCHITECTURES, (2304, 4608), (8, 16, 32, 64)):
        quality = 0.45 + 0.08 * ((k / 8) ** 0.5) + 0.02 * (width > 3000) - 0.012 * ARCHITECTURES.index(architecture)
        figures = {"l0": k * 1.02, "explained_variance": quality, "dead_fraction": 0.01, "kl": 0.3}
        records[f"{architecture}-w{width}-k{k}"] = {
            "architecture": architecture,
            "d_sae": width,
            "config": {},
            "status": "finished",
            "error": None,
            "training": figures | {"explained_variance": quality + 0.1},
            "held_out": figures | {"delta_ce": 1.2 - quality} if held_out else None,
            "measured": "a" if held_out else None,
        }
    if held_out:
        records["topk-w2304-k8"]["held_out"].update(l0=0.0)
    records["lost"] = records["gated-w4608-k64"] | {
        "status": "diverged",
        "error": "loss became NaN <b>",
        "held_out": None,
    }
    if unlike:
        records["gated-w4608-k8"]["measured"] = "b"
    facts = {"model": "SmolLM2-135M", "sites": ["blocks.15.hook_resid_post"], "site_out": None, "rows": 198_938}
    return Summary(folder, facts | {"store": "0"}, records)

"""What a learnt threshold does to rows of unusual norm: BatchTopK reading more and less of the mean.

    python benchmarks/sae_quality.py             extracts the stores that this reads, SmolLM2, layer 15 (stop it then)
    python benchmarks/sae_outliers.py            trains three SAEs of width 16,384; about a quarter of an hour
    python benchmarks/sae_outliers.py --architecture topk --parts 0 0.5 --out topk.json         jumprelu as well

Rows above ten times the median norm are left out of training and measuring; those above twice the median are the
outliers here. They are a handful, but an SAE that answers each with thousands of features loses more by them than
recipes differ by. For every `mean_read` of `saes.recipe`: explained variance of all held-out rows, of those that are
no outliers, and what the outliers fire. Prints a table (Markdown), writes JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from sae_contestants import ARCHITECTURES
from sae_quality import usual_rows
from torch import Tensor

from interp.bench.measure import environment
from interp.sites import Site
from interp.store import ActivationStore
from saes.recipe import TrainConfig, uses
from saes.row_quality import row_norms
from saes.sae import SAE
from saes.splice import massive_threshold
from saes.train import fit

READING = [name for name in ARCHITECTURES if uses("mean_read", name)]
OUTLIER = 2.0
"""Times the median norm."""


@torch.no_grad()
def measured(sae: SAE, rows: Tensor, median: float) -> dict[str, Any]:
    """Explained variance with the outliers and without, mean L0, and L0 of the outliers."""
    errors, active, fires = [], [], torch.zeros(sae.config.d_sae, dtype=torch.int64)
    for x in rows.split(1024):
        codes = sae.encode(x).dense()
        errors.append((x - codes @ sae.W_dec - sae.b_dec).double().square().sum(1))
        active.append((codes > 0).sum(1))
        fires += (codes > 0).sum(0)
    error, l0, far = torch.cat(errors), torch.cat(active), rows.norm(dim=1) > OUTLIER * median
    spread = (rows - rows.mean(0)).double().square().sum(1)
    return {
        "explained_variance": float(1 - error.sum() / spread.sum()),
        "explained_variance_usual": float(1 - error[~far].sum() / spread[~far].sum()),
        "outliers_part_of_error": float(error[far].sum() / error.sum()),
        "l0": float(l0.double().mean()),
        "outliers_l0": l0[far].tolist(),
        "outliers_norm": [round(float(norm / median), 2) for norm in rows[far].norm(dim=1)],
        "dead": float((fires == 0).double().mean()),
    }


def table(results: list[dict[str, Any]]) -> str:
    """One line per SAE."""
    lines = [
        "| mean_read | L0 | explained variance | of usual rows | outliers' part of error | features they fire | dead |",
        "|---:|---:|---:|---:|---:|---|---:|",
    ]
    for r in results:
        fired = ", ".join(f"{n:,}" for n in r["outliers_l0"])
        lines.append(
            f"| {r['mean_read']:g} | {r['l0']:.1f} | {r['explained_variance']:.4f} "
            f"| {r['explained_variance_usual']:.4f} | {r['outliers_part_of_error']:.1%} | {fired} | {r['dead']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/sae_quality"), help="of sae_quality.py")
    parser.add_argument("--site", default="blocks.15.hook_resid_post")
    parser.add_argument("--architecture", choices=READING, default="batchtopk")
    parser.add_argument("--width", type=int, default=16_384)
    parser.add_argument("--parts", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="values of mean_read")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sae_outliers.json")
    options = parser.parse_args()
    site = Site.parse(options.site)
    train, held_out = (ActivationStore.open(options.folder / "store" / side) for side in ("train", "held_out"))
    norms = torch.as_tensor(row_norms(train, site))
    threshold = massive_threshold(norms)
    stream = usual_rows(held_out, site, 1024, seed=0, threshold=threshold)
    rows = torch.cat([next(stream) for _ in range(len(held_out) // 1024)])
    results = []
    for part in options.parts:
        config = TrainConfig(architecture=options.architecture, d_sae=options.width, epochs=2.0, mean_read=part)
        with tempfile.TemporaryDirectory() as scratch:
            sae = fit(train, config, Path(scratch), site=site)
        results.append({"mean_read": part, **measured(sae, rows, float(norms.median()))})
        facts = {"architecture": options.architecture, "width": options.width, "rows": len(rows)}
        facts["environment"] = environment(("torch",))
        options.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()

"""The small table of a finished run of `midlens primitives`: counts, conditions, judges, times.

    python benchmarks/primitives_table.py runs/primitives --out benchmarks/results/primitives_smollm2.json

Texts and searches stay in the run's folder.
"""

import argparse
from pathlib import Path

from interp.sealing import read_json, write_json
from saes.primitives.catalogue import Catalogue
from saes.primitives.groundwork import counted
from saes.primitives.results import Coverage


def main() -> None:
    """Read, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    coverage = Coverage.from_json(read_json(o.run / "coverage.json", "run"))
    own, twin = (Catalogue.from_json(read_json(o.run / f"{n}.json", "run")) for n in ("catalogue", "untrained"))
    evaluation, options = read_json(o.run / "evaluation.json", "run"), read_json(o.run / "config.json", "run")
    keep = ("emotion", "recipe", "condition", "strict", "soft", "hits", "yes", "answers", "failures", "interval")
    result = {
        "options": {key: options[key] for key in ("model", "emotions", "stories", "train_tokens", "epochs", "budget")},
        "sae": {key: evaluation[key] for key in ("explained_variance", "l0", "dead_fraction", "n_tokens")},
        "candidates": counted(own, twin),
        "judges": coverage.facts["validity"],
        "kappa": coverage.to_json()["kappa"],
        "strict": coverage.strict,
        "soft": coverage.soft,
        "chance": {"strict": coverage.chance_strict, "soft": coverage.chance_soft},
        "shuffled": coverage.to_json()["shuffled"],
        "unconfirmed": coverage.facts["unconfirmed"],
        "effort": coverage.facts["effort"],
        "cut": coverage.facts["cut"],
        "rows": [{key: row[key] for key in keep} for row in coverage.table()],
        "seconds": read_json(o.run / "timings.json", "run"),
    }
    write_json(o.out, result)


if __name__ == "__main__":
    main()

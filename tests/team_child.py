"""One process of a team: `torchrun --nproc-per-node N tests/team_child.py FOLDER PARALLEL [CASE ...]`.

Trains every case in FOLDER/CASE on the same rows as the test does; STEPS, in the environment, ends a run early by an
exception after so many steps, as a kill would.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

BASE = {"d_sae": 96, "k": 3, "batch_size": 60, "lr": 3e-3, "tokens": 60 * 40, "sample": 256, "log_every": 5,
        "checkpoint_every": 10, "dead_after_tokens": 60, "k_aux": 6}  # fmt: skip
CASES = {
    "topk": {"architecture": "topk"},
    "unit": {"architecture": "topk", "decoder_norm": "unit", "decoder_init_norm": 1.0},
    "batchtopk": {"architecture": "batchtopk"},
    "matryoshka": {"architecture": "matryoshka_batchtopk", "groups": (0.25, 0.25, 0.5)},
    "jumprelu": {"architecture": "jumprelu"},
    "tanh": {"architecture": "jumprelu", "penalty": "tanh", "sparsity": 0.05},
    "standard": {"architecture": "standard", "p_end": 0.5, "sparsity": 0.05},
    "gated": {"architecture": "gated", "sparsity": 0.05},
}


def config(case: str):
    """The recipe of a case, without what its architecture does not have."""
    from saes.recipe import TrainConfig, uses

    chosen = BASE | CASES[case]
    penalty = chosen.get("penalty")
    return TrainConfig(
        **{n: v for n, v in chosen.items() if n in CASES[case] or uses(n, chosen["architecture"], penalty)}
    )


def run(folder: Path, parallel: str | None, case: str):
    """Train one case."""
    from saes.train import fit
    from tests.rows import SITE, MemoryRows, sparse_mixture

    return fit(MemoryRows(sparse_mixture(600, seed=3)[0]), config(case), folder / case, site=SITE, parallel=parallel)


def main() -> None:
    from interp.loop import Course

    folder, parallel, *cases = sys.argv[1:]
    if "STEPS" in os.environ:
        real = Course.advance

        def advance(self, batch):
            if self.step == int(os.environ["STEPS"]):
                os._exit(9)
            real(self, batch)

        Course.advance = advance
    for case in cases or CASES:
        run(Path(folder), parallel, case)


if __name__ == "__main__":
    main()

"""Symmetry and directionality of layers beside the medians that Saponati et al. 2025 (arXiv 2502.10927) published.

    python benchmarks/attention_published.py gpt2 gpt2-medium gpt2-large bert-base

Names of `interp.attention.layer_scores.PUBLISHED`, whose weights are read from the hub or its cache, or `NAME=PATH` to
read them from a folder; names that are not there are measured without a comparison. Published medians have two digits:
agreement is a difference of 0.005 at most, and a larger one is said. Exit status 1 if any differs.
"""

import argparse
import sys

from interp.attention.layer_scores import PUBLISHED, layer_scores
from interp.attention.survey_models import FIVE, open_model

SOURCES = FIVE | {
    "gpt2-xl": "openai-community/gpt2-xl",
    "bert-large": "google-bert/bert-large-uncased",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
}
HALF_A_DIGIT = 0.005 + 1e-9


def compare(name: str, source: str) -> bool:
    """Print a line; whether both medians agree, where there are any."""
    found = layer_scores(open_model(source, dtype="float32", device="cpu"))
    medians = found.median()
    line = f"{name:16} {len(found.symmetry):6} {medians[0]:9.3f} {medians[1]:15.3f}"
    if (published := PUBLISHED.get(name)) is None:
        print(f"{line}   nothing published to compare with", flush=True)
        return True
    agrees = all(abs(a - b) <= HALF_A_DIGIT for a, b in zip(medians, published, strict=True))
    said = f"published {published[0]:.2f} {published[1]:.2f}: {'agrees' if agrees else 'DIFFERS'}"
    print(f"{line}   {said}", flush=True)
    return agrees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME[=PATH]")
    o = parser.parse_args()
    print(f"{'model':16} {'layers':>6} {'symmetry':>9} {'directionality':>15}   medians over layers")
    agree = []
    for given in o.models:
        name, _, path = given.partition("=")
        agree.append(compare(name, path or SOURCES.get(name) or name))
    sys.exit(not all(agree))


if __name__ == "__main__":
    main()

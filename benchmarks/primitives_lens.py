"""The lens step of the literary primitives at full size, in bounded memory: time of a chunk, estimate of the whole.

    python benchmarks/primitives_lens.py                                   # 131,072 x 4096 against 128,256 tokens
    python benchmarks/primitives_lens.py --device cuda --rows 131072       # all of it, on a GPU

Weights are random, and so are the words: 27 categories of 20 words and three persons of 8, four tokens a word, which
is what costs; what is found is meaningless. Only `--rows` decoder rows exist and go through; the estimate for all is
seconds per row times rows, since every row costs the same. As many decoys (`saes.primitives.decoys`) cost as much
again. Bytes: 4 v d of the lens, the decoder, and of the call

    4 r (v + 2 d)  +  12 v            r rows of logits at a time, their directions; the selection of the largest
    + f c (4 + 2 + 8)  +  8 i w       readings of c sets; i tokens averaged into w words

with which the rise measured during the call is compared.
"""

import argparse
import json
from pathlib import Path

import torch

from interp.bench.measure import environment, measure
from interp.lens import Lens
from saes.primitives.lens_scores import CHUNK_BYTES, PERSONS, naming_of, read_sets, self_of
from saes.primitives.word_tokens import TokenSets, WordTokens

FULL = {"features": 131_072, "d": 4096, "vocabulary": 128_256}
_SIZES = (*[20] * 27, *[8] * 3)


def random_sets(v: int) -> TokenSets:
    """Disjoint random tokens for every word."""
    ids = iter(torch.randperm(v, generator=torch.Generator().manual_seed(0)).tolist())
    words = tuple(
        tuple(WordTokens(f"w{s}.{w}", tuple(next(ids) for _ in range(4))) for w in range(n))
        for s, n in enumerate(_SIZES)
    )
    return TokenSets((*(f"category {c}" for c in range(27)), *PERSONS), words)


def working_set(rows: int, d: int, v: int, chunk_bytes: int) -> int:
    """Bytes of the call itself by the formula of the module's docstring."""
    r, c = min(rows, max(1, chunk_bytes // (4 * v))), len(_SIZES)
    return 4 * r * (v + 2 * d) + 12 * v + rows * c * (4 + 2 + 8) + 8 * 4 * sum(_SIZES) ** 2


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1_024, help="decoder rows measured")
    parser.add_argument("--features", type=int, default=FULL["features"])
    parser.add_argument("--d", type=int, default=FULL["d"])
    parser.add_argument("--vocabulary", type=int, default=FULL["vocabulary"])
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--chunk-bytes", type=int, default=CHUNK_BYTES)
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    device = torch.device(o.device)
    sets, g = random_sets(o.vocabulary), torch.Generator(device).manual_seed(0)
    decoder = torch.randn(o.rows, o.d, generator=g, device=device)
    lens = Lens(torch.randn(o.vocabulary, o.d, generator=g, device=device))
    lens.W.sub_(lens.W.mean(0))

    def call() -> None:
        found = read_sets(decoder, lens, sets, top_k=o.top_k, chunk_bytes=o.chunk_bytes, show=None)
        naming_of(found.of(sets.names[:27]))
        self_of(found)

    read_sets(decoder[:2], lens, sets, top_k=o.top_k)  # first calls set libraries up
    taken = measure(call, device=device)
    held = 4 * (lens.W.numel() + decoder.numel())
    rise = taken.rss_rise if device.type == "cpu" else (taken.cuda_peak or 0) - held
    bound = working_set(o.rows, o.d, o.vocabulary, o.chunk_bytes)
    whole = working_set(o.features, o.d, o.vocabulary, o.chunk_bytes)
    result = {
        "shape": {"features": o.features, "d": o.d, "vocabulary": o.vocabulary, "sets": len(_SIZES), "top_k": o.top_k},
        "rows measured": o.rows,
        "seconds": taken.seconds,
        "cpu_seconds": taken.cpu_seconds,
        "estimated seconds for all features": taken.seconds / o.rows * o.features,
        "estimated cpu seconds for all features": taken.cpu_seconds / o.rows * o.features,
        "bytes": {
            "lens": 4 * o.vocabulary * o.d,
            "call, measured": rise,
            "call, formula for the rows measured": bound,
            "call, formula for all features": whole,
            "all logits at once would be": 4 * o.features * o.vocabulary,
        },
        "environment": environment(("torch", "numpy", "scipy"), device=device),
    }
    for name in ("seconds", "cpu_seconds", "estimated cpu seconds for all features", "bytes"):
        print(f"{name}: {result[name]}")
    out = o.out or Path(__file__).parent / "results" / f"primitives_lens-{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Made-up reports: features, an evaluation and a training log in the shape of the real ones, drawn from a seed."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from saes.examples import Example, Feature

if TYPE_CHECKING:
    from saes.evaluate import Evaluation

MODEL = "SmolLM2-135M-Instruct, dequantised from GGUF Q4_1"
WORDS = (
    " the of and a to in is that for it as with on be an or if not by this are from at which object value type list str"
    " None return self import class def True False raise tuple argument method called returns iterable sequence key"
    " Python function default number string bytes dict set integer float module attribute instance expression statement"
).split()
ODD = (
    "\n", "\n\n", "\t", "    ", " ", "", "(", ").", ",", "``", "'s", "é", "日本", " שלום", " مرحبا", "\u202e", "\u200b",
    "🙂", "\ufffd",
    "</script>", "<img src=x onerror=alert(1)>", "&amp;", "<!--", "${x}", "\\", '"', "\x00", "\ud800",
)  # fmt: skip


def features(n: int, *, seed: int = 0, n_examples: int = 8, width: int = 24, dead: float = 0.05) -> list[Feature]:
    """`n` features over a vocabulary of words, punctuation and awkward tokens; the share `dead` never fires."""
    rng = np.random.default_rng(seed)
    vocabulary = (
        [f" {word}" for word in WORDS] * 12 + [f" {word}_{i}" for i in range(8) for word in WORDS[:40]] + list(ODD)
    )
    return [_feature(index, rng, vocabulary, n_examples, width, rng.random() < dead) for index in range(n)]


def _feature(index: int, rng: np.random.Generator, vocabulary: list[str], n: int, width: int, dead: bool) -> Feature:
    def chips(sign: int) -> tuple[tuple[str, float], ...]:
        values = np.sort(rng.gamma(2.0, 0.6, 10))[::-1] * sign
        return tuple((vocabulary[rng.integers(len(vocabulary))], float(value)) for value in values)

    promoted, suppressed = chips(1), chips(-1)
    if dead:
        return Feature(index, 0.0, 0.0, 0.0, (), (), promoted, suppressed, ())
    density = float(10 ** np.clip(rng.normal(-2.4, 0.6), -4, -0.3))
    fires = np.sort(rng.gamma(2.0, 1.6, max(1, int(30_000 * density))))[::-1]
    edges = 2.0 ** (np.arange(np.floor(4 * np.log2(fires[-1])), np.floor(4 * np.log2(fires[0])) + 2) / 4)
    counts, _ = np.histogram(fires, bins=edges)
    favourite = vocabulary[rng.integers(len(vocabulary))]
    return Feature(
        index,
        density,
        float(fires[0]),
        float(fires.mean()),
        tuple(int(count) for count in counts),
        tuple(float(edge) for edge in edges),
        promoted,
        suppressed,
        tuple(_example(rng, vocabulary, favourite, float(value), width) for value in fires[:n]),
    )


def _example(rng: np.random.Generator, vocabulary: list[str], favourite: str, value: float, width: int) -> Example:
    tokens = [vocabulary[i] for i in rng.integers(len(vocabulary), size=width)]
    acts = np.where(rng.random(width) < 0.12, value * rng.random(width), 0.0)
    peak = int(rng.integers(width // 3, 2 * width // 3))
    tokens[peak], acts[peak] = favourite, value
    doc = f"{rng.choice(['topics', 'stdlib/collections', 'numpy/linalg', 'scipy/optimize'])}/{rng.integers(400)}"
    return Example(doc, int(rng.integers(1, 900)), value, tuple(tokens), tuple(map(float, acts)), peak)


def evaluation(listed: list[Feature]) -> "Evaluation":
    """An evaluation with the densities of these features."""
    from saes.evaluate import Evaluation

    densities = torch.tensor([feature.density for feature in listed], dtype=torch.float64)
    return Evaluation(
        n_tokens=30_123,
        n_documents=143,
        explained_variance=0.8473,
        explained_variance_all=0.9712,
        massive_rows=17,
        massive_threshold=603.4,
        cosine=0.9246,
        l2_ratio=0.9188,
        reconstruction_bias=0.9971,
        l0=31.98,
        dead_fraction=float((densities == 0).double().mean()),
        mse=412.7,
        ce_clean=3.2114,
        ce_spliced=3.4402,
        ce_zero=9.8841,
        delta_ce=0.2288,
        kl=0.2071,
        kl_zero=6.913,
        loss_recovered=0.9657,
        ce_tokens=29_980,
        densities=densities,
    )


def training_log(steps: int = 400) -> list[dict[str, float]]:
    """A run whose loss falls and whose dead share rises, then falls."""
    t = np.arange(1, steps + 1)
    noise = np.random.default_rng(1).normal(0, 0.01, steps)
    return [
        {
            "step": int(i),
            "tokens": int(i) * 2048,
            "loss": 0.16 + 0.9 * float(np.exp(-i / 40)) + float(e) * 0.3,
            "explained_variance": 0.85 - 0.8 * float(np.exp(-i / 45)) + float(e) * 0.4,
            "l0": 32.0,
            "dead_fraction": 0.18 * float(np.exp(-(((i - 90) / 70) ** 2))) + 0.05,
            "lr": 3e-4 * min(1.0, (steps - i) / (steps / 5)),
        }
        for i, e in zip(t, noise, strict=True)
    ]


PROVENANCE = {
    "model": MODEL,
    "site": "blocks.15.hook_resid_post",
    "architecture": "topk, k 32, width 4,608, input width 576",
    "corpus": "language reference and docstrings, digest 5f0c2ab1",
    "train_tokens": "200,448",
    "seed": 0,
    "versions": "midlens 0.1.0, torch 2.13.0, transformers 5.23.0",
}
TIMINGS = {"load model": 2.9, "tokenise": 3.1, "extract": 96.4, "train": 171.2, "evaluate": 48.0, "read features": 22.5}


def norms() -> np.ndarray:
    """Row norms, most around 60, a few a hundred times that."""
    rng = np.random.default_rng(2)
    return np.concatenate([rng.lognormal(4.1, 0.22, 30_000), rng.lognormal(9.0, 0.04, 17)])

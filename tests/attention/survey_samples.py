"""Tables of heads as a survey has them, made of random numbers: for what is drawn from them, not for what they say."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from interp.attention.survey_files import Parts
from interp.sealing import write_json

METRICS = (
    "energy routing_energy filtering_energy routing_fraction symmetry routing_filtering_ratio trace directionality "
    "henrici spectral_abscissa numerical_abscissa rotation_share"
).split()
RANKS = "erank1 erank2 participation stable r90 r95 r99 numerical".split()
GAUGES = "raw key_centred double_centred".split()
BEHAVIOURS = "previous_token duplicate_token induction sink_share".split()
Row = dict[str, Any]


def rows(
    layers: int = 30, heads: int = 9, *, e: int = 64, seed: int = 0, kernel: bool = True, run: bool = True
) -> list[Row]:
    """A row for each head; without `kernel` or `run` as a survey has them when these parts were refused."""
    rng = np.random.default_rng(seed)
    found = []
    for layer in range(layers):
        for head in range(heads):
            row: Row = {"layer": layer, "head": head, "group": head // 3}
            row |= _kernel(rng, layer / layers, e) if kernel else {}
            row |= _operating(rng, layer / layers, e) if run else {}
            found.append(row)
    return found


def _ranks(rng: np.random.Generator, top: float, paired: bool) -> dict[str, float]:
    middle = dict(zip(RANKS, (0.9, 0.7, 0.5, 0.2, 0.75, 0.85, 0.95, 1.0), strict=True))
    noise = np.exp(0.15 * rng.standard_normal())
    ranks = {name: max(2.0, share * top * noise) for name, share in middle.items()}
    return {name: 2.0 * math.ceil(v / 2) if paired and name.startswith("r9") else v for name, v in ranks.items()}


def _kernel(rng: np.random.Generator, depth: float, e: int) -> Row:
    fraction = float(np.clip(0.42 + 0.1 * depth + 0.07 * rng.standard_normal(), 0.02, 0.98))
    energy = float(np.exp(rng.standard_normal()))
    row: Row = {
        "energy": energy,
        "routing_energy": energy * fraction,
        "filtering_energy": energy * (1 - fraction),
        "routing_fraction": fraction,
        "symmetry": 1 - 2 * fraction,
        "routing_filtering_ratio": math.sqrt(fraction / (1 - fraction)),
        "trace": float(rng.standard_normal()),
        "directionality": float(np.clip(-0.4 + 0.2 * rng.standard_normal(), -1, 1)),
        "henrici": float(np.clip(0.9 + 0.05 * rng.standard_normal(), 0, 1)),
        "spectral_abscissa": float(0.2 + 0.1 * rng.random()),
        "numerical_abscissa": float(0.4 + 0.1 * rng.random()),
        "rotation_share": float(np.clip(0.55 + 0.1 * rng.standard_normal(), 0, 1)),
        "capacity": 2 * e,
    }
    for side in ("routing", "filtering"):
        row |= {f"{side}_{n}": v for n, v in _ranks(rng, 2 * e * (0.3 + 0.4 * depth), side == "routing").items()}
    for name in ("routing_fraction", "rotation_share", "henrici", "spectral_abscissa", "routing_r90", "filtering_r90"):
        row |= {f"null_{name}": row[name] * 1.1, f"z_{name}": float(30 * rng.standard_normal() - 10)}
    return row


def _operating(rng: np.random.Generator, depth: float, e: int) -> Row:
    row: Row = {}
    for gauge, top, fraction in zip(GAUGES, (0.12, 0.2, 0.3), (0.2, 0.42, 0.32), strict=True):
        row[f"op_{gauge}_routing_fraction"] = float(np.clip(fraction + 0.06 * rng.standard_normal(), 0.01, 0.99))
        for side in ("routing", "filtering"):
            ranks = _ranks(rng, 2 * e * top * (1.2 - 0.4 * depth), side == "routing")
            row |= {f"op_{gauge}_{side}_{name}": value for name, value in ranks.items()}
    return row | {name: float(rng.beta(0.5, 4.0)) for name in BEHAVIOURS}


def eigenvalues(layers: int = 30, heads: int = 9, e: int = 64, *, seed: int = 0) -> np.ndarray:
    """Complex `l h e` in conjugate pairs."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((layers, heads, e // 2)) + 1j * rng.standard_normal((layers, heads, e // 2))
    return np.concatenate([half, half.conj()], axis=-1) / math.sqrt(8 * e)


def folder(
    path: Path, name: str = "sample", *, kernel: bool = True, run: bool = True, rope: bool = True, seed: int = 0
) -> Path:
    """A survey of one model as `interp.attention.survey` leaves it; parts that are off are refused with a reason."""
    path.mkdir(parents=True)
    parts, table = Parts(path), rows(12, 6, e=16, seed=seed, kernel=kernel, run=run)
    rng = np.random.default_rng(seed)
    shape = {"layers": 12, "heads": 6, "groups": 2, "d": 96, "e": 16}
    facts = {"name": name, "family": "llama", "revision": None, "dtype": "float32", "shape": shape}
    write_json(path / "model.json", facts)
    held = {"kernel": (kernel, METRICS), "rope": (rope, ()), "operating": (run, ()), "behaviour": (run, BEHAVIOURS)}
    for part, (there, _) in held.items():
        parts.open(part, {"draws": 20, "offsets": 32, "seed": seed})
        if not there:
            parts.refuse(part, f"{name} has no {part} <script>")
            continue
        for layer in range(12):
            own = [{k: v for k, v in row.items() if _belongs(k, part)} for row in table if row["layer"] == layer]
            if part == "rope":
                own = [row | dict(zip(SECTORS, rng.dirichlet([4, 2, 1, 1]).tolist(), strict=True)) for row in own]
            parts.write(part, layer, own, 0.5, _arrays(rng, part))
    return path


SECTORS = tuple(f"rope_{name}" for name in ("even_symmetric", "even_skew", "odd_symmetric", "odd_skew"))


def _belongs(column: str, part: str) -> bool:
    home = "operating" if column.startswith("op_") else "behaviour" if column in BEHAVIOURS else "kernel"
    return column in ("layer", "head", "group") or home == part


def _arrays(rng: np.random.Generator, part: str) -> dict[str, np.ndarray]:
    if part == "kernel":
        values = eigenvalues(1, 6, 16, seed=int(rng.integers(1000)))[0]
        decay = np.exp(-np.arange(16) / 5) * np.ones((6, 1))
        signed = np.repeat(decay, 2, axis=1) * np.where(np.arange(32) % 2, -1.0, 1.0)
        return {"eigenvalues_real": values.real, "eigenvalues_imag": values.imag, "routing": decay, "filtering": signed}
    if part == "rope":
        curve = 0.4 + 0.1 * np.cos(np.arange(32) / 4) + 0.02 * rng.standard_normal((6, 32))
        return {"offset_routing_fraction": curve, "offset_phase_fraction": 1 - curve}
    return {}


def surgery() -> dict[str, Any]:
    """As `midlens attention surgery` writes it."""
    ways = (("position", "raw"), ("position", "key_centred"), ("kernel", "raw"))
    found = [_cut("none", None, None, 38.5)]
    for number, (level, gauge) in enumerate(ways):
        found += [_cut("all", level, gauge, 38.5)]
        found += [_cut("all", level, gauge, 1480.0 + number, beta=0.0), _cut("all", level, gauge, 900.0, alpha=0.0)]
        for kept in (1, 4, 16, 64):
            found += [_cut("all", level, gauge, 38.5 + 1000 / kept / (number + 1), planes=kept)]
            found += [_cut("all", level, gauge, 38.5 + 9000 / kept / (number + 1), modes=kept)]
    single = [_cut("none", None, None, 38.5), _cut("3.1", "position", "raw", 38.5 * math.exp(0.5), beta=0.0)]
    return {"format": "midlens-attention-surgery", "model": "toy", "all_heads": found, "single_heads": single}


def _cut(heads: str, level: str | None, gauge: str | None, perplexity: float, **changes: Any) -> Row:
    row: Row = {
        "heads": heads,
        "level": level,
        "gauge": gauge,
        "alpha": 1.0,
        "beta": 1.0,
        "planes": None,
        "modes": None,
    }
    row |= changes | {"n_tokens": 1000, "n_documents": 10}
    for name, value in (("ce", math.log(perplexity)), ("delta_ce", math.log(perplexity / 38.5))):
        row |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
    return row | {f"perplexity{end}": math.exp(row[f"ce{end}"]) for end in ("", "_low", "_high")}


def twins() -> dict[str, Any]:
    """As `midlens attention cascade` writes it: two seeds of one kind, one of another with narrower attention."""
    found = []
    for label, seed, attention, size in (
        ("sd", 0, "sd_token", 900),
        ("sd", 1, "sd_token", 900),
        ("std", 0, "standard", 500),
    ):
        perplexity = 6.0 + seed + 2 * (attention == "standard")
        rows = [{"layer": layer, "operating_erank2": 2.0 + layer + seed, "kernel_erank2": 20.0} for layer in range(4)]
        cuts = [
            {"mode": mode, "layers": n, "perplexity": perplexity, "ratio": 1 + n / 100, "low": 1.0, "high": 1.2}
            for mode in ("mean", "taylor", "zero")
            for n in range(1, 5)
        ]
        found.append(
            {"folder": f"{label}-{seed}", "label": label, "attention": attention, "seed": seed, "parameters": 1000}
            | {"attention_parameters": size, "bytes": 5000, "documents": 7, "ranks": rows, "linearised": cuts}
            | {"perplexity": perplexity, "perplexity_low": perplexity - 0.1, "perplexity_high": perplexity + 0.1}
            | {"log": [{"step": 2**n, "operating_erank2_0": 2.0, "operating_erank2_3": 2.0 + n} for n in range(5)]}
        )
    return {"format": "midlens-attention-twins", "twins": found}

"""An SAE's page: what it was measured on, how good it is, how it was trained, and a browser of its features.

    loss recovered = (CE zero-ablated - CE spliced) / (CE zero-ablated - CE clean)      delta CE = CE spliced - CE clean

The headline is the explained variance without massive rows. A handful of rows of massive norm (attention sinks) hold
most of the variance, so that the figure over all rows says how those few are treated and little else: it flatters an
SAE that was trained on them and punishes one that was not. It stands beside the headline with the number of such rows.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.page import (
    FeatureBrowser,
    FeatureLike,
    Figure,
    KeyValues,
    Metrics,
    Note,
    Page,
    Part,
    Row,
    Section,
    Table,
    Tile,
)
from saes.evaluate import Evaluation

_GLOSSARY = {
    "explained variance": "1 − Σ‖x − x̂‖² / Σ‖x − mean‖², both sums over all held-out rows, in float64",
    "L0": "mean number of active features per token",
    "dead": "features that never fired on the held-out tokens",
    "ΔCE": "cross-entropy with the SAE's reconstruction spliced in, less that of the clean model",
    "KL": "mean over tokens of KL(clean ‖ spliced) between the next-token distributions",
    "loss recovered": "share of the loss that zero-ablation adds which the reconstruction takes back",
    "density": "share of held-out tokens on which a feature fires",
    "promoted tokens": "tokens whose logits the feature's decoder row raises most, final norm folded in",
}


def write_report(
    path: str | os.PathLike[str],
    *,
    evaluation: Evaluation,
    features: Iterable[FeatureLike],
    training_log: Sequence[Mapping[str, object]],
    provenance: Mapping[str, object],
    timings: Mapping[str, float],
    norms: Float[Tensor, " n"] | Float[np.ndarray, " n"] | None = None,
    massive_rule: str = "norm over 10 × the median",
    population: str | None = None,
) -> Path:
    """Write the page of one SAE to `path` and return that path.

    `features` are read once (a generator is fine), `training_log` are the records of the trainer's JSONL metrics,
    `timings` seconds by stage. `provenance` says where the numbers come from and has to name the `"model"` as it should
    be read beside them, with its quantisation; `"site"` is shown in the title, everything else as it is, mappings as
    groups. `norms` of the held-out rows, massive ones included, add a plot. `massive_rule` says which rows are massive,
    `population` over which tokens densities were counted and contexts found (by default those of the evaluation).
    """
    model = provenance.get("model")
    if not isinstance(model, str) or not model.strip():
        raise InputError(
            f"provenance has to name the model under 'model' (a text such as 'SmolLM2-135M-Instruct, dequantised from "
            f"GGUF Q4_1'), because its name stands beside every number; got keys {sorted(provenance)}"
        )
    site = str(provenance.get("site", "")).strip()
    where = f"{model} · {site}" if site else model
    population = population or f"{evaluation.n_tokens:,} held-out tokens"
    sections = [
        _quality(evaluation, where, massive_rule),
        _plots(evaluation, where, norms, massive_rule),
        Section(
            "Features",
            [FeatureBrowser(features, population=population)],
            lead=f"{where}. Densities and contexts are over {population}; a token's shade is its "
            "activation relative to the feature's largest. Press / to search, ↑ and ↓ to walk the list.",
        ),
        _training(training_log, where),
        _provenance(provenance, timings),
    ]
    title = f"Sparse autoencoder · {site}" if site else "Sparse autoencoder"
    page = Page(
        title,
        f"{model} · {_width(evaluation):,} features",
        [part for part in sections if part is not None],
        footer=where,
    )
    return page.write(path)


def number(value: float, form: str = ".3f") -> str:
    """A number in a page's spelling: a true minus sign, and a dash where it is not finite."""
    return format(value, form).replace("-", "−") if math.isfinite(value) else "–"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "–"


def _width(evaluation: Evaluation) -> int:
    return len(evaluation.densities)


def _quality(e: Evaluation, where: str, rule: str) -> Section:
    rows = "row" if e.massive_rows == 1 else "rows"
    tiles = [
        Tile(
            "Explained variance",
            number(e.explained_variance),
            f"the headline leaves out {e.massive_rows:,} massive {rows}, see below"
            if e.massive_rows
            else "no held-out row is massive, see below",
            f"{number(e.explained_variance_all)} with massive rows" if e.massive_rows else "",
            headline=True,
        ),
        Tile("Loss recovered", _percent(e.loss_recovered), "of what zero-ablating the site costs"),
        Tile(
            "ΔCE",
            number(e.delta_ce, "+.3f"),
            f"{number(e.ce_clean)} clean → {number(e.ce_spliced)} spliced",
            "nats/token",
        ),
        Tile("KL(clean ‖ spliced)", number(e.kl), f"{number(e.kl_zero)} when zero-ablated", "nats/token"),
        Tile("L0", number(e.l0, ".1f"), f"active features per token, of {_width(e):,}"),
        Tile(
            "Dead features",
            _percent(e.dead_fraction),
            f"{round(e.dead_fraction * _width(e)):,} of {_width(e):,} never fired on {e.n_tokens:,} held-out tokens",
        ),
        Tile("Cosine similarity", number(e.cosine), "of a row and its reconstruction, mean"),
        Tile("Mean squared error", number(e.mse, ",.0f" if e.mse >= 100 else ".3g"), "summed over d, per token"),
    ]
    note = Note(
        f"Massive rows are activation rows of {rule} (here {e.massive_threshold:,.0f}), mostly attention sinks: "
        f"{e.massive_rows:,} of the held-out rows. A few of them can hold most of the variance: counting them flatters "
        "an SAE trained on them and punishes one that was not. They are kept out of training and of "
        "the headline, and pass unchanged where the SAE is spliced in."
    )
    lead = (
        f"{where}. Measured on {e.n_tokens:,} held-out tokens of {e.n_documents:,} documents that training never saw."
    )
    return Section("Quality", [Metrics(tiles), note], lead=lead)


def _plots(e: Evaluation, where: str, norms: Tensor | np.ndarray | None, rule: str) -> Section:
    from interp.figures.densities import density_histogram
    from interp.figures.losses import loss_bars
    from interp.figures.norms import norm_distribution

    densities = np.asarray(e.densities, dtype=np.float64)
    dead = int((densities == 0).sum())
    figures: list[Part] = [
        Figure(
            loss_bars(clean=e.ce_clean, spliced=e.ce_spliced, zero=e.ce_zero),
            "Next-token loss",
            f"Activations replaced by their reconstruction, or by zeros; {e.ce_tokens:,} predicted tokens.",
        ),
        Figure(
            density_histogram(densities, n_tokens=e.n_tokens),
            "How often features fire",
            f"{len(densities) - dead:,} features fired, {dead:,} never did. Dashed: one in {e.n_tokens:,} tokens.",
        ),
    ]
    if norms is not None:
        figures.append(
            Figure(
                norm_distribution(norms, threshold=e.massive_threshold),
                "Norms of activation rows",
                f"Dashed: the limit above which a row is massive, {rule}.",
            )
        )
    return Section("Distributions", [Row(figures)], lead=where)


def _training(log: Sequence[Mapping[str, object]], where: str) -> Section | None:
    if not log:
        return None
    from interp.figures.training import curve_names, training_curves

    figures: list[Part] = [
        Figure(training_curves(log, names=[name], columns=1), name[0].upper() + name[1:]) for name in curve_names(log)
    ]
    return Section("Training", [Row(figures, least=290)], lead=f"{where}. {len(log):,} logged steps.")


def _provenance(provenance: Mapping[str, object], timings: Mapping[str, float]) -> Section:
    facts = {key.replace("_", " "): value for key, value in provenance.items()}
    parts: list[Part] = [KeyValues({"Where the numbers come from": facts, "What the words mean": _GLOSSARY})]
    if timings:
        total = sum(timings.values())
        rows = [
            (stage, f"{seconds:.1f}", f"{seconds / total:.0%}" if total else "–") for stage, seconds in timings.items()
        ]
        parts.append(Table(("stage", "seconds", "share"), [*rows, ("total", f"{total:.1f}", "100%")], title="Time"))
    return Section("Provenance", parts)

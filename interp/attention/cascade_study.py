"""What trained twins show: perplexity, ranks by layer, what linearising their first layers costs, as one file.

    cascade_study(["runs/sd-0", "runs/standard-0"], "runs/cascade")  ->  runs/cascade/cascade.json

All twins are measured on the same held-out bytes; perplexities are per byte, intervals bootstrapped over documents.
Runs that differ in their seed alone have one `label`.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.attention.allocation import allocated_widths
from interp.attention.cascade import rank_rows
from interp.attention.linearise import MODES, LinearMode, document_losses, linearise_sweep, mean_operators
from interp.attention.sd_data import Windows, chosen_documents, windows
from interp.attention.sd_train import TwinTraining, load_twin
from interp.corpus import read_corpus, split
from interp.errors import InputError
from interp.loop import read_metrics
from interp.progress import bar
from interp.sealing import write_json
from interp.stats import bootstrap_ratio

CASCADE_FILE = "cascade.json"
CASCADE_FORMAT, _VERSION = "midlens-attention-twins", 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CascadeConfig:
    """Options of a study of twins."""

    documents: int = 200
    """Held-out documents that perplexities are measured on."""
    sequences: int = 16
    """Held-out documents behind ranks, the first full window of each."""
    calibration: int = 64
    """Full training windows behind mean operators."""
    linearise: bool = True
    """Measure what linearising the first layers costs: two runs of the text for each number of layers."""
    margin: float = 1.0
    """Of the head widths proposed from the ranks."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        for name in ("documents", "sequences", "calibration"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


def cascade_study(
    folders: Sequence[str | Path],
    out: str | Path,
    config: CascadeConfig | None = None,
    *,
    announce: Callable[[str], object] | None = None,
    progress: bool | None = None,
) -> Path:
    """Measure every twin, write `out/cascade.json` and the page; the folders are those of `midlens attention train`."""
    config, out = config or CascadeConfig(), Path(out)
    if not folders:
        raise InputError("no twin was given; name the folders of at least one, trained by `midlens attention train`")
    loaded = [(Path(folder), *load_twin(folder)) for folder in folders]
    if len(kinds := {(how.corpus, how.n_ctx) for _, _, how in loaded}) > 1:
        raise InputError(
            f"the twins were trained on different text or windows ({sorted(kinds)}); compare like with like"
        )
    corpus, n_ctx = kinds.pop()
    training, held_out = split(read_corpus(corpus))
    data = windows(chosen_documents(held_out, config.documents), n_ctx, once=True)
    calibration = windows(chosen_documents(training, config.documents), n_ctx)
    twins = []
    with bar(len(loaded), "twins", unit="twin", show=progress) as shown:
        for folder, model, how in loaded:
            twins.append(_facts(folder, how, model.sizes()) | _measured(model, data, calibration, config))
            shown.update(1)
    out.mkdir(parents=True, exist_ok=True)
    text = {"corpus": held_out.source, "digest": held_out.digest, "documents": config.documents}
    write_json(out / CASCADE_FILE, {"format": CASCADE_FORMAT, "version": _VERSION, "text": text, "twins": twins})
    try:
        from interp.attention_report.report import write_report

        write_report(out / "cascade.html", [], results=[out / CASCADE_FILE])
    except ImportError as error:
        (announce or _log.info)(f"cascade.html was not written: {error}")
    return out / CASCADE_FILE


def label_of(how: TwinTraining) -> str:
    """What a twin is, its seed apart."""
    shape = how.shape()
    said = [how.attention, how.size, "norm" if shape.norm else "no norm"]
    said += [f"ELU in the first {how.elu_first}"] if how.elu_first else []
    said += ["allocated widths"] if len(set(shape.head_widths)) > 1 else []
    return ", ".join(said)


def _facts(folder: Path, how: TwinTraining, sizes: dict[str, int]) -> dict[str, Any]:
    facts = {"folder": folder.name, "label": label_of(how), "attention": how.attention, "seed": how.seed}
    return facts | {"bytes_trained": how.total_bytes, **sizes, "log": _ranks_logged(folder)}


def _numbers(row: Mapping[str, Any]) -> list[float]:
    return [value for value in row.values() if isinstance(value, float)]


def _ranks_logged(folder: Path) -> list[dict[str, float]]:
    """The steps of the training log that hold ranks; none where there is no log."""
    return [line for line in read_metrics(folder / "training" / "metrics.jsonl") if "operating_erank2_0" in line]


@torch.no_grad()
def _measured(model: Any, data: Windows, calibration: Windows, config: CascadeConfig) -> dict[str, Any]:
    nats, counts = document_losses(model, data)
    kept = counts > 0
    nats, counts = nats[kept], counts[kept]
    if not np.isfinite(nats).all():
        raise InputError(
            "a twin's losses on held-out text are not finite: attention that is not normalised can overflow. Train it "
            "with a lower learning rate, or leave it out"
        )
    mean = nats.sum() / counts.sum()
    low, high = bootstrap_ratio(nats, counts, seed=config.seed)
    ranks = rank_rows(model, data.batch(data.spread(config.sequences))[0])
    found: dict[str, Any] = {
        **{f"perplexity{end}": float(np.exp(x)) for end, x in (("", mean), ("_low", low), ("_high", high))},
        "bytes": int(counts.sum()),
        "ranks": ranks,
        "proposed_widths": list(
            allocated_widths(
                [row["operating_erank2"] for row in ranks], max(model.config.head_widths), margin=config.margin
            )
        ),
        "linearised": [],
    }
    if config.linearise:
        modes: list[LinearMode] = [mode for mode in MODES if mode != "taylor" or "elu" not in model.config.kinds]
        means = mean_operators(model, calibration, most=config.calibration)
        rows = linearise_sweep(model, data, means, modes=modes)
        # JSON has no infinity, and a twin that overflows has no cost that could be drawn.
        found["linearised"] = [row for row in rows if all(map(math.isfinite, _numbers(row)))]
    return found | {"documents": int(np.count_nonzero(kept))}

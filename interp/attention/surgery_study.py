"""Surgery on a model by name: perplexity of held-out text against what is kept of routing and filtering, as one file.

    surgery_study("smollm2-135m", "runs/surgery")  ->  runs/surgery/surgery.json

For each level and gauge (`interp.attention.surgery`): nothing changed, each part removed, and each number of planes
(with every mode) and of modes (with every plane). Bases of the position level are made on the training half of the
corpus, losses are measured on the other half. What was measured is kept and not measured again.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from interp.attention.corpus_gram import corpus_grams
from interp.attention.operated import kernel_bases
from interp.attention.surgery import Surgery
from interp.attention.surgery_config import SurgeryConfig
from interp.attention.surgery_sweep import gauged, per_head, removals, surgery_sweep, truncations
from interp.attention.survey_config import parse_head
from interp.attention.survey_models import Model, as_runnable, open_model
from interp.attention.survey_text import even_windows
from interp.batching import Batch
from interp.corpus import read_corpus, split
from interp.errors import InputError
from interp.model import HookedModel
from interp.sealing import write_json

SURGERY_FILE = "surgery.json"
SURGERY_FORMAT, _VERSION = "midlens-attention-surgery", 1
_GAUGES: dict[str, Literal["raw", "key_centred"]] = {"position": "raw", "position-key-centred": "key_centred"}
_log = logging.getLogger(__name__)


def surgery_study(
    model: str | Path | Model,
    out: str | Path,
    config: SurgeryConfig | None = None,
    *,
    announce: Callable[[str], None] | None = None,
    progress: bool = True,
) -> Path:
    """Measure, write `out/surgery.json` and the page; `model` is a name, or a `HookedModel` in memory."""
    config, out = config or SurgeryConfig(), Path(out)
    named = isinstance(model, str | Path)
    opened = (
        open_model(str(model), dtype=config.dtype, device=config.device) if isinstance(model, str | Path) else model
    )
    runnable = as_runnable(opened)
    train, held_out = split(read_corpus(config.corpus), fraction=0.5)
    fed = even_windows(runnable, held_out, max_tokens=config.max_tokens, length=config.max_length)
    calibration = even_windows(runnable, train, max_tokens=config.calibration, length=config.max_length)
    refused: dict[str, str] = {}
    whole, single = [], []
    for base in _bases(runnable, calibration, config, refused, progress):
        whole += [base, *removals(base), *truncations(base, planes=config.planes, modes=config.modes)]
        single += per_head(runnable, removals(base)) if config.per_head else []
    for way, reason in refused.items():
        (announce or _log.info)(f"{way}: left out, {reason}")
    out.mkdir(parents=True, exist_ok=True)
    options = {"seed": config.seed, "progress": progress}
    record: dict[str, Any] = {
        "format": SURGERY_FORMAT,
        "version": _VERSION,
        "model": str(model) if named else runnable.name,
        "heads": list(config.heads) or "all",
        "refused": refused,
        "text": {"corpus": held_out.source, "digest": held_out.digest, "max_length": config.max_length},
        "all_heads": surgery_sweep(runnable, whole, fed, path=out / "surgery.jsonl", **options),
    }
    if single:
        record["single_heads"] = surgery_sweep(runnable, single, fed, path=out / "single_heads.jsonl", **options)
    write_json(out / SURGERY_FILE, record)
    _write_page(out, announce or _log.info)
    return out / SURGERY_FILE


def _bases(
    model: HookedModel, calibration: Sequence[Batch], config: SurgeryConfig, refused: dict[str, str], progress: bool
) -> list[Surgery]:
    """Each way with nothing changed yet; those that a model does not have go to `refused`."""
    heads: Any = [parse_head(head) for head in config.heads] or "all"
    found: list[Surgery] = []
    grams = corpus_grams(model, calibration, progress=progress) if set(config.ways) & set(_GAUGES) else {}
    for way in dict.fromkeys(config.ways):
        if way == "position-key-centred" and model.cfg.attn_cap is not None:
            refused[way] = "scores are soft-capped, so that a number added to all of a query's does change attention"
        elif way in _GAUGES:
            bases, means = gauged(grams, _GAUGES[way])
            found.append(Surgery(heads=heads, bases=bases, key_means=means))
        else:
            try:
                found.append(Surgery(heads=heads, level="kernel", bases=kernel_bases(model)))
            except InputError as reason:
                refused[way] = str(reason)
    if not found:
        raise InputError(f"no way of surgery is left for {model.name}: {'; '.join(refused.values())}")
    return found


def _write_page(out: Path, announce: Callable[[str], object]) -> None:
    try:
        from interp.attention_report.report import write_report

        write_report(out / "surgery.html", [], results=[out / SURGERY_FILE])
    except ImportError as error:
        announce(f"surgery.html was not written: {error}")

"""The routing and filtering of every head of one or more models, as tables: resumable, and one report of it all.

    survey(["gpt2", "smollm2-135m"], "runs/survey")  ->  runs/survey/survey.json

Of each model four parts are measured, each refused with its reason where a model does not have it:

    kernel     W_Q W_K^T of each head: energies, spectra, ranks, nulls        weights alone
    rope       the four sectors of a rotary kernel, and its offset curves     weights alone
    operating  q k^T on windows of text, in three gauges                      runs the model
    behaviour  previous-token, duplicate-token, induction and sink scores     runs the model

Parts are kept layer by layer, so that an interrupted survey goes on where it was, and a finished model is not loaded
again. In the manner of Jamil and Kapadia 2026 (arXiv 2605.18826); their own formulas and models are not known to us.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.attention import survey_parts
from interp.attention.survey_config import SurveyConfig
from interp.attention.survey_files import Parts, folder_name, write_arrays, write_csv, write_parquet
from interp.attention.survey_models import Model, family_of, name_of, open_model, shape_of
from interp.attention.survey_result import ModelSurvey
from interp.batching import Batch
from interp.errors import InputError
from interp.heap import trimmed
from interp.model import HookedModel
from interp.progress import bar
from interp.sealing import differences, only_writer, read_json, write_json

__all__ = ["ModelSurvey", "SurveyConfig", "survey"]

FILE, PAGE = "survey.json", "survey.html"
_FORMAT, _VERSION = "midlens-attention-survey", 1
_log = logging.getLogger(__name__)


def survey(
    models: Sequence[str | Path | HookedModel | nn.Module],
    out: str | Path,
    config: SurveyConfig | None = None,
    *,
    tokens: Sequence[Batch] | None = None,
    results: Sequence[str | Path] = (),
    announce: Callable[[str], None] | None = None,
    progress: bool = True,
) -> Path:
    """Measure every model, write `out/MODEL/…`, `out/survey.json` and the page; returns the path of the JSON.

    A model is a name (see `survey_models.FIVE`, presets, hub ids, folders) or one in memory. `tokens` replaces the
    corpus. `results` are files of surgery and of trained twins to show on the page as well.
    """
    config, out = config or SurveyConfig(), Path(out)
    if not models:
        raise InputError("no model was given; name at least one, such as smollm2-135m or gpt2")
    labels = [str(model) if isinstance(model, str | Path) else name_of(model) for model in models]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"{twice[0]} was given twice; name each model once")
    found = []
    for label, model in zip(labels, models, strict=True):
        folder = out / folder_name(label)
        folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder):
            found.append(_one(label, model, folder, config, tokens, announce or _log.info, progress))
    write_json(out / FILE, _record(found))
    _write_page(found, out, config, results)
    return out / FILE


@trimmed()
def _one(
    label: str,
    given: str | Path | Model,
    folder: Path,
    config: SurveyConfig,
    tokens: Sequence[Batch] | None,
    announce: Callable[[str], None],
    progress: bool,
) -> ModelSurvey:
    """Go on with one model until all its parts are there."""
    parts = Parts(folder)
    text = survey_parts.Text(config, tokens)
    asked = {part.name: part for part in survey_parts.chosen(config)}
    for part in asked.values():
        parts.open(part.name, part.settings(config, text))
    known = read_json(folder / "model.json", "survey") if (folder / "model.json").exists() else None
    if known is not None and known["name"] != label:
        raise InputError(f"{folder} holds the survey of {known['name']}, not of {label}: give another folder")
    if known is not None and not _missing(parts, asked, config, known["shape"]["layers"]):
        announce(f"{label}: all parts are there")
    else:
        loaded = given if not isinstance(given, str | Path) else None
        model = loaded or open_model(str(given), dtype=config.dtype, device=config.device)
        facts = _facts(label, model)
        if known is not None and (differ := differences(known, facts)):
            raise InputError(f"{folder} holds a survey of another model ({differ}); give another folder")
        config.check_heads(facts["shape"], label)
        write_json(folder / "model.json", facts)
        _fill(model, parts, asked, config, text, announce, progress)
    found = ModelSurvey.load(folder, asked)
    _export(found, config, announce)
    return found


def _facts(label: str, model: Model) -> dict[str, Any]:
    hf = model.hf if isinstance(model, HookedModel) else model
    dtype = next((str(p.dtype) for p in hf.parameters()), "none").removeprefix("torch.")
    revision = model.revision if isinstance(model, HookedModel) else None
    return {"name": label, "family": family_of(model), "revision": revision, "dtype": dtype, "shape": shape_of(model)}


def _missing(parts: Parts, asked: Iterable[str], config: SurveyConfig, n_layers: int) -> dict[str, list[int]]:
    """Layers that parts which were not refused still lack."""
    wanted = config.chosen_layers(n_layers)
    lacking = {name: [layer for layer in wanted if layer not in parts.layers(name)] for name in asked}
    return {name: layers for name, layers in lacking.items() if layers and parts.facts(name)["refused"] is None}


def _fill(
    model: Model,
    parts: Parts,
    asked: dict[str, survey_parts.Part],
    config: SurveyConfig,
    text: survey_parts.Text,
    announce: Callable[[str], None],
    progress: bool,
) -> None:
    """Compute what is missing; a part that the model does not have is refused with the reason."""
    for name, layers in _missing(parts, asked, config, shape_of(model)["layers"]).items():
        part = asked[name]
        batches = [[layer] for layer in layers] if part.by_layer else [layers]
        show = None if progress and part.by_layer else False
        with bar(len(batches), name, unit="layer", show=show) as shown:
            for batch in batches:
                try:
                    _measure(model, part, parts, batch, config, text, progress and not part.by_layer)
                except InputError as reason:
                    parts.refuse(name, str(reason))
                    announce(f"{name}: not measured, {reason}")
                    break
                shown.update(1)


def _measure(
    model: Model,
    part: survey_parts.Part,
    parts: Parts,
    layers: list[int],
    config: SurveyConfig,
    text: survey_parts.Text,
    progress: bool,
) -> None:
    start = time.perf_counter()
    with torch.no_grad():
        rows, arrays = part.measure(model, layers, config, text, progress)
    seconds = (time.perf_counter() - start) / len(layers)
    for layer in layers:
        own = [row for row in rows if row["layer"] == layer]
        parts.write(part.name, layer, own, seconds, arrays.get(layer, {}))


def _export(found: ModelSurvey, config: SurveyConfig, announce: Callable[[str], None]) -> None:
    """The table of heads and the arrays, in files for others to read."""
    if not found.rows:
        reasons = "; ".join(f"{name}: {part['refused']}" for name, part in found.parts.items())
        raise InputError(f"nothing could be measured of {found.name} ({reasons})")
    write_csv(found.folder / "heads.csv", found.rows)
    try:
        write_parquet(found.folder / "heads.parquet", found.rows)
    except InputError as error:
        announce(f"{error}; heads.csv holds the same table")
    if arrays := found.arrays():
        write_arrays(found.folder / "eigenvalues.safetensors", arrays)


def _record(found: Sequence[ModelSurvey]) -> dict[str, Any]:
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    models = [one.summary() | {"folder": one.folder.name} for one in found]
    return {"format": _FORMAT, "version": _VERSION, "machine": machine, "models": models}


def _write_page(found: Sequence[ModelSurvey], out: Path, config: SurveyConfig, results: Sequence[str | Path]) -> None:
    try:
        from interp.attention_report.report import write_report

        write_report(out / PAGE, found, results=results, heads=config.heads)
    except ImportError as error:
        _log.warning("%s was not written: %s", out / PAGE, error)

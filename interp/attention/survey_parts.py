"""The parts of a survey: what each depends on, and how it is measured on some layers of a model."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from interp.attention.behaviour import behaviour_rows
from interp.attention.heads import kernel
from interp.attention.operating import operating_rows
from interp.attention.rope import Rotation
from interp.attention.sectors import rope_rows, sectors
from interp.attention.survey_config import SurveyConfig
from interp.attention.survey_files import Arrays, Row
from interp.attention.survey_models import Model, as_runnable
from interp.attention.survey_text import even_windows
from interp.attention.table import kernel_rows
from interp.batching import Batch
from interp.corpus import Corpus, read_corpus
from interp.model import HookedModel
from interp.sealing import digest

Found = tuple[list[Row], dict[int, Arrays]]


class Text:
    """The text behind the operating part: read when it is needed, known by its digest."""

    def __init__(self, config: SurveyConfig, tokens: Sequence[Batch] | None) -> None:
        self.config, self.tokens = config, tokens

    @cached_property
    def corpus(self) -> Corpus:
        return read_corpus(self.config.corpus)

    @cached_property
    def digest(self) -> str:
        if self.tokens is None:
            return self.corpus.digest
        return digest([[batch.tokens.tolist(), batch.lengths.tolist()] for batch in self.tokens])

    def batches(self, model: HookedModel) -> list[Batch]:
        """What the model is fed."""
        config = self.config
        if self.tokens is not None:
            return list(self.tokens)
        return even_windows(
            model,
            self.corpus,
            max_tokens=config.max_tokens,
            length=config.max_length,
            prepend_bos=config.prepend_bos,
        )


class Part(NamedTuple):
    """One part: `measure(model, layers, config, text, progress)` gives rows and, by layer, arrays."""

    name: str
    by_layer: bool
    """Whether it is measured, and kept, one layer at a time."""
    settings: Callable[[SurveyConfig, Text], dict[str, Any]]
    measure: Callable[[Model, list[int], SurveyConfig, Text, bool], Found]


def chosen(config: SurveyConfig) -> list[Part]:
    """The parts asked for."""
    wanted = {"kernel": True, "rope": config.rope, "operating": config.operating, "behaviour": config.behaviour}
    return [part for part in _PARTS if wanted[part.name]]


def _picked(*names: str) -> Callable[[SurveyConfig, Text], dict[str, Any]]:
    return lambda config, text: {name: getattr(config, name) for name in names}


def _operating_settings(config: SurveyConfig, text: Text) -> dict[str, Any]:
    names = ("skip_first", "dtype") if text.tokens is not None else _FED
    return {name: getattr(config, name) for name in names} | {"text": text.digest}


def _kernel(model: Model, layers: list[int], config: SurveyConfig, text: Text, progress: bool) -> Found:
    rows: list[Row] = []
    arrays: dict[int, Arrays] = {}
    options = {"fold_norm": config.fold_norm, "biases": config.biases}
    for layer in layers:
        rows += kernel_rows(model, layers=[layer], draws=config.draws, seed=config.seed, progress=progress, **options)
        m = kernel(model, layer, **options).bilinear
        values = m.eigenvalues()
        arrays[layer] = {
            "eigenvalues_real": values.real.cpu().numpy(),
            "eigenvalues_imag": values.imag.cpu().numpy(),
            "routing": m.routing().values.cpu().numpy(),
            "filtering": m.filtering().signed.cpu().numpy(),
        }
    return rows, arrays


def _rope(model: Model, layers: list[int], config: SurveyConfig, text: Text, progress: bool) -> Found:
    runnable, arrays = as_runnable(model), {}
    options = {"fold_norm": config.fold_norm, "biases": config.biases}
    rows = rope_rows(runnable, offsets=range(config.offsets), layers=layers, progress=progress, **options)
    for layer in layers:
        m, rotation = kernel(runnable, layer, **options).bilinear, Rotation.of(runnable, layer)
        over = sectors(m, rotation, range(config.offsets))
        arrays[layer] = {
            "offset_routing_fraction": over.routing_fraction.cpu().numpy(),
            "offset_phase_fraction": over.phase_fraction.cpu().numpy(),
        }
    return rows, arrays


def _operating(model: Model, layers: list[int], config: SurveyConfig, text: Text, progress: bool) -> Found:
    runnable = as_runnable(model)
    fed = text.batches(runnable)
    return operating_rows(runnable, fed, layers=layers, skip_first=config.skip_first, progress=progress), {}


def _behaviour(model: Model, layers: list[int], config: SurveyConfig, text: Text, progress: bool) -> Found:
    return behaviour_rows(as_runnable(model), seed=config.seed, layers=layers, progress=progress), {}


_FED = ("corpus", "max_tokens", "max_length", "prepend_bos", "skip_first", "dtype")
_PARTS = (
    Part("kernel", True, _picked("fold_norm", "biases", "draws", "seed", "dtype"), _kernel),
    Part("rope", True, _picked("fold_norm", "biases", "offsets", "dtype"), _rope),
    Part("operating", False, _operating_settings, _operating),
    Part("behaviour", False, _picked("seed", "dtype"), _behaviour),
)

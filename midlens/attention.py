"""`midlens attention survey`, `surgery`, `train`, `cascade`: routing and filtering of attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from interp.attention.cascade_study import CascadeConfig
from interp.attention.sd_train import TwinTraining
from interp.attention.surgery_config import SurgeryConfig
from interp.attention.survey_config import SurveyConfig
from midlens.console import Command, Planned, finish, say


@dataclass(frozen=True, kw_only=True)
class Survey(SurveyConfig, Planned):
    """Measure every head of one or more models: one table, one page.

    The same command again goes on where it was; finished models are not loaded again. The five models of most accounts
    of the paper: gpt2 gpt2-medium gpt2-large pythia-410m bert-base."""

    example: ClassVar[str] = "midlens attention survey smollm2-135m gpt2 --out runs/survey"
    figures: ClassVar[str] = "models (names of those measured)"

    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Presets (smollm2-135m, llama-3.1-8b, gemma-2-9b), short names (gpt2, pythia-410m, bert-base), hub ids, folders or
    .gguf files."""
    out: Path
    """Folder of the survey."""
    results: tuple[Path, ...] = ()
    """Files of surgery and of trained twins to show on the page as well."""

    def plan(self) -> Mapping[str, object]:
        """The models and what would be measured; no weight is loaded."""
        from interp.study_outline import survey_outline

        return survey_outline(self.models, self.out, self.settings(SurveyConfig))

    def run(self) -> int:
        """Measure; the path of the summary, a JSON file, is the last line."""
        from interp.attention.survey import PAGE, survey

        config = self.settings(SurveyConfig)
        path = survey(self.models, self.out, config, results=self.results, announce=say)
        return finish(self.out / PAGE, path)


@dataclass(frozen=True, kw_only=True)
class SurgeryCommand(SurgeryConfig, Command):
    """Perplexity of held-out text against what is kept of routing and filtering, in all heads or chosen ones.

    What was measured is kept: the same command again measures what is missing."""

    example: ClassVar[str] = "midlens attention surgery smollm2-135m --out runs/surgery"

    model: Annotated[str, tyro.conf.Positional]
    """A preset, a hub id, a local folder or a .gguf file."""
    out: Path
    """Folder of the study."""

    def run(self) -> int:
        """Measure; the path of the figures, a JSON file, is the last line."""
        from interp.attention.surgery_study import surgery_study

        config = self.settings(SurgeryConfig)
        path = surgery_study(self.model, self.out, config, announce=say)
        return finish(self.out / "surgery.html", path)


@dataclass(frozen=True, kw_only=True)
class TrainTwin(TwinTraining, Command):
    """Train a small language model with S-D, standard or ELU attention; the same command goes on after a kill."""

    example: ClassVar[str] = "midlens attention train --out runs/twin"

    out: Path
    """Folder of the twin."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""

    def run(self) -> int:
        """Train; the path of the model's file is the last line."""
        from interp.attention.sd_train import train_twin
        from interp.loading import parse_device

        config = self.settings(TwinTraining)
        path = train_twin(config, self.out, device=parse_device(self.device), announce=say)
        return finish(path)


@dataclass(frozen=True, kw_only=True)
class Cascade(CascadeConfig, Command):
    """Compare trained twins: perplexity, ranks by layer and over training, linearised layers, proposed head widths."""

    example: ClassVar[str] = "midlens attention cascade runs/twin-a runs/twin-b --out runs/cascade"

    twins: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of `midlens attention train`; those that differ in their seed alone are put together."""
    out: Path
    """Folder of the comparison."""

    def run(self) -> int:
        """Measure; the path of the figures, a JSON file, is the last line."""
        from interp.attention.cascade_study import cascade_study

        config = self.settings(CascadeConfig)
        path = cascade_study(self.twins, self.out, config, announce=say)
        return finish(self.out / "cascade.html", path)

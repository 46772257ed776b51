"""`midlens attention survey`, `surgery`, `train`, `cascade`: routing and filtering of attention."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from interp.attention.cascade_study import CascadeConfig
from interp.attention.sd_train import TwinTraining
from interp.attention.surgery_config import SurgeryConfig
from interp.attention.survey_config import SurveyConfig
from midlens.console import say

_sub = tyro.conf.subcommand


@dataclass(frozen=True, kw_only=True)
class Survey(SurveyConfig):
    """Measure every head of one or more models: one table, one page.

    The same command again goes on where it was; finished models are not loaded again. The five models of most accounts
    of the paper: gpt2 gpt2-medium gpt2-large pythia-410m bert-base."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Presets (smollm2-135m, llama-3.1-8b, gemma-2-9b), short names (gpt2, pythia-410m, bert-base), hub ids, folders or
    .gguf files."""
    out: Path
    """Folder of the survey."""
    results: tuple[Path, ...] = ()
    """Files of surgery and of trained twins to show on the page as well."""

    def run(self) -> int:
        """Measure; the path of the summary, a JSON file, is the last line."""
        from interp.attention.survey import PAGE, survey

        config = SurveyConfig(**{field.name: getattr(self, field.name) for field in fields(SurveyConfig)})
        path = survey(self.models, self.out, config, results=self.results, announce=say)
        say(str((self.out / PAGE).resolve()))
        say(str(path.resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class SurgeryCommand(SurgeryConfig):
    """Perplexity of held-out text against what is kept of routing and filtering, in all heads or chosen ones.

    What was measured is kept: the same command again measures what is missing."""

    model: Annotated[str, tyro.conf.Positional]
    """A preset, a hub id, a local folder or a .gguf file."""
    out: Path
    """Folder of the study."""

    def run(self) -> int:
        """Measure; the path of the figures, a JSON file, is the last line."""
        from interp.attention.surgery_study import surgery_study

        config = SurgeryConfig(**{field.name: getattr(self, field.name) for field in fields(SurgeryConfig)})
        path = surgery_study(self.model, self.out, config, announce=say)
        say(str((self.out / "surgery.html").resolve()))
        say(str(path.resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class TrainTwin(TwinTraining):
    """Train a small language model with S-D, standard or ELU attention; the same command goes on after a kill."""

    out: Path
    """Folder of the twin."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""

    def run(self) -> int:
        """Train; the path of the model's file is the last line."""
        from interp.attention.sd_train import train_twin
        from interp.loading import parse_device

        config = TwinTraining(**{field.name: getattr(self, field.name) for field in fields(TwinTraining)})
        path = train_twin(config, self.out, device=parse_device(self.device), announce=say)
        say(str(path.resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Cascade(CascadeConfig):
    """Compare trained twins: perplexity, ranks by layer and over training, linearised layers, proposed head widths."""

    twins: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of `midlens attention train`; those that differ in their seed alone are put together."""
    out: Path
    """Folder of the comparison."""

    def run(self) -> int:
        """Measure; the path of the figures, a JSON file, is the last line."""
        from interp.attention.cascade_study import cascade_study

        config = CascadeConfig(**{field.name: getattr(self, field.name) for field in fields(CascadeConfig)})
        path = cascade_study(self.twins, self.out, config, announce=say)
        say(str((self.out / "cascade.html").resolve()))
        say(str(path.resolve()))
        return 0


_Command = (
    Annotated[Survey, _sub("survey", description="Measure every head of one or more models.")]
    | Annotated[SurgeryCommand, _sub("surgery", description="Perplexity against what is kept of attention's parts.")]
    | Annotated[TrainTwin, _sub("train", description="Train a twin with S-D, standard or ELU attention.")]
    | Annotated[Cascade, _sub("cascade", description="Compare trained twins: ranks by layer, linearised layers.")]
)


@dataclass(frozen=True)
class Attention:
    """Routing and filtering of attention: survey models, operate on them, train twins and compare them."""

    command: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[_Command]]

    def run(self) -> int:
        """Run the command that was chosen."""
        return self.command.run()

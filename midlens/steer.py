"""`midlens steer fit`, `apply`, `evaluate`, `fold`: affine steering from contrasting texts."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from interp.steering.apply_job import ApplyConfig
from interp.steering.evaluate_job import EvaluateConfig
from interp.steering.fit_job import FitConfig
from midlens.console import say

_sub = tyro.conf.subcommand


@dataclass(frozen=True, kw_only=True)
class Fit(FitConfig):
    """Fit a steering from a contrast set, or from files of texts.

    Sites that do not show the concept are left out; what was found at each is printed."""

    model: str = "smollm2-135m"
    """A preset, a hub id, a local folder or a .gguf file."""
    out: Path
    """Folder of the steering."""

    def run(self) -> int:
        """Fit; the folder is the last line."""
        from interp.steering.fit_job import fit_job

        config = FitConfig(**{field.name: getattr(self, field.name) for field in fields(FitConfig)})
        fit_job(self.model, config, self.out, announce=say)
        say(str(self.out.resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Apply(ApplyConfig):
    """Generate from prompts under a steering."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Prompts; more can come from a file."""
    steering: Path
    """Folder of the steering."""
    model: str = "smollm2-135m"
    """The model it was fitted on."""
    file: Path | None = None
    """Prompts, one a line in a .txt, {"text"} a line in a .jsonl."""
    json: bool = False
    """One JSON object a line."""
    force: bool = False
    """Also steer a model with other weights."""

    def run(self) -> int:
        """Generate and print."""
        from interp.steering.apply_job import apply_job
        from interp.steering.fit_job import read_texts

        config = ApplyConfig(**{field.name: getattr(self, field.name) for field in fields(ApplyConfig)})
        prompts = [*self.prompts, *(read_texts(self.file) if self.file else ())]
        for row in apply_job(self.model, self.steering, prompts, config, force=self.force):
            named = "\n".join(f"{name}: {text}" for name, text in row.items())
            say(json.dumps(row, ensure_ascii=False) if self.json else f"{named}\n")
        return 0


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluateConfig):
    """Measure steerings beside baselines: what they achieve, what they cost; one JSON file, one page.

    What was done is kept: the same command again goes on where it was."""

    steerings: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of steerings; baselines are matched to the first."""
    model: str = "smollm2-135m"
    """The model they were fitted on."""
    out: Path
    """Folder of the evaluation."""
    force: bool = False
    """Also evaluate on a model with other weights."""

    def run(self) -> int:
        """Measure; the path of the figures, a JSON file, is the last line."""
        from interp.steering.evaluate_job import EVALUATION_FILE, PAGE, evaluate_job

        config = EvaluateConfig(**{field.name: getattr(self, field.name) for field in fields(EvaluateConfig)})
        evaluate_job(self.model, self.steerings, self.out, config, force=self.force, announce=say)
        say(str((self.out / PAGE).resolve()))
        say(str((self.out / EVALUATION_FILE).resolve()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Write a steering into weights: a Hugging Face folder, or a LoRA adapter with a bias."""

    steering: Path
    """Folder of the steering; it must edit outputs of attention or MLP, on all tokens."""
    model: str = "smollm2-135m"
    """The model it was fitted on."""
    out: Path
    """A new folder."""
    lora: bool = False
    """Write an adapter in the files of the PEFT library, not the whole model."""
    beta: float | None = None
    """Strength at every site; by default each site's own."""
    force: bool = False
    """Also fold into a model with other weights."""

    def run(self) -> int:
        """Fold; the folder is the last line."""
        from interp.model import HookedModel
        from interp.steering.folded_files import save_folded
        from interp.steering.lora import save_lora
        from interp.steering.steering import Steering

        steering = Steering.load(self.steering)
        steering = steering if self.beta is None else steering.at(self.beta)
        model = HookedModel.load(self.model, dtype="float32")
        (save_lora if self.lora else save_folded)(model, steering, self.out, force=self.force)
        say(str(self.out.resolve()))
        return 0


_Command = (
    Annotated[Fit, _sub("fit", description="Fit a steering from contrasting texts.")]
    | Annotated[Apply, _sub("apply", description="Generate from prompts under a steering.")]
    | Annotated[Evaluate, _sub("evaluate", description="Measure steerings beside baselines; one page.")]
    | Annotated[Fold, _sub("fold", description="Write a steering into weights, or into a LoRA adapter.")]
)


@dataclass(frozen=True)
class Steer:
    """Affine steering: fit, apply, evaluate, fold."""

    command: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[_Command]]

    def run(self) -> int:
        """Run the command that was chosen."""
        return self.command.run()

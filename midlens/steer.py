"""`midlens steer fit`, `apply`, `evaluate`, `fold`: affine steering from contrasting texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from interp.steering.apply_job import ApplyConfig
from interp.steering.evaluate_job import EvaluateConfig
from interp.steering.fit_job import FitConfig
from midlens.console import Command, Planned, finish, item, say


@dataclass(frozen=True, kw_only=True)
class Fit(FitConfig, Planned):
    """Fit a steering from a contrast set, or from files of texts.

    Sites that do not show the concept are left out; what was found at each is printed."""

    example: ClassVar[str] = "midlens steer fit --contrast horse-motorcycle --sites resid_post.8 --out runs/horses"
    figures: ClassVar[str] = "sites"

    model: str = "smollm2-135m"
    """A preset, a hub id, a local folder or a .gguf file."""
    out: Path
    """Folder of the steering."""

    def plan(self) -> Mapping[str, object]:
        """The sites and the texts; no weight is loaded."""
        from interp.study_outline import fit_outline

        return fit_outline(self.model, self.settings(FitConfig), self.out)

    def run(self) -> int:
        """Fit; the folder is the last line."""
        from interp.steering.fit_job import fit_job

        config = self.settings(FitConfig)
        steering = fit_job(self.model, config, self.out, announce=say)
        return finish(self.out, figures={"sites": list(map(str, steering.edits))})


@dataclass(frozen=True, kw_only=True)
class Apply(ApplyConfig, Command):
    """Generate from prompts under a steering."""

    example: ClassVar[str] = "midlens steer apply 'Tell me of your journey.' --steering runs/horses"
    figures: ClassVar[str] = "the prompt and the texts"
    streams: ClassVar[bool] = True

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Prompts; more can come from a file."""
    steering: Path
    """Folder of the steering."""
    model: str = "smollm2-135m"
    """The model it was fitted on."""
    file: Path | None = None
    """Prompts, one a line in a .txt, {"text"} a line in a .jsonl."""
    force: bool = False
    """Also steer a model with other weights."""

    def run(self) -> int:
        """Generate and print."""
        from interp.steering.apply_job import apply_job
        from interp.steering.fit_job import read_texts

        config = self.settings(ApplyConfig)
        prompts = [*self.prompts, *(read_texts(self.file) if self.file else ())]
        for row in apply_job(self.model, self.steering, prompts, config, force=self.force):
            named = "\n".join(f"{name}: {text}" for name, text in row.items())
            item(row, f"{named}\n")
        return 0


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluateConfig, Planned):
    """Measure steerings beside baselines: what they achieve, what they cost; one JSON file, one page.

    What was done is kept: the same command again goes on where it was."""

    example: ClassVar[str] = (
        "midlens steer evaluate runs/horses --contrast horse-motorcycle --out runs/horses-evaluated"
    )

    steerings: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of steerings; baselines are matched to the first."""
    model: str = "smollm2-135m"
    """The model they were fitted on."""
    out: Path
    """Folder of the evaluation."""
    force: bool = False
    """Also evaluate on a model with other weights."""

    def plan(self) -> Mapping[str, object]:
        """What would be generated and measured; no weight of the model is loaded."""
        from interp.study_outline import evaluate_outline

        return evaluate_outline(self.model, self.steerings, self.settings(EvaluateConfig), self.out)

    def run(self) -> int:
        """Measure; the path of the figures, a JSON file, is the last line."""
        from interp.steering.evaluate_job import EVALUATION_FILE, PAGE, evaluate_job

        config = self.settings(EvaluateConfig)
        evaluate_job(self.model, self.steerings, self.out, config, force=self.force, announce=say)
        return finish(self.out / PAGE, self.out / EVALUATION_FILE)


@dataclass(frozen=True, kw_only=True)
class Fold(Command):
    """Write a steering into weights: a Hugging Face folder, or a LoRA adapter with a bias.

    For a steering that was fitted at outputs of modules (`midlens steer fit --sites mlp_out.8 --out runs/horses-mlp`):
    the residual stream is a sum of what many write, so no single weight makes it."""

    example: ClassVar[str] = "midlens steer fold --steering runs/horses-mlp --out runs/folded"

    steering: Path
    """Folder of the steering; it must edit outputs of attention or MLP (attn_out, mlp_out), on all tokens."""
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
        return finish(self.out)

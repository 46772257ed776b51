"""`midlens sweep`: many SAEs from one read of a store, or one pass of a model, and their Pareto plot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from midlens.console import finish, say
from midlens.rows import RowsOptions
from saes.recipe import TrainConfig, Training


@dataclass(frozen=True, kw_only=True)
class Sweep(RowsOptions):
    """Train every combination of the lists given, from one read of the rows.

    The same command again continues after an interruption; longer lists add members.

    `out` gets a folder for each SAE, `sweep.json` and the page `sweep.html`. With a store, `model` is the one that
    delta CE is measured on, by default the one named in the store."""

    example: ClassVar[str] = (
        "midlens sweep --store runs/store --k 16 32 64 --expansions 8 --base.epochs 2 --out runs/sweep"
    )
    figures: ClassVar[str] = "one object a member, by name"

    architectures: tuple[Training, ...] = ()
    """What is trained; by default topk."""
    widths: tuple[int, ...] = ()
    """Numbers of features."""
    expansions: tuple[int, ...] = ()
    """Numbers of features as multiples of the activations' width, instead of `widths`."""
    k: tuple[int, ...] = ()
    """Active features per token, where the architecture has them."""
    lr: tuple[float, ...] = ()
    """Peak learning rates."""
    sparsity: tuple[float, ...] = ()
    """Coefficients of the sparsity penalty, where the architecture has one."""
    seeds: tuple[int, ...] = ()
    """Each seed has its own order of the rows, and so costs a read of its own."""
    grid: Path | None = None
    """Instead of these lists, a JSON file with a grid or a list of grids (`saes.sweep_config`)."""
    base: TrainConfig = field(default_factory=TrainConfig)
    """What all members share."""
    held_out: Path | None = None
    """A store of held-out activations to evaluate on."""
    tokens: Path | None = None
    """The token file that the held-out store was made from: delta CE and KL are measured on it."""
    loss_tokens: int = 8_000
    """Predicted tokens behind delta CE and KL; N SAEs cost N + 2 runs of the whole model for each."""

    def plan(self) -> Mapping[str, object]:
        """The members, the rows and what they take; no weight is loaded."""
        from saes.outline import sweep_outline

        found = self.outlined_rows()
        trained = sweep_outline(self._members(), found.shape, found.rows, self.out, device=self.device)
        return {**found.plan, **trained}

    def run(self) -> int:
        """Train, evaluate, print the table and where the page is."""
        from interp.errors import InputError
        from interp.store import ActivationStore
        from interp.tokenfile import TokenFile
        from saes.sweep import sweep
        from saes.sweep_config import configs_of
        from saes.sweep_summary import PAGE

        members = self._members()
        first = configs_of(members)[0]
        held_out = None if self.held_out is None else ActivationStore.open(self.held_out)
        tokens = None if self.tokens is None else TokenFile.open(self.tokens)
        if tokens is not None and held_out is None:
            raise InputError("--tokens is for delta CE on held-out text: give the store made from it too, --held-out")
        model = None if tokens is None or held_out is None else self._model(held_out)
        rows, site = self.rows(first.batch_size, first.seed, model=model if self.store is None else None)
        summary = sweep(
            rows,
            members,
            self.out,
            site=site,
            site_out=self.site_out,
            evaluate_on=held_out,
            model=model,
            tokens=tokens,
            max_ce_tokens=self.loss_tokens,
            device=self.chosen_device(),
            track=self.track,
            announce=say,
        )
        say(summary.text())
        figures = summary.figures()
        return finish(self.out / PAGE, figures=figures, status=0 if figures else 1)

    def _members(self) -> Any:
        from interp.errors import InputError
        from saes.sweep import Grid, load_grids

        lists = {
            "d_sae": self.widths,
            "expansion": self.expansions,
            "k": self.k,
            "lr": self.lr,
            "sparsity": self.sparsity,
            "seed": self.seeds,
        }
        if self.grid is None:
            return Grid(architecture=self.architectures, base=self.base, **lists)
        if self.base != TrainConfig() or self.architectures or any(lists.values()):
            raise InputError("--grid holds the whole grid: put the lists and the base settings into the file")
        return load_grids(self.grid)

    def _model(self, held_out: Any) -> Any:
        """The whole model; a stream runs on it too."""
        from interp.errors import InputError
        from interp.loading import parse_dtype
        from interp.model import HookedModel

        if (name := self.model or held_out.specs[0].model) is None:
            raise InputError(f"{self.held_out} does not say which model it is of: name it with --model")
        where = {"device": None if self.device_map else self.chosen_device(), **self.placing()}
        return HookedModel.load(name, dtype=parse_dtype(self.model_dtype), **where)

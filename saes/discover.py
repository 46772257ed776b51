"""The main job in one call: from a model and text to a trained, evaluated, readable SAE and its report.

    out/config.json               the options of this run; another configuration is refused in the same folder
    out/tokens/{train,held_out}   TokenFiles             out/store/{train,held_out}   ActivationStores
    out/sae/                      the SAE and its training metrics
    out/evaluation.json   out/features.jsonl   out/timings.json   out/report.html

Every stage can be interrupted and picks up what is there: the same call goes on.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.corpus import read_corpus, split
from interp.extract import extract
from interp.heap import trimmed
from interp.lens import Lens
from interp.loading import parse_dtype
from interp.loop import read_metrics
from interp.model import HookedModel
from interp.placement import PLACING, PlacingConfig
from interp.presets import default_site
from interp.sealing import only_writer
from interp.sites import Point, Site
from interp.store import ActivationStore
from interp.tokenfile import TokenFile, tokenize
from saes.evaluate import Evaluation, evaluate, row_norms, threshold_of
from saes.examples import Source, load_features, read_features, write_features
from saes.recipe import Training
from saes.report import write_report
from saes.sae import SAE
from saes.stages import Stages, claim_run
from saes.train import TrainConfig, fit

SIDES = ("train", "held_out")
STREAM = (Point.EMBED, Point.RESID_PRE, Point.ATTN_OUT, Point.RESID_MID, Point.MLP_OUT, Point.RESID_POST)
"""Sites as wide as the residual stream."""


@dataclass(frozen=True)
class DiscoverConfig(PlacingConfig):
    """Options of one run; the defaults are the demo: SmolLM2 at the middle of its depth, 200k tokens, width 8 d."""

    model: str = "smollm2-135m"
    """A preset, a hub id, a local folder or a GGUF file."""
    site: str | None = None
    """Where to read, e.g. `blocks.15.hook_resid_post`; the preset's own mid-depth site by default."""
    corpus: str = "builtin"
    """`builtin`, a .txt / .jsonl / .parquet file, a folder of .txt, or `hf:NAME[:SPLIT]`."""
    out: Path = Path("runs/discover")
    """The run's folder; call again with the same options to go on after an interruption."""
    train_tokens: int = 200_000
    """Tokens of training text."""
    held_out_tokens: int = 30_000
    """Tokens of held-out text, from other documents."""
    max_length: int = 256
    """Longest sequence fed to the model; longer documents are cut into windows."""
    dtype: str | None = None
    """Precision of the model: float32, bfloat16, float16; by default bfloat16 where the hardware has it."""
    architecture: Training = "topk"
    """What is trained; see `midlens train --help` for each."""
    expansion: int = 8
    """Width of the dictionary as a multiple of the model's width."""
    k: int = 32
    """Active features per token: exactly (topk), on average (batchtopk), or aimed at (jumprelu)."""
    sparsity: float | None = None
    """Coefficient of the sparsity penalty (standard, gated, jumprelu)."""
    epochs: float = 8.0
    """Passes over the stored activations; more helps while tokens are few."""
    loss_tokens: int = 8_000
    """Held-out tokens on which the model is run clean, spliced and zero-ablated (CE, KL)."""
    examples: int = 8
    """Top contexts kept per feature."""
    seed: int = 0
    """Orders, initialisation and samples follow from it."""

    def recipe(self) -> TrainConfig:
        """How the SAE is trained."""
        return TrainConfig(
            architecture=self.architecture,
            expansion=self.expansion,
            k=self.k,
            sparsity=self.sparsity,
            epochs=self.epochs,
            seed=self.seed,
        )


@trimmed()
def discover(config: DiscoverConfig, *, say: Callable[[str], None] | None = None) -> Path:
    """Run every stage that is not finished yet; returns the path of the report. `say` gets lines of text."""
    config.out.mkdir(parents=True, exist_ok=True)
    with only_writer(config.out):
        return _discover(config, say or (lambda line: None))


def _discover(config: DiscoverConfig, say: Callable[[str], None]) -> Path:
    out, recipe = config.out, config.recipe()
    claim_run(out, _options(config))
    stages = Stages(out / "timings.json", say)
    with stages.stage("model", config.model):
        model = HookedModel.load(config.model, dtype=parse_dtype(config.dtype), **config.placing())
        site = _site(config, model)
        if site.point in STREAM:  # found out now, not after the extraction
            recipe.shape(model.cfg.d_model)
    with stages.stage("text", f"{config.train_tokens:,} + {config.held_out_tokens:,} tokens of {config.corpus}"):
        tokens = _tokens(config, model)
    with stages.stage("activations", str(site)):
        stores = _stores(config, model, tokens, site, say)
    with stages.stage("training", f"{config.architecture}, {config.expansion} x {model.cfg.d_model} features"):
        sae = fit(stores["train"], recipe, out / "sae", site=site, device=model.device).to(model.device)
    with stages.stage("evaluation", f"{len(stores['held_out']):,} held-out rows"):
        evaluation = _evaluation(config, sae, stores["held_out"], site, model, tokens["held_out"])
    with stages.stage("features", "contexts, densities, promoted and suppressed tokens"):
        _features(config, sae, stores, tokens, site, model)
    with stages.stage("report", str(out / "report.html")):
        path = write_report(
            out / "report.html",
            evaluation=evaluation,
            features=load_features(out / "features.jsonl"),
            training_log=read_metrics(out / "sae" / "training" / "metrics.jsonl"),
            provenance=_provenance(config, model, site, tokens, stores, sae),
            # its own time would be known only to a second run: the page is the same however often it is written
            timings={name: taken for name, taken in stages.seconds.items() if name != "report"},
            norms=row_norms(stores["held_out"], site),
            population=" and ".join(f"{len(stores[s]):,} {s.replace('_', '-')} rows" for s in SIDES),
        )
    stages.close()
    return path


def _options(config: DiscoverConfig) -> dict[str, Any]:
    """Everything that decides the result, in other words all but the folder and where the model lies."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", *PLACING)}


def _site(config: DiscoverConfig, model: HookedModel) -> Site:
    site = Site.parse(config.site) if config.site else default_site(model.preset, model.cfg.n_layers)
    model.anatomy.check(model.hf, site)
    return site


def _tokens(config: DiscoverConfig, model: HookedModel) -> dict[str, TokenFile]:
    sides = dict(zip(SIDES, split(read_corpus(config.corpus)), strict=True))
    wanted = dict(zip(SIDES, (config.train_tokens, config.held_out_tokens), strict=True))
    bos = model.preset.prepend_bos if model.preset else False
    return {
        side: tokenize(corpus, model.tokenizer, config.out / "tokens" / side, prepend_bos=bos, max_tokens=wanted[side])
        for side, corpus in sides.items()
    }


def _stores(
    config: DiscoverConfig, model: HookedModel, tokens: dict[str, TokenFile], site: Site, say: Callable[[str], None]
) -> dict[str, ActivationStore]:
    stores = {}
    for side in SIDES:
        say(f"      {side.replace('_', '-')}:")
        stores[side] = extract(
            model,
            tokens[side],
            [site],
            config.out / "store" / side,
            max_length=config.max_length,
            seed=config.seed,
            announce=lambda plan: say("\n".join("        " + line for line in plan.splitlines())),
        )
    return stores


def _evaluation(
    config: DiscoverConfig, sae: SAE, store: ActivationStore, site: Site, model: HookedModel, tokens: TokenFile
) -> Evaluation:
    path = config.out / "evaluation.json"
    if not path.exists():
        found = evaluate(
            sae, store, site, model=model, tokens=tokens, max_ce_tokens=config.loss_tokens, seed=config.seed, show=None
        )
        found.save(path)
    return Evaluation.load(path)


def _features(
    config: DiscoverConfig,
    sae: SAE,
    stores: dict[str, ActivationStore],
    tokens: dict[str, TokenFile],
    site: Site,
    model: HookedModel,
) -> None:
    path = config.out / "features.jsonl"
    if path.exists():
        return
    features = read_features(
        sae,
        [Source(stores[side], tokens[side]) for side in SIDES],
        site,
        tokenizer=model.tokenizer,
        lens=Lens.of(model),
        n_examples=config.examples,
        threshold=threshold_of(sae, stores["train"], site),
        show=None,
    )
    write_features(path, features)


def _provenance(
    config: DiscoverConfig,
    model: HookedModel,
    site: Site,
    tokens: dict[str, TokenFile],
    stores: dict[str, ActivationStore],
    sae: SAE,
) -> dict[str, Any]:
    notes = model.preset.notes if model.preset else ""
    name = model.preset.hub_id.split("/")[-1] if model.preset else model.name
    return {
        "model": f"{name}, {notes}" if notes else name,
        "site": str(site),
        "corpus": config.corpus,
        "text": {side: f"{tokens[side].n_tokens:,} tokens, {len(tokens[side]):,} documents" for side in SIDES},
        "rows": {side: f"{len(stores[side]):,}" for side in SIDES},
        "options": _options(config),
        "training": dict(sae.config.metadata.get("midlens_training", {})),
        "versions": {"torch": torch.__version__, **stores["train"].manifest.get("versions", {})},
    }

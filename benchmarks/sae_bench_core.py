"""SAEBench's core evaluation on an SAE saved by this project, against this project's own figures on the same tokens.

    python -m venv RIVAL && RIVAL/bin/pip install torch==2.13.0
    RIVAL/bin/pip install sae-lens==6.54.12 transformers==5.23.0 tabulate matplotlib scikit-learn seaborn
    RIVAL/bin/pip install --no-deps sae-bench==0.6.0
    python benchmarks/sae_bench_core.py --rival RIVAL/bin/python                 one SAE made here in seconds
    python benchmarks/sae_bench_core.py --rival RIVAL/bin/python --sae FOLDER    a trained one

Three steps that share files in one folder: `prepare` (model, tokens and SAE are saved), `rival` (the other interpreter:
sae_lens loads the SAE, `sae_bench.evals.core.main.run_evals` measures it on a transformer-lens bridge), `compare`.
SAEBench's pins (numpy < 2, datasets < 4) clash with transformers 5, hence `--no-deps` and an environment of its own.

Its definitions are reproduced, not ours: MSE is squared error per token divided by the number of tokens of the batch,
and then averaged over tokens (so it halves when the batch doubles); γ is a mean over batches; every position counts,
the first included. Its explained variance takes means of x² for means of x and is printed for information only.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BATCHES, SIZE, LENGTH = 4, 4, 64
TOLERANCE = 1e-4  # relative; both compute in float32, through two forward passes


def prepare(folder: Path, site_name: str, sae_folder: Path | None) -> None:
    """Model, tokens and SAE into `folder`."""
    import torch

    from interp.corpus import read_corpus
    from interp.model import HookedModel
    from saes.sae import SAE, SAEConfig

    model = HookedModel.load("smollm2-135m", device="cpu", dtype="float32")
    model.hf.save_pretrained(folder / "model")  # pyright: ignore[reportCallIssue]
    text = "\n\n".join(document.text for document in read_corpus("builtin", limit=40))
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids[: BATCHES * SIZE * LENGTH]
    tokens = torch.tensor(ids).view(BATCHES, SIZE, LENGTH)
    (folder / "tokens.json").write_text(json.dumps(tokens.tolist()))
    if sae_folder is not None:
        sae = SAE.load(sae_folder)
    else:
        # Principal directions and their opposites: no training, yet sparse codes of varying number and a fair fit.
        with torch.no_grad():
            x = model.capture(tokens[0], [site_name])
        rows = next(iter(x.values()))[:, 1:].flatten(0, 1).double()
        V = torch.linalg.svd(rows - rows.mean(0)).Vh
        W = torch.cat([V, -V]).float()
        # A little noise, so that encoder and decoder differ and their cosines are not all 0 or 1.
        W_dec = torch.nn.functional.normalize(
            W + 0.01 * torch.randn(W.shape, generator=torch.Generator().manual_seed(0))
        )
        threshold = ((rows - rows.mean(0)).float() @ W.T).quantile(0.95).expand(len(W))
        known = {"model_name": model.name, "hook_name": site_name}
        config = SAEConfig(d_in=W.shape[1], d_sae=len(W), architecture="jumprelu", metadata=known)
        b_dec, b_enc = rows.mean(0).float(), torch.zeros(len(W))
        sae = SAE.of_weights(config, W_enc=W.T, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, threshold=threshold)
    sae.save(folder / "sae")


def rival(folder: Path) -> None:
    """In the other interpreter: SAEBench's figures to rival.json."""
    import torch
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import run_evals
    from sae_lens import SAE
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager").eval()
    model = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None, model_name="local")
    sae: Any = SAE.load_from_disk(str(folder / "sae"))
    site = sae.cfg.metadata.hook_name
    # SAEBench reads these from the config, where SAELens 6 keeps them in the metadata.
    sae.cfg.hook_name, sae.cfg.hook_head_index, sae.cfg.hook_layer = site, None, int(site.split(".")[1])
    sae.cfg.architecture_str = sae.cfg.architecture()
    batches = torch.tensor(json.loads((folder / "tokens.json").read_text()))
    config = CoreEvalConfig(
        model_name="local",
        batch_size_prompts=SIZE,
        n_eval_reconstruction_batches=BATCHES,
        n_eval_sparsity_variance_batches=BATCHES,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
    )
    found, features = run_evals(sae, _Store(batches), model, config)  # pyright: ignore[reportArgumentType]
    keep = ("feature_density", "max_decoder_cosine_sim", "max_encoder_cosine_sim", "encoder_decoder_cosine_sim")
    weights = {name: features[name] for name in keep if name in features}
    versions = {name: version(name) for name in ("sae-bench", "sae-lens", "transformer-lens", "transformers", "torch")}
    (folder / "rival.json").write_text(json.dumps({"metrics": found, "features": weights, "versions": versions}))


class _Store:
    """What SAEBench asks of an activation store: batches of tokens."""

    store_batch_size_prompts, context_size = SIZE, LENGTH

    def __init__(self, batches: Any) -> None:
        self.batches, self.next = batches, 0

    def get_batch_tokens(self, size: int) -> Any:
        assert size == SIZE
        self.next += 1
        return self.batches[self.next - 1]

    def reset_input_dataset(self) -> None:
        self.next = 0


def compare(folder: Path) -> list[tuple[str, float, float, bool]]:
    """Rows of (figure, theirs, ours in their definition, whether they must agree)."""
    import torch

    from interp.batching import Batch
    from interp.effects import compare as effects
    from interp.model import HookedModel
    from interp.sites import Site
    from saes.geometry import nearest, unit
    from saes.reconstruction import ReconstructionFitter
    from saes.sae import SAE
    from saes.splice import replace_rows

    theirs = json.loads((folder / "rival.json").read_text())
    flat = {name: value for part in theirs["metrics"].values() for name, value in part.items()}
    model, sae = HookedModel.load(folder / "model", device="cpu", dtype="float32"), SAE.load(folder / "sae")
    site = Site.parse(sae.config.metadata["hook_name"])
    batches = torch.tensor(json.loads((folder / "tokens.json").read_text()))
    lengths = torch.full((SIZE,), LENGTH)
    whole, sums, fires = (
        ReconstructionFitter(),
        SimpleNamespace(mse=0.0, bias=0.0, l0=0.0),
        torch.zeros(sae.config.d_sae),
    )
    with torch.no_grad():
        for tokens in batches:
            x = model.capture(tokens, [site])[site].flatten(0, 1)
            codes = sae.encode(x)
            x_hat = sae.decode(codes, x)
            part = ReconstructionFitter().update(x, x_hat)
            sums.mse += part.result().mse / len(x) / len(batches)
            sums.bias += part.result().bias / len(batches)
            sums.l0 += float(codes.counts.double().mean()) / len(batches)
            fires += torch.bincount(codes.indices, minlength=len(fires))
            whole = whole.merge(part)
        runs = {"sae": {site: replace_rows(lambda x: sae(x), skip_first=False)}}
        runs["zero"] = {site: replace_rows(torch.zeros_like, skip_first=False)}
        start = torch.zeros(SIZE, dtype=torch.int64)
        text = effects(model, [Batch(tokens, lengths, start, start) for tokens in batches], runs)
    q = whole.result()
    rows = [
        ("l0", flat["l0"], sums.l0, True),
        ("mse", flat["mse"], sums.mse, True),
        ("cossim", flat["cossim"], q.cosine, True),
        ("l2_ratio", flat["l2_ratio"], q.l2_ratio, True),
        ("relative_reconstruction_bias", flat["relative_reconstruction_bias"], sums.bias, True),
        ("ce_loss_without_sae", flat["ce_loss_without_sae"], text.ce_clean, True),
        ("ce_loss_with_sae", flat["ce_loss_with_sae"], text.ce["sae"], True),
        ("ce_loss_with_ablation", flat["ce_loss_with_ablation"], text.ce["zero"], True),
        ("explained_variance", flat["explained_variance"], q.explained_variance, False),
    ]
    own = {
        "max_decoder_cosine_sim": nearest(sae.W_dec).cosine,
        "max_encoder_cosine_sim": nearest(sae.encoder).cosine,
        "encoder_decoder_cosine_sim": (unit(sae.encoder) * unit(sae.W_dec)).sum(1),
        "feature_density": fires / (BATCHES * SIZE * LENGTH),
    }
    for name, values in theirs["features"].items():
        # The mean, and beside it the largest single difference, as a row of its own.
        a, b = torch.tensor(values, dtype=torch.float64), own[name].detach().double()
        # Rows of an encoder without noise are orthonormal, and their largest cosines rounding errors.
        rows.append((f"{name}, mean", float(a.mean()), float(b.mean()), float(a.mean()) > 1e-6))
        rows.append((f"{name}, largest", float(a[(a - b).abs().argmax()]), float(b[(a - b).abs().argmax()]), False))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival", help="the interpreter that has sae_bench")
    parser.add_argument("--sae", type=Path, help="an SAE of SmolLM2; by default one is made")
    parser.add_argument("--site", default="blocks.15.hook_resid_post")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sae_bench_core.json")
    parser.add_argument("--stage-rival", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage_rival:
        rival(options.stage_rival)
        return 0
    if not options.rival:
        parser.error("--rival: the interpreter of an environment with sae_bench, see above")
    from interp.bench.measure import environment

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.site, options.sae)
        # -P: no script of this folder is to be taken for a package of the rival's environment.
        subprocess.run([options.rival, "-P", str(Path(__file__).resolve()), "--stage-rival", name], check=True)
        rows, versions = compare(folder), json.loads((folder / "rival.json").read_text())["versions"]
    failed = 0
    print(f"{'figure':34} {'sae-bench':>14} {'midlens':>14} {'relative':>10}")
    for figure, theirs, ours, must in rows:
        apart = abs(theirs - ours) / max(abs(theirs), 1e-12)
        wrong = must and not apart <= TOLERANCE
        failed += wrong
        note = "  <- differs" if wrong else ("" if must else "  (for information)")
        print(f"{figure:34} {theirs:14.6g} {ours:14.6g} {apart if math.isfinite(apart) else -1:10.1e}{note}")
    facts = environment(("torch", "sae-lens", "transformers"))
    del facts["arguments"]  # the path of somebody's interpreter
    named = [{"figure": f, "sae_bench": t, "midlens": o, "must_agree": m} for f, t, o, m in rows]
    options.out.write_text(
        json.dumps(
            {
                "rows": named,
                "tolerance": TOLERANCE,
                "rival": versions,
                "environment": facts,
            },
            indent=1,
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

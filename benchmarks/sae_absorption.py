"""Feature absorption of trained SAEs on the first-letter task: does nesting the dictionaries lower it?

    python benchmarks/sae_quality.py             extracts the stores that this reads, SmolLM2, layer 15 (stop it then)
    python benchmarks/sae_absorption.py          trains four architectures under three seeds; a quarter of an hour

Width 4,608, k 32, 390 steps, as in `sae_quality.py`. The words are the vocabulary's own, at most `--words` of a letter,
each in the prompt of `saes.first_letter`; scores are those of `saes.absorption`, after Chanin et al. 2024
(https://arxiv.org/abs/2409.14507). Bussmann et al. 2025 (https://arxiv.org/abs/2503.17547) report less absorption for
Matryoshka. Control: the same SAE with its decoder rows exchanged at random, so that what a feature writes no longer
belongs to what it reads; what is left of full absorption then is chance. SAEs are kept in the folder: called again,
only what is missing is trained. Prints a table (Markdown: mean and standard deviation over seeds), writes JSON.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from sae_contestants import ARCHITECTURES

from interp.bench.measure import environment
from interp.model import HookedModel
from interp.sites import Site
from interp.store import ActivationStore
from saes.absorption import absorption_of_rows
from saes.first_letter import vocabulary_words, word_rows
from saes.recipe import TrainConfig
from saes.row_quality import measure_rows, row_norms
from saes.sae import SAE
from saes.splice import massive_threshold
from saes.train import fit

COLUMNS = ("explained_variance", "l0", "main_f1", "split_features", "full", "fraction", "full_exchanged")


@torch.no_grad()
def exchanged(sae: SAE, seed: int) -> SAE:
    """The same features, each writing another one's direction."""
    other = SAE(sae.config)
    other.load_state_dict(sae.state_dict())
    other.W_dec.copy_(sae.W_dec[torch.randperm(len(sae.W_dec), generator=torch.Generator().manual_seed(seed))])
    return other


def measured(sae: SAE, x: torch.Tensor, letters: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Absorption of one SAE, and of its control."""
    found, control = (absorption_of_rows(s, x, letters) for s in (sae, exchanged(sae, seed)))
    main_f1 = statistics.mean(letter.main_f1 for letter in found.letters)
    summary = found.summary() | {"main_f1": main_f1, "full_exchanged": control.full}
    by_letter = {letter.letter: {"full": letter.full, "fraction": letter.fraction} for letter in found.letters}
    return {**summary, "left_out": found.left_out, "by_letter": by_letter}


def table(results: list[dict[str, Any]]) -> str:
    """One line per architecture."""
    lines = [
        "| architecture | seeds | explained variance | L0 | F1 of main features | further main features "
        "| full absorption | fraction | full, decoder exchanged |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for architecture in dict.fromkeys(r["architecture"] for r in results):
        own = [r for r in results if r["architecture"] == architecture]
        cells = []
        for name in COLUMNS:
            values = [r[name] for r in own]
            form = ".1f" if name == "l0" else ".3f"
            spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):{form}}{spread}")
        lines.append(f"| {architecture} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/sae_quality"), help="of sae_quality.py")
    parser.add_argument("--site", default="blocks.15.hook_resid_post")
    parser.add_argument("--width", type=int, default=4608)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--words", type=int, default=300, help="of a letter, at most")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sae_absorption.json")
    return parser.parse_args()


def main() -> None:
    """Train, measure, print, write."""
    options = arguments()
    site = Site.parse(options.site)
    train, held_out = (ActivationStore.open(options.folder / "store" / side) for side in ("train", "held_out"))
    threshold = massive_threshold(row_norms(train, site))
    model = HookedModel.load("smollm2-135m", upto=site, dtype="float32")
    words = vocabulary_words(model.tokenizer, per_letter=options.words)
    x, results = None, []
    for seed in options.seeds:
        for architecture in options.architectures:
            config = TrainConfig(architecture=architecture, d_sae=options.width, epochs=2.0, seed=seed)
            sae = fit(train, config, options.folder / "saes" / f"{architecture}-{options.width}-{seed}", site=site)
            x = word_rows(sae, model, words, site) if x is None else x  # the model's: the same for every SAE
            kept = measure_rows(sae, held_out, site, threshold=threshold, force=True)
            quality = {"explained_variance": kept.kept.explained_variance}
            quality["l0"] = int(kept.firing.fires.sum()) / kept.kept.n_tokens
            found = {"architecture": architecture, "seed": seed, **quality, **measured(sae, x, words.letters, seed)}
            results.append(found)
            print({name: found[name] for name in ("architecture", "seed", *COLUMNS)}, flush=True)
            facts = {"model": "smollm2-135m", "site": str(site), "width": options.width}
            facts |= {"words": len(words.words), "environment": environment(("torch", "scikit-learn"))}
            options.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()

# %% [markdown]
# # Is this SAE any good? Training one, and the figures to believe
#
# Any autoencoder reports a high "explained variance". Which figures tell a usable SAE from a useless one, how do they
# trade against sparsity, and does another tool read the result?

# %% tags=["parameters"]
import os

MODEL = os.environ.get("MIDLENS_NOTEBOOK_MODEL", "smollm2-135m")  # a preset, a hub id, a folder or a GGUF file
SMALL = os.environ.get("MIDLENS_NOTEBOOK_SIZE") == "small"
TRAIN_TOKENS, HELD_OUT_TOKENS, LOSS_TOKENS = (3_000, 1_000, 300) if SMALL else (30_000, 6_000, 2_000)
EXPANSION, K, EPOCHS = 2, 16, 4
SWEPT = (8, 32) if SMALL else (8, 16, 32)

# %%
import json
from pathlib import Path

import pandas as pd
import torch

from interp import HookedModel, Site, extract, read_corpus, split, tokenize
from interp.figures.densities import density_histogram
from interp.figures.losses import loss_bars
from interp.figures.training import training_curves
from saes import Grid, TrainConfig, evaluate, fit, sweep
from saes.sweep_summary import pareto

OUT = Path("runs/notebook-03")  # beside this notebook; finished steps are found again
model = HookedModel.load(MODEL)
site = model.preset.site if model.preset else Site.parse(f"resid_post.{(model.cfg.n_layers - 1) // 2}")
bos = model.preset.prepend_bos if model.preset else False

# %% [markdown]
# ## Activations of two sets of documents
#
# Held-out rows come from other documents. Rows of the same documents would flatter every figure below.

# %%
tokens, stores = {}, {}
corpora = dict(zip(("train", "held-out"), split(read_corpus("builtin")), strict=True))
for side, count in {"train": TRAIN_TOKENS, "held-out": HELD_OUT_TOKENS}.items():
    tokens[side] = tokenize(corpora[side], model.tokenizer, OUT / "tokens" / side, prepend_bos=bos, max_tokens=count)
    stores[side] = extract(model, tokens[side], [site], OUT / "store" / side, max_length=128, progress=False)
    print(f"{side}: {len(stores[side]):,} rows of {len(tokens[side])} documents")

# %% [markdown]
# ## One SAE

# %%
recipe = TrainConfig(architecture="topk", expansion=EXPANSION, k=K, epochs=EPOCHS, batch_size=256)
sae = fit(stores["train"], recipe, OUT / "sae", site=site, device=model.device)
log = (OUT / "sae" / "training" / "metrics.jsonl").read_text().splitlines()
training_curves([json.loads(line) for line in log])

# %%
judged = {"model": model, "tokens": tokens["held-out"], "max_ce_tokens": LOSS_TOKENS}
found = evaluate(sae, stores["held-out"], site, **judged)
wanted = ("explained_variance", "l0", "dead_fraction", "ce_clean", "ce_spliced", "delta_ce", "kl", "loss_recovered")
pd.Series({name: getattr(found, name) for name in wanted}, name="held-out").round(4).to_frame()

# %% [markdown]
# **Explained variance is centred**: 0 is what the mean of all rows achieves. Residual streams have a large mean, so
# the same formula without centring gives high marks to a predictor that knows nothing of the row:

# %%
x = stores["held-out"].rows(site, 0, len(stores["held-out"])).float()
mean = x.mean(0)
with torch.no_grad():
    rebuilt = {"the SAE": sae(x.to(model.device)).cpu(), "always the mean": mean.expand_as(x)}
marks = {
    name: {
        "centred": 1 - float((x - y).square().sum() / (x - mean).square().sum()),
        "not centred": 1 - float((x - y).square().sum() / x.square().sum()),
    }
    for name, y in rebuilt.items()
}
pd.DataFrame(marks).T.round(3)

# %% [markdown]
# **Loss** is what the model makes of it: its next-token loss with the SAE's output in the place of the stream. Nearly
# every SAE "recovers" most of what putting zeros there loses; the rise over the clean loss (ΔCE) tells them apart.

# %%
loss_bars(clean=found.ce_clean, spliced=found.ce_spliced, zero=found.ce_zero)

# %% [markdown]
# **Densities**: how often each feature fires. Features that never fire on held-out rows count as dead *on so many
# rows*; more rows would find some of them alive.

# %%
print(f"{found.dead_fraction:.1%} of {sae.config.d_sae:,} features fired on none of {found.n_tokens:,} rows")
density_histogram(found.densities, n_tokens=found.n_tokens)

# %% [markdown]
# ## Against sparsity: a sweep
#
# A single explained variance says little, since a larger k buys more. Two architectures over several k, from one read
# of the store; the better one is the one whose front lies higher at equal L0.

# %%
shared = TrainConfig(expansion=EXPANSION, epochs=EPOCHS, batch_size=256)
grid = Grid(architecture=("topk", "batchtopk"), k=SWEPT, base=shared)
summary = sweep(
    stores["train"],
    grid,
    OUT / "sweep",
    site=site,
    evaluate_on=stores["held-out"],
    model=model,
    tokens=tokens["held-out"],
    max_ce_tokens=LOSS_TOKENS,
    device=model.device,
    show=False,
)
print(summary.text())

# %%
pareto(summary)

# %%
pareto(summary, "delta_ce")

# %% [markdown]
# ## In SAELens
#
# The folder is in SAELens's own format. The same rows must give the same reconstructions there.

# %%
import sae_lens

theirs = sae_lens.SAE.load_from_disk(str(OUT / "sae"))
some = x[:64]
with torch.no_grad():
    ours, other = sae(some.to(model.device)).cpu(), theirs.decode(theirs.encode(some))
print(type(theirs).__name__, theirs.cfg.metadata.hook_name)
print(f"largest difference, of the rows' largest entry: {float((ours - other).abs().max() / some.abs().max()):.1e}")

# %% [markdown]
# ## What was seen, and what it does not show
#
# On SmolLM2:
#
# - Without centring, the mean of all rows alone "explains" more than half. The SAE's centred figure is what it adds.
# - It recovers over nine tenths of the loss and still costs the model half a nat per token: loss recovered flatters,
#   since putting zeros in the stream is so destructive.
# - At equal k BatchTopK explains more and costs less loss than TopK, but it also keeps a few more features active. At
#   equal L0, between the points of the curves, it is still ahead, by less.
# - SAELens gives the same reconstructions.
#
# It does not show which architecture is better: one seed, a run of minutes, a narrow dictionary, one corpus of software
# documentation, and a quarter of the features dead. `midlens discover` trains longer, and `benchmarks/sae_quality.py`
# compares with seeds. Nor does any figure here say whether the features mean something: the next notebook reads them.

# %% [markdown]
# # What is in an activation store, and can it be trusted after a crash?
#
# From text to rows on disk that an SAE can be trained on. What is planned before anything runs, what a killed run
# loses, which rows stay out and why, in which order rows are read, and how much of the model's own speed is left?

# %% tags=["parameters"]
import os

MODEL = os.environ.get("MIDLENS_NOTEBOOK_MODEL", "smollm2-135m")  # a preset, a hub id, a folder or a GGUF file
SMALL = os.environ.get("MIDLENS_NOTEBOOK_SIZE") == "small"
TOKENS = 3_000 if SMALL else 20_000
MAX_LENGTH = 128  # longer documents are cut into windows

# %%
import shutil
import time
from pathlib import Path

import pandas as pd
import torch

from interp import HookedModel, InputError, Site, extract, read_corpus, split, tokenize
from interp.batching import batches
from interp.extract import prepare
from interp.figures.norms import norm_distribution
from interp.lens import token_strings
from interp.plan import Exclusions
from saes.evaluate import row_norms

OUT = Path("runs/notebook-02")  # beside this notebook; emptied first, since this is about interruptions
shutil.rmtree(OUT, ignore_errors=True)
whole = HookedModel.load(MODEL)
site = whole.preset.site if whole.preset else Site.parse(f"resid_post.{(whole.cfg.n_layers - 1) // 2}")
bos = whole.preset.prepend_bos if whole.preset else False
model = HookedModel.load(MODEL, upto=site)
print(f"{site}: {model.loaded_layers} of {model.cfg.n_layers} layers loaded")

# %% [markdown]
# ## The plan
#
# Text is split by document, tokenised once into a file, and every batch and shard boundary is fixed before the first
# row. Nothing is computed here but one batch, to estimate the time.

# %%
train, held_out = split(read_corpus("builtin"))
tokens = tokenize(train, model.tokenizer, OUT / "tokens", prepend_bos=bos, max_tokens=TOKENS)
settings = {"max_length": MAX_LENGTH, "rows_per_shard": TOKENS // 5}
extraction = prepare(model, tokens, [site], OUT / "store", **settings)
print("\n".join(line for line in extraction.describe().splitlines() if not line.startswith("disk")))

# %% [markdown]
# ## A crash in the middle
#
# An edit that raises stands for a killed process: it ends the run at some batch, wherever the writer happens to be.
# The same call then goes on. The store must be the same, byte for byte, as one that was never interrupted.

# %%
calls = {"interrupted": 0, "second": 0, "never interrupted": 0}


def counted(run, last=None):
    def edit(x, where):
        calls[run] += 1
        if calls[run] == last:
            raise KeyboardInterrupt
        return x

    return {site: edit}


try:
    with model.edited(counted("interrupted", last=len(extraction.plan.buckets) // 2)):
        extract(model, tokens, [site], OUT / "store", progress=False, **settings)
except KeyboardInterrupt:
    left = prepare(model, tokens, [site], OUT / "store", **settings)
    print(f"{len(left.missing)} of {len(left.shards)} shards are missing")

# %%
with model.edited(counted("second")):
    store = extract(model, tokens, [site], OUT / "store", progress=False, **settings)
with model.edited(counted("never interrupted")):
    other = extract(model, tokens, [site], OUT / "never-interrupted", progress=False, **settings)
same = [a["sha256"] == b["sha256"] for a, b in zip(store.manifest["shards"], other.manifest["shards"], strict=True)]
print(f"{sum(same)} of {len(same)} shards have equal checksums")
print("batches run:", calls)

# %% [markdown]
# `verify` reads every byte. One flipped bit in one shard is found, named, and costs one shard of work to mend:

# %%
store.verify()
damaged = store.path / store.manifest["shards"][1]["name"]
content = bytearray(damaged.read_bytes())
content[-100] ^= 1
damaged.write_bytes(content)
try:
    store.verify()
except InputError as error:
    print(str(error).replace(f"{store.path}: ", ""))
print("to compute again:", prepare(model, tokens, [site], store.path, **settings).missing)
store = extract(model, tokens, [site], store.path, progress=False, **settings)
store.verify()

# %% [markdown]
# ## What stays out, and why
#
# By default: padding, special and chat-template tokens, and the first position of every window. The last looks odd
# until one keeps it:

# %%
everything = Exclusions(first_position=False, special_tokens=not bos)
kept = extract(model, tokens, [site], OUT / "kept", progress=False, exclude=everything, **settings)
keys, norms = kept.keys(0, len(kept)), row_norms(kept, site)
window_start = keys.token == tokens.bos if bos else keys.position % MAX_LENGTH == 0
massive = norms > 10 * norms.median()
rows = {"all": torch.ones_like(massive), "first of a window": window_start, "others": ~window_start}
pd.DataFrame(
    {
        name: {
            "rows": int(which.sum()),
            "median norm": round(float(norms[which].median()), 1),
            "massive (over 10 × median)": int(massive[which].sum()),
            "share of the sum of squares": round(float((norms[which] ** 2).sum() / (norms**2).sum()), 4),
        }
        for name, which in rows.items()
    }
).T

# %%
norm_distribution(norms, threshold=10 * float(norms.median()))

# %% [markdown]
# Massive rows at other positions (attention sinks move to delimiters and rare tokens) stay in the store: they are
# activations like others. SAE training leaves them out, and the evaluation counts them.

# %%
elsewhere = (massive & ~window_start).nonzero()[:, 0].tolist()
names = token_strings(model.tokenizer, keys.token[elsewhere].tolist())
pd.DataFrame(
    [(names[int(keys.token[i])], int(keys.doc[i]), int(keys.position[i]), float(norms[i])) for i in elsewhere[:8]],
    columns=["token", "document", "position", "norm"],
).round(0)

# %% [markdown]
# ## In which order rows are read
#
# Batches are shuffled over the whole store. The order is a function of the seed and the epoch: starting at batch k
# gives what was left, which is what makes a training run resumable.

# %%
size = 256
stream = list(store.batches([site], size, seed=0))
later = next(store.batches([site], size, seed=0, first=3))
assert torch.equal(later.acts[site], stream[3].acts[site])
seen = torch.cat([torch.stack([batch.doc, batch.position], 1) for batch in stream])
assert len(seen.unique(dim=0)) == len(store)  # every row once per epoch
fed = store.keys(0, size)
print(f"documents in the first {size} rows: {len(fed.doc.unique())} as stored, {len(stream[0].doc.unique())} as read")

# %% [markdown]
# ## How fast
#
# Beside the same truncated model run bare over the same windows: no hook, nothing copied, nothing written. Three turns
# each, the fastest counts.

# %%
budget = extraction.plan.token_budget
windows = list(batches(tokens, token_budget=budget, max_length=MAX_LENGTH))
seconds = {"bare forward pass": [], "to disk, verified": []}
for turn in range(1 if SMALL else 3):
    begun = time.perf_counter()
    with torch.inference_mode():
        for batch in windows:
            model.hf(input_ids=batch.tokens.to(model.device), use_cache=False)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    seconds["bare forward pass"].append(time.perf_counter() - begun)
    begun = time.perf_counter()
    extract(model, tokens, [site], OUT / f"turn-{turn}", progress=False, **settings).verify()
    seconds["to disk, verified"].append(time.perf_counter() - begun)
best = {name: tokens.n_tokens / min(found) for name, found in seconds.items()}
pd.DataFrame({"tokens per second": best}).round(0).assign(share=lambda t: (t / t.iloc[0]).round(2))

# %% [markdown]
# ## What was seen, and what it does not show
#
# On SmolLM2:
#
# - A run that was interrupted and called again ends with the same bytes. What was not yet durable is run again: a shard
#   at most, and the batch in hand. A flipped bit is found and costs one shard.
# - The first position of a window holds nearly all of the sum of squares in under 1 % of the rows. An SAE that kept
#   them would be trained and judged on little else. A few delimiters elsewhere are as large; they stay in the store.
# - Extraction to disk runs near the speed of the bare forward pass.
#
# It does not show that bytes are equal on other hardware, or for another `token_budget`: other batch shapes change a
# bfloat16 row in its last bit. An exception is milder than a killed process; the tests of the repository do kill it,
# between a shard's last byte and its renaming too. And a speed over some seconds is no benchmark
# (`benchmarks/extraction.py` is).

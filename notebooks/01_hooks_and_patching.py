# %% [markdown]
# # Where does "Paris" come from? Hooks, caches, edits and patching
#
# A language model completes *The capital of France is* with *Paris*. At which layer and at which token does it hold
# that answer, and which heads carry it? On the way: how to read any activation, what reading costs, how to change one,
# and how to undo the change.

# %% tags=["parameters"]
import os

MODEL = os.environ.get("MIDLENS_NOTEBOOK_MODEL", "smollm2-135m")  # a preset, a hub id, a folder or a GGUF file
SMALL = os.environ.get("MIDLENS_NOTEBOOK_SIZE") == "small"
CLEAN, CORRUPT = "The capital of France is", "The capital of Germany is"  # equally many tokens
RIGHT, WRONG = " Paris", " Berlin"
EVERY = 6 if SMALL else 1  # patch every layer, or every sixth

# %%
import time

import pandas as pd
import torch

from interp import HookedModel, Site
from interp.figures.attention_patterns import attention_patterns
from interp.figures.lens_grid import lens_cells, lens_grid
from interp.figures.style import BLUE, VERMILLION, blank
from interp.lens import logit_lens, token_strings
from interp.patching import Run, activation_patching, head_sites, logit_difference

torch.set_grad_enabled(False)
model = HookedModel.load(MODEL)
n_layers = model.cfg.n_layers
print(f"{n_layers} layers, width {model.cfg.d_model}, {model.cfg.n_heads} heads, computed in {model.dtype}")

# %% [markdown]
# ## Names
#
# Sites have TransformerLens's names and meanings, and a short form. A hooked model stays the Hugging Face model it was:
# attention is fused, and no weight is moved or folded.

# %%
batch = model.to_tokens([CLEAN, CORRUPT])
names = token_strings(model.tokenizer, batch.tokens.flatten().tolist())
clean_tokens, corrupt_tokens = ([names[i] for i in row] for row in batch.tokens.tolist())
assert batch.lengths[0] == batch.lengths[1], "patching by position needs prompts of equally many tokens"
print(clean_tokens, Site.parse("resid_post.3"), sep="\n")

logits, cache = model.run_with_cache(batch.tokens)
print("\n".join(name for name in cache if ".0." in name or "blocks" not in name))

# %% [markdown]
# ## What reading costs
#
# `run_with_cache` without a filter keeps everything, as in TransformerLens. `capture` names what it wants: no layer
# above the last site runs, and nothing else is kept.

# %%
middle = model.preset.site if model.preset else Site.parse(f"resid_post.{(n_layers - 1) // 2}")
long = batch.tokens.repeat(8, 8)
ways = {
    "run_with_cache, everything": lambda: model.run_with_cache(long)[1],
    "run_with_cache, names_filter=hook_z": lambda: model.run_with_cache(long, lambda name: name.endswith("hook_z"))[1],
    f"capture, {middle}": lambda: model.capture(long, [middle]),
}
rows = []
for way, run in ways.items():
    run()  # the first call of a kind also allocates
    begun = time.perf_counter()
    held = run()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    seconds = time.perf_counter() - begun
    mebibytes = sum(x.numel() * x.element_size() for x in held.values()) / 2**20
    rows.append({"way": way, "tensors": len(held), "MiB": round(mebibytes, 1), "ms": round(1000 * seconds)})
pd.DataFrame(rows).set_index("way")

# %% [markdown]
# ## Changing an activation
#
# An edit is a function of the value and of where it stands. `edited` holds it for a block of code and takes it out
# again, also after an error; `run_with_hooks` is TransformerLens's spelling of the same.

# %%
answers = [model.tokenizer.encode(word, add_special_tokens=False)[0] for word in (RIGHT, WRONG)]
metric = logit_difference(*(torch.tensor([i, i]) for i in answers))  # of two rows


def switched_off(value, hook):
    return torch.zeros_like(value)


before = model(batch.tokens)
hooks = [(f"blocks.{layer}.hook_mlp_out", switched_off) for layer in range(n_layers // 2)]
hooked = model.run_with_hooks(batch.tokens, fwd_hooks=hooks)
with model.edited({name: lambda x, where: 0 * x for name, _ in hooks}):
    edited = model(batch.tokens)
assert torch.equal(hooked, edited) and torch.equal(model(batch.tokens), before)

shown = {"as it is": before, "lower MLPs off": hooked}
table = pd.DataFrame({name: metric(found).tolist() for name, found in shown.items()}, index=[CLEAN, CORRUPT])
table.round(2).rename_axis(f"logit{RIGHT} − logit{WRONG}")

# %% [markdown]
# ## What the stream says on its way: the logit lens
#
# Each layer's residual stream, read as if it were the last one. A cell shows the most probable token.

# %%
layers = list(range(n_layers - 1, -1, -max(1, n_layers // 15)))[::-1]
stream = model.capture(batch.tokens[:1], [f"resid_post.{layer}" for layer in layers])
read = torch.stack([logit_lens(model, x[0]) for x in stream.values()])
lens_grid(lens_cells(read, model.tokenizer), clean_tokens, layers=layers)

# %% [markdown]
# ## Where the answer is: activation patching
#
# Run the corrupt prompt, but let one place read its value from the clean run. A share of 1 restores the clean answer
# (*denoising*: this place suffices), 0 leaves the corrupt one.

# %%
metric = logit_difference(*(torch.tensor([i]) for i in answers))  # of one row
clean, corrupt = (Run(row[None]) for row in batch.tokens)
patched = range(0, n_layers, EVERY)
table = activation_patching(
    model, clean, corrupt, [f"resid_post.{i}" for i in patched], metric, positions="each", show=False
)
columns = [f"{a.strip()} / {b.strip()}" if a != b else a for a, b in zip(clean_tokens, corrupt_tokens, strict=True)]
figure = blank(height=420, xaxis_title="patched token (clean / corrupt)", yaxis_title="residual stream after layer")
figure.add_heatmap(
    z=table.share, y=list(patched), x=columns, zmid=0, zmin=-1, zmax=1, xgap=2,
    colorscale=[[0, VERMILLION], [0.5, "white"], [1, BLUE]], colorbar={"title": "share restored", "thickness": 11},
)  # fmt: skip

# %% [markdown]
# The answer sits on the country's token up to some layer and at the last token from there on. What moves it must be
# attention; so patch each head's output at the last position.

# %%
last = [batch.tokens.shape[1] - 1]
heads = head_sites(model, layers=patched)
by_head = activation_patching(model, clean, corrupt, heads, metric, positions=last, show=False)
ranked = sorted(zip(by_head.share[:, 0], heads, strict=True), key=lambda pair: -abs(pair[0]))
best = [site for _, site in ranked[:4]]
strongest = {f"{site.layer}.{site.head}": float(share) for share, site in ranked[:8]}
pd.DataFrame(strongest, index=["share restored"]).round(3).rename_axis("layer.head", axis=1)

# %%
found = model.capture(batch.tokens[:1], {f"pattern.{site.layer}" for site in best})
squares = torch.stack([found[Site.parse(f"pattern.{site.layer}")][0, site.head] for site in best])
titles = [f"layer {site.layer}, head {site.head}" for site in best]
attention_patterns(squares, clean_tokens, names=titles, columns=4)

# %% [markdown]
# Does the result hold in the other direction? *Noising* runs the clean prompt and takes these heads' values from the
# corrupt one: what is lost was needed.

# %%
shares = {}
for direction in ("denoising", "noising"):
    found = activation_patching(model, clean, corrupt, best, metric, positions=last, direction=direction, show=False)
    shares[direction] = found.share[:, 0]
pd.DataFrame(shares, index=titles).T.round(3)

# %% [markdown]
# ## What was seen, and what it does not show
#
# On SmolLM2:
#
# - Up to layer 22 the answer sits on the country's token, from layer 23 on at the last one. The step is attention's,
#   mostly one head's: layer 23, head 4 reads the country, restores nine tenths of the difference and destroys as much.
# - Some heads have negative shares: they write against the answer, and their number depends on what else is intact.
# - The logit lens shows *Paris* only at the very end, six layers after patching finds it at the last position. The
#   stream carries what the unembedding does not yet show.
#
# It does not show that head 23.4 is "the capital head": this is one pair of prompts, and the share is of one difference
# of logits. That half of the MLPs can be switched off and *Paris* stays ahead of *Berlin* for both countries says that
# zeroing moves a model off its usual activations, not that those MLPs are idle. Milliseconds are of a single call.

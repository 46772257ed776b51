# %% [markdown]
# # Who asks, and what passes? Routing and filtering in every attention head
#
# A head compares token *i* with token *j* by $x_i^\top M x_j$, $M = W_Q W_K^\top$. Its skew-symmetric part *routes*
# ($i$ asking $j$ is not $j$ asking $i$), its symmetric part *filters*. How much of each head is routing, in how many
# dimensions, how far is that from chance, and does the model need it? In the manner of arXiv 2605.18826, whose own
# formulas are not known to us: no table of it is reproduced here.

# %% tags=["parameters"]
import os

MODEL = os.environ.get("MIDLENS_NOTEBOOK_MODEL", "smollm2-135m")  # a preset, a hub id, a folder or a GGUF file
SMALL = os.environ.get("MIDLENS_NOTEBOOK_SIZE") == "small"
DRAWS = 2 if SMALL else 4  # null heads drawn for each head
EVERY = 15 if SMALL else 2  # which layers: every second, or every fifteenth
TEXT = 128 if SMALL else 1536  # tokens of held-out text for surgery
LENGTH = 64 if SMALL else 96  # of each window
WINDOWS = 1 if SMALL else 4  # of them, on which queries meet keys

# %%
import pandas as pd
import torch

from interp import HookedModel, read_corpus, split
from interp.attention.behaviour import behaviour_rows
from interp.attention.corpus_gram import corpus_grams
from interp.attention.heads import kernel
from interp.attention.operating import operating_rows
from interp.attention.sectors import rope_rows
from interp.attention.surgery import Surgery
from interp.attention.surgery_sweep import gauged, removals, surgery_sweep, truncations
from interp.attention.survey_text import even_windows
from interp.attention.table import kernel_rows
from interp.figures.attention_curves import curves, share_bars
from interp.figures.attention_depth import depth_plot
from interp.figures.attention_nulls import rank_definitions, z_plot
from interp.figures.attention_scatter import head_scatter, spearman
from interp.figures.attention_spectra import head_spectrum

torch.set_grad_enabled(False)
model = HookedModel.load(MODEL)
layers = range(0, model.cfg.n_layers, EVERY)
print(f"{len(layers)} of {model.cfg.n_layers} layers, {model.cfg.n_heads} heads of width {model.cfg.d_head} each")

# %% [markdown]
# ## One head
#
# `kernel` gives the heads of a layer as factors (norm folded in, keys of a group repeated). The two parts come from a
# core of twice a head's width, never from the width of the model: the largest singular values of routing come in pairs
# (planes), the eigenvalues of filtering have signs (positive: like attracts like).

# %%
middle = layers[len(layers) // 2]
m = kernel(model, middle).bilinear
routing, filtering = m.routing(), m.filtering()
unit = (routing.energy + filtering.energy).sqrt()[0]
share = float(routing.energy[0] / unit**2)
print(f"layer {middle}, head 0: routing is {share:.1%} of the energy")
head_spectrum(routing.values[0] / unit, filtering.signed[0] / unit)

# %% [markdown]
# ## Every head, beside chance
#
# A share of half is what a random kernel has, so half means nothing by itself. The null keeps each head's singular
# values and turns queries and keys at random.

# %%
rows = kernel_rows(model, layers=layers, draws=DRAWS, progress=False)
depth_plot(
    rows,
    {"measured": "routing_fraction", "same singular values, turned at random": "null_routing_fraction"},
    y_title="share of routing in the energy",
)

# %%
names = {
    "share of routing": "z_routing_fraction",
    "rank of routing (90 % of energy)": "z_routing_r90",
    "effective rank of routing": "z_routing_erank1",
    "effective rank of filtering": "z_filtering_erank1",
    "departure from normality": "z_henrici",
}
z_plot({name: [row[column] for row in rows] for name, column in names.items()})

# %% [markdown]
# ## First warning: the measure of rank
#
# "Low-rank routing" depends on the definition. The same heads, in the weights and where they operate on text (queries
# against keys after RoPE):

# %%
train, held_out = split(read_corpus("builtin"))
text = even_windows(model, held_out, max_tokens=TEXT, length=LENGTH)
working = operating_rows(model, text[:WINDOWS], layers=layers, progress=False)
definitions = {
    "effective (entropy)": "erank1", "participation": "participation", "stable": "stable",
    "90 % of energy": "r90", "99 % of energy": "r99", "numerical": "numerical",
}  # fmt: skip
objects = {"weights": (rows, "routing"), "on text": (working, "op_raw_routing"),
           "on text, keys centred": (working, "op_key_centred_routing")}  # fmt: skip
rank_definitions(
    {name: {said: [row[f"{start}_{rank}"] for row in table] for said, rank in definitions.items()}
     for name, (table, start) in objects.items()}
)  # fmt: skip

# %% [markdown]
# ## Second warning: the gauge
#
# Adding one number to all logits of a query changes no softmax. It does change the split: taking the mean out of the
# keys leaves attention as it is (without a soft-cap) and moves energy between routing and filtering.

# %%
depth_plot(
    working,
    {
        "as computed": "op_raw_routing_fraction",
        "keys centred: the same attention": "op_key_centred_routing_fraction",
        "queries centred too: other attention": "op_double_centred_routing_fraction",
    },
    y_title="share of routing, operating on text",
)

# %% [markdown]
# ## What RoPE adds
#
# Position enters by rotation, so a kernel has four sectors: what both parts do at offset zero, and what turning makes
# of them. Summed over offsets 0 to 127:

# %%
turned = rope_rows(model, layers=layers, progress=False)
names = {f"{parity} {kind}": f"rope_{parity}_{kind}" for parity in ("even", "odd") for kind in ("symmetric", "skew")}
share_bars(turned, names, y_title="share of the four sectors")

# %% [markdown]
# ## Does the structure say what a head does?
#
# Scores on random tokens said twice: previous-token, duplicate-token, induction, attention sink.

# %%
does = behaviour_rows(model, layers=layers, sequences=2 if SMALL else 4, length=24 if SMALL else 48, progress=False)
heads = [{**a, **b, **c} for a, b, c in zip(rows, does, working, strict=True)]
kinds = [name for name in does[0] if name not in ("layer", "head")]
table = pd.DataFrame(
    {kind: {column: spearman(heads, column, kind)[0] for column in (
        "routing_fraction", "routing_r90", "op_key_centred_routing_fraction", "op_key_centred_routing_r90"
    )} for kind in kinds}
)  # fmt: skip
table.round(2).rename_axis(f"Spearman, {len(heads)} heads")

# %%
head_scatter(
    heads, "op_key_centred_routing_fraction", "induction",
    x_title="share of routing on text, keys centred", y_title="induction score",
).update_layout(showlegend=True)  # fmt: skip

# %% [markdown]
# ## Surgery: what the model loses
#
# Put $\alpha S + \beta A$ in place of every head's interaction and measure the loss on held-out text; intervals are
# bootstrapped over windows. Removing a part is done in both gauges: the model before the cut is the same.

# %%
ways = {"as computed": Surgery()}
if model.cfg.attn_cap is None:  # with a soft-cap, centring would change attention
    calibration = even_windows(model, train, max_tokens=TEXT, length=LENGTH)
    bases, means = gauged(corpus_grams(model, calibration, progress=False), "key_centred")
    ways["keys centred"] = Surgery(bases=bases, key_means=means)
cut = [surgery for base in ways.values() for surgery in removals(base)]
found = surgery_sweep(model, cut, text, progress=False)[1:]
labels = [f"{gone} removed, {way}" for way in ways for gone in ("routing", "filtering")]
pd.DataFrame(
    [{"surgery": label} | {k: round(row[k], 2) for k in ("delta_ce", "delta_ce_low", "delta_ce_high")}
     for label, row in zip(labels, found, strict=True)]
).set_index("surgery").rename_axis("all heads at once; nats per token")  # fmt: skip

# %% [markdown]
# How many planes and modes are enough? Kept are the strongest of every head's weights.

# %%
e = model.cfg.d_head
kept = sorted({e // 4, e} if SMALL else {0, e // 16, e // 4, e // 2, e})
base = Surgery(level="kernel")
found = surgery_sweep(model, truncations(base, planes=kept, modes=[2 * k for k in kept]), text, progress=False)
series = {"routing planes kept": found[1 : len(kept) + 1], "filtering modes kept": found[len(kept) + 1 :]}
curves(
    {name: [(k / e, row["delta_ce"]) for k, row in zip(kept, part, strict=True)] for name, part in series.items()},
    bands={name: [(k / e, row["delta_ce_low"], row["delta_ce_high"]) for k, row in zip(kept, part, strict=True)]
           for name, part in series.items()},
    x_title="share of the dimensions kept in every head", y_title="change of the loss, nats per token",
)  # fmt: skip

# %% [markdown]
# ## What was seen, and what it does not show
#
# - Heads route a little less than chance: shares of routing lie just below one half in most layers, lowest in layer 0
#   (0.39), where the same singular values at random give one half. For most
#   heads the distance is many standard deviations, and small.
# - Rank: one set of heads has routing of effective rank about 100 in the weights and of stable rank about 20; where it
#   operates on text the same two measures say about 28 and 3. A "rank of routing" without its measure means nothing.
# - Gauge: on text, the share of routing rises from 0.1 to 0.4, depending on layer, to 0.3 to 0.5 once keys are centred
#   (not in layer 10), with the attention unchanged. So with surgery: as computed, removing filtering hurts more (3.8
#   against 3.0 nats); with keys centred, removing routing does (5.1 against 2.0).
# - Induction heads are few, and no share of routing singles them out; the correlations over heads are moderate and
#   change their sign with the gauge.
# - Of the weights' own directions, which know no text, a quarter does not suffice: planes cost 0.6 nats, modes 1.5.
#
# It does not show which channel is load-bearing: that question has no answer without a gauge. Nor a mechanism: removing
# a part from all heads at once leaves the model far from any text it was trained on. Four windows and 135 heads of one
# small model, four draws of the null each; intervals are over windows of one corpus.

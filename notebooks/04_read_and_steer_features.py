# %% [markdown]
# # Does a feature mean what its top contexts say? Reading features, then steering with them
#
# Top contexts show what a feature answers to, its promoted tokens what it writes. If both name the same thing, adding
# the feature to unrelated text should bring that thing about, more than a random direction of equal length does, and
# at what cost to everything else?

# %% tags=["parameters"]
import os

MODEL = os.environ.get("MIDLENS_NOTEBOOK_MODEL", "smollm2-135m")  # a preset, a hub id, a folder or a GGUF file
SMALL = os.environ.get("MIDLENS_NOTEBOOK_SIZE") == "small"
TRAIN_TOKENS, KL_TOKENS, NEW_TOKENS = (3_000, 150, 6) if SMALL else (30_000, 800, 24)
EXPANSION, K, EPOCHS = 2, 16, 4  # of the SAE that is trained where the preset names none
ABOUT = ["def mean(values):\n    return sum(values) / len(values)", "for key, value in table.items():\n    print(key)"]
NOT_ABOUT = ["We walked along the river until it was dark.", "She asked her brother for the name of the song."]
PROMPTS = ["My favourite part of the day is", "The old house stood", "When I was young,", "Last week we decided to"]
STRENGTHS = (0.25, 0.5, 1.0)  # of the mean norm of the residual stream

# %%
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch
from IPython.display import display

from interp import HookedModel, Lens, Site, extract, read_corpus, split, tokenize
from interp.batching import batches
from interp.effects import compare
from interp.figures.style import GREY, dress
from interp.figures.token_highlights import highlight_tokens, token_grid
from interp.lens import token_strings
from interp.steering.generation import Writing, generate_texts
from interp.steering.prompts import Prompt
from interp.steering.sae_features import add_features, clamp_features
from saes import TrainConfig, fit, load_sae, read_features
from saes.evaluate import row_norms, threshold_of
from saes.examples import Source

OUT = Path("runs/notebook-04")  # beside this notebook; finished steps are found again
model = HookedModel.load(MODEL)
site = model.preset.site if model.preset else Site.parse(f"resid_post.{(model.cfg.n_layers - 1) // 2}")
bos = model.preset.prepend_bos if model.preset else False

# %% [markdown]
# ## An SAE and text to read it on
#
# Presets name a public SAE (Llama Scope, Gemma Scope). SmolLM2 has none, so a small one is trained here: minutes of
# text, a small dictionary, rough features.

# %%
train, held_out = split(read_corpus("builtin"))
tokens = tokenize(train, model.tokenizer, OUT / "tokens", prepend_bos=bos, max_tokens=TRAIN_TOKENS)
store = extract(model, tokens, [site], OUT / "store", max_length=128, progress=False)
if model.preset and model.preset.saes:
    sae = load_sae(model.preset.saes[0], device=model.device)
else:
    recipe = TrainConfig(expansion=EXPANSION, k=K, epochs=EPOCHS, batch_size=256)
    sae = fit(store, recipe, OUT / "sae", site=site, device=model.device).to(model.device)
limit = threshold_of(sae, store, site)
norms = row_norms(store, site)
mean_norm = float(norms[norms <= limit].mean())
print(f"{sae.config.d_sae:,} features; mean norm at {site}: {mean_norm:.1f}")

# %% [markdown]
# ## Finding a feature
#
# For a subject, texts about it against texts that are not: the features whose mean activation differs most.

# %%
torch.set_grad_enabled(False)


def feature_activations(texts):
    batch = model.to_tokens(texts)
    acts = model.capture(batch.tokens, [site], lengths=batch.lengths)[site]
    rows = torch.cat([x[1:n] for x, n in zip(acts, batch.lengths.tolist(), strict=True)])  # without the first position
    return sae.encode(rows.float()).dense()


difference = feature_activations(ABOUT).mean(0) - feature_activations(NOT_ABOUT).mean(0)
candidates = difference.topk(4).indices.tolist()
read = read_features(
    sae, [Source(store, tokens)], site, tokenizer=model.tokenizer, lens=Lens.of(model), threshold=limit
)
features = {feature.index: feature for feature in read if feature.index in candidates}
pd.DataFrame(
    {
        "difference": [round(float(difference[i]), 2) for i in candidates],
        "fires on": [f"{features[i].density:.2%}" for i in candidates],
        "promotes": [" ".join(repr(token) for token, _ in features[i].promoted[:6]) for i in candidates],
    },
    index=pd.Index(candidates, name="feature"),
)

# %% [markdown]
# ## What one answers to
#
# Its strongest contexts, each of another document, and its activation on texts it was not chosen on.

# %%
chosen = features[candidates[0]]
for example in chosen.examples[:3]:
    scale = chosen.max_activation or 1.0
    name = f"feature {chosen.index}, {example.activation:.1f} in {example.doc_id.split('/')[-1]}"
    display(highlight_tokens(example.tokens, example.activations, names=[name], scales=[scale]))

# %%
probe = "The function returns a list. She returned the book to the list of friends: [1, 2, 3].append(x)"
batch = model.to_tokens([probe])
codes = sae.encode(model.capture(batch.tokens, [site])[site][0].float()).dense()
codes[0] = 0  # the first position is massive and was left out of training
words = token_strings(model.tokenizer, batch.tokens[0].tolist())
token_grid(
    [words[i] for i in batch.tokens[0].tolist()],
    codes[:, candidates].T.cpu(),
    names=[f"feature {i}" for i in candidates],
    scales=[features[i].max_activation or 1.0 for i in candidates],
)

# %% [markdown]
# ## Steering with it
#
# The strength is a fraction of the mean norm of the residual stream, along the unit decoder row, so that it means the
# same for every feature, SAE and model. *Add* puts it on top of what is there; *clamp* first takes out the feature's
# own activation. Control: random directions of the same length.

# %%
decoder, encoder = sae.W_dec.detach(), sae.W_enc.detach()
bias = sae.b_enc.detach() - (sae.b_dec.detach() @ encoder if sae.config.apply_b_dec_to_input else 0)
random = torch.randn(3, decoder.shape[1], generator=torch.Generator().manual_seed(0)).to(decoder)
edits = {}
for strength in STRENGTHS:
    raw = {chosen.index: strength * mean_norm}
    edits["add", strength] = add_features(decoder, raw)
    edits["clamp", strength] = clamp_features(decoder, raw, encoder=encoder, bias=bias)
    for i in range(len(random)):
        edits[f"random {i}", strength] = add_features(random, {i: strength * mean_norm})

openings = [Prompt(text, instruction=False) for text in PROMPTS]
written = {"unsteered": generate_texts(model, openings, writing=Writing(max_new_tokens=NEW_TOKENS))}
for way in ("add", "clamp", "random 0"):
    for strength in STRENGTHS[1:]:
        hooks = {site: edits[way, strength]}
        found = generate_texts(model, openings, hooks, writing=Writing(max_new_tokens=NEW_TOKENS))
        written[f"{way}, {strength:g}"] = found
pd.DataFrame({name: texts.texts[:2] for name, texts in written.items()}, index=PROMPTS[:2]).T.map(repr)

# %% [markdown]
# ## Effect against cost
#
# Effect: the rise in log-probability of the ten tokens that the lens says the feature promotes, after the prompts.
# Cost: KL from the unsteered model on held-out text. A direction is only worth something above the random ones.

# %%
other = tokenize(held_out, model.tokenizer, OUT / "held-out", prepend_bos=bos, max_tokens=4 * KL_TOKENS)
windows = list(batches(other, token_budget=512, max_length=64))
named = {f"{way}, {strength:g}": {site: edit} for (way, strength), edit in edits.items()}
costs = compare(model, windows, named, max_tokens=KL_TOKENS)
promoted = Lens.of(model).top(decoder[[chosen.index]], k=10).promoted[0]
prompts = model.to_tokens(PROMPTS)


def log_probability(hooks):
    with model.edited(hooks):
        logits = model(prompts.tokens, lengths=prompts.lengths)
    last = logits[torch.arange(len(PROMPTS)), prompts.lengths - 1].float().log_softmax(-1)
    return float(last[:, promoted].mean())


rises = {name: log_probability(hooks) - log_probability({}) for name, hooks in named.items()}

# %%
figure = dress(go.Figure(), showlegend=True, height=380)
for way in dict.fromkeys(way for way, _ in edits):
    names = [f"{way}, {strength:g}" for strength in STRENGTHS]
    figure.add_scatter(
        x=[costs.kl[name] for name in names],
        y=[rises[name] for name in names],
        mode="lines+markers",
        name=way if not way.startswith("random") else "random direction",
        line_dash="dot" if way.startswith("random") else "solid",
        line_color=GREY if way.startswith("random") else None,
        showlegend=way in ("add", "clamp", "random 0"),
        text=[f"strength {strength:g}" for strength in STRENGTHS],
    )
figure.update_xaxes(title="cost: KL on held-out text, nats per token", type="log", tickvals=[0.03, 0.1, 0.3, 1, 3, 10])
figure.update_yaxes(title="effect: rise in log-probability of promoted tokens, nats")
figure

# %%
table = pd.DataFrame({"effect": rises, "KL": costs.kl, "ΔCE": {name: costs.delta_ce(name) for name in named}})
texts = {name: sum(found.repetition) / len(PROMPTS) for name, found in written.items()}
losses = {name: sum(found.losses) / sum(found.n_tokens) for name, found in written.items()}
display(table.round(3))
display(pd.DataFrame({"repetition": texts, "loss per token, unsteered model": losses}).round(3))

# %% [markdown]
# ## What was seen, and what it does not show
#
# On SmolLM2, with this small SAE:
#
# - The chosen feature answers to brackets that close a line of code. Its promoted tokens (" public", " work", pieces of
#   words) say nothing of brackets: top contexts and the lens need not name the same thing.
# - Adding it raises those tokens far more than random directions of the same length do, which at a quarter and a half
#   cost as much KL. So the lens is right about what the direction writes at the next token.
# - What it *writes* over several tokens is what stands behind a closing bracket, line breaks; at full strength nothing
#   else. Random directions of full strength break the text as well, in other ways.
# - Adding and clamping all but agree here: the feature is silent where text is written, so there is nothing to take
#   out first.
# - Steered text can look better to one measure than it is: a row of line breaks repeats no word.
#
# It does not show that the feature "is" code: four short texts chose it, and only three random directions stand beside
# it. The effect is measured on tokens picked with the same weights that are added, so that some rise is certain;
# a judge that reads the text, and features of equal density as controls, would be the stricter test.

# %% [markdown]
# # What does it cost to turn horses into motorcycles? Affine steering and its trade-offs
#
# Of all affine edits $x \mapsto x + \beta\,(U(V^\top x - c) + \delta)$ that change a concept, which one disturbs
# everything else least? MidSteer (arXiv 2605.05220) answers in closed form, with the covariance of neutral activations.
# Here one is fitted, applied, and set beside the usual edits at equal disturbance, by judges that read the text only.

# %% tags=["parameters"]
import os

MODEL = os.environ.get("MIDLENS_NOTEBOOK_MODEL", "smollm2-135m")  # a preset, a hub id, a folder or a GGUF file
SMALL = os.environ.get("MIDLENS_NOTEBOOK_SIZE") == "small"
CONTRAST = "horse-motorcycle"  # source, target: texts of two kinds, and unrelated ones; or a .jsonl file of your own
N_FIT = 8 if SMALL else None  # texts of each kind for fitting; None: all
LEVEL = None if SMALL else 0.01  # of the test that a site shows the concept at all; None: take every site, as it is
BETAS = (2.0,) if SMALL else (2.0, 4.0)  # strengths
N_PROMPTS, NEW_TOKENS = (2, 4) if SMALL else (8, 24)  # held-out prompts of each kind, and what is written on each

# %%
from dataclasses import replace

import pandas as pd
import torch

from interp import HookedModel, Site, read_corpus, split
from interp.figures.steering_effects import effect_bars, layer_plot
from interp.figures.steering_fronts import change_plot, front_plot
from interp.judges import EmbeddingJudge, LexiconJudge
from interp.steering.baselines import fit_methods, matched_betas
from interp.steering.contrast import read_contrast
from interp.steering.evaluate import evaluate
from interp.steering.evaluation_config import EvaluationConfig
from interp.steering.fit import Settings, fit_steering
from interp.steering.methods import Recipe
from interp.steering.prompts import fitting_prompts, has_chat
from interp.steering.steering import Steering, generate_steered, steered

torch.set_grad_enabled(False)
model = HookedModel.load(MODEL)
contrast = read_contrast(CONTRAST)
prompts = fitting_prompts(contrast, chat=has_chat(model), n=N_FIT)
source, target, neutral = prompts.source, prompts.target, prompts.neutral
print(f"{len(source)} {contrast.concepts[0].name}, {len(target)} {contrast.concepts[1].name}, {len(neutral)} unrelated")
source[0], target[0], neutral[0]

# %% [markdown]
# ## Where is the concept?
#
# $\alpha$ is the squared length of the concept in the metric of the neutral covariance (a Fisher ratio), less what
# estimating it adds. $\rho$, the leak, is the share of the edit that *target* texts get: MidSteer counts both concepts
# from neutral text, and where they differ from it in the same way, it cannot tell them apart.

# %%
n = model.cfg.n_layers
places = [f"resid_post.{layer}" for layer in sorted({n // 6, n // 3, n // 2, 2 * n // 3})]
settings = Settings(Recipe("midsteer", calibrate=LEVEL is not None), level=LEVEL)
every = replace(settings, level=None)  # no test here, hence no p
fitted = fit_methods(model, prompts, places, ["midsteer"], settings=every, random=False)
scan = fitted["midsteer"].provenance["sites"]
columns = ["alpha", "alpha_debiased", "p", "rho", "shrinkage", "eta"]
pd.DataFrame({site: {name: one[name] for name in columns} for site, one in scan.items()}).T.astype(float).round(3)

# %%
rows = [{"layer": Site.parse(site).layer, "point": "resid_post", **one} for site, one in scan.items()]
layer_plot(rows, "alpha_debiased", y_title="α, debiased")

# %% [markdown]
# ## Fit
#
# At the layer of the largest debiased $\alpha$. `preserve="target"` asks that target texts stay where they are, which
# takes what both concepts share out of the edit. `fit_steering` warns where $\rho$ is large and this was not asked for.

# %%
best = max(scan, key=lambda site: scan[site]["alpha_debiased"])
steering = fit_steering(
    model, source, target, neutral=neutral, sites=best, preserve="target",
    positions=prompts.positions, level=LEVEL, calibrate=LEVEL is not None,
)  # fmt: skip
known = steering.provenance["sites"][best]
print(steering.method, best, {name: round(known[name], 3) for name in ("alpha_debiased", "rho", "eta")})
(edit,) = steering.edits.values()
print(f"U, V: {tuple(edit.U.shape)}; the dense map would be {edit.d} x {edit.d}")

# %% [markdown]
# ## Apply
#
# A steering is a value. Strength 0 is bit for bit nothing; `steered` is a block, `generate_steered` writes.

# %%
asked = [p for p in contrast.held_out.source[:2]] + [contrast.held_out.unrelated[0]]
chats = [[{"role": "user", "content": text}] for text in asked] if has_chat(model) else asked
tokens = model.to_tokens(["My neighbour's horse"]).tokens
clean = model(tokens)
with steered(model, steering.at(0)):
    assert torch.equal(model(tokens), clean)

columns = {}
for beta in (0, *BETAS):
    columns[f"β = {beta:g}"] = generate_steered(
        model, chats, steering.at(beta), generation_prompt=True, max_new_tokens=NEW_TOKENS
    )
table = pd.DataFrame(columns, index=asked).T
table.style.set_properties(**{"white-space": "pre-wrap", "text-align": "left", "vertical-align": "top"})

# %% [markdown]
# ## Beside the usual edits, at equal disturbance
#
# `add` adds the difference of means, `vanilla` projects on its direction (about the origin, as usually done), `flip`
# exchanges both concepts, `random` is a translation that disturbs as much. Vectors of different methods differ in size,
# so equal $\beta$ compares nothing: each gets strengths at which it disturbs neutral activations as MidSteer does.

# %%
methods = fit_methods(model, prompts, best, ("midsteer", "flip", "add", "vanilla"), settings=settings)
methods["midsteer, target kept"] = steering
betas = matched_betas(methods, "midsteer", BETAS)
_, held_out = split(read_corpus("builtin"))
config = EvaluationConfig(
    n_prompts=N_PROMPTS, max_new_tokens=NEW_TOKENS, questions=0, samples=1,
    neutral_documents=4 if SMALL else 12, neutral_length=32,
)  # fmt: skip
judges = [EmbeddingJudge(), LexiconJudge()]
found = evaluate(
    model, methods, contrast, judges=judges, neutral=list(held_out), betas=betas, config=config, show=False
)
pd.DataFrame(betas, index=[f"like MidSteer at {beta:g}" for beta in BETAS]).T.rename_axis("β")

# %% [markdown]
# ## Concept against cost
#
# Score: from −1 (source) to 1 (target), of texts written on held-out source prompts. Cost: KL on unrelated text.

# %%
judge = judges[0].name
front_plot(found, judge)

# %% [markdown]
# MidSteer's claim is about the other axis: what happens to prompts that are of the *target* already. Right and low is
# good.

# %%
change_plot(found, judge)

# %% [markdown]
# ## Does the text stay text?
#
# Strong steering makes loops, and a loop is easy to predict: repetition and perplexity must be read together.

# %%
strongest = [found.of(name)[-1] for name in found.methods]
effect_bars(
    {point.name: point.sets["source"].repetition for point in strongest}, x_title="share of repeated trigrams",
    level=(found.of("unsteered")[0].sets["source"].repetition.value, "unsteered"),
)  # fmt: skip

# %%
rows = []
for point in strongest:
    row = {"point": point.name, "KL": point.kl.value}
    for kind, one in point.sets.items():
        row[f"Δ score, {kind}"] = one.change[judge].mean.value
    row |= {"p (source)": point.sets["source"].change[judge].p, "perplexity": point.sets["source"].perplexity.value}
    rows.append(row)
pd.DataFrame(rows).set_index("point").round(3)

# %% [markdown]
# Do the judges agree? The word list sees words, the embedding meaning; neither sees which method wrote the text.

# %%
embedded, counted = (
    [round(point.sets["source"].change[one].mean.value, 3) for point in strongest] for one in found.judges
)
same = sum(a * b >= 0 for a, b in zip(embedded, counted, strict=True))
print(f"same sign of the change in {same} of {len(strongest)} points")

# %% [markdown]
# ## Compose, save, load
#
# Edits of one site compose into one edit, exactly. They do not commute.

# %%
mood = read_contrast("sentiment")
other = fitting_prompts(mood, chat=has_chat(model), n=N_FIT or 60)
cheer = fit_steering(
    model, other.source, other.target, neutral=other.neutral, sites=best, preserve="target",
    positions=other.positions, level=None, calibrate=LEVEL is not None,
)  # fmt: skip
both, reverse = steering.at(2).then(cheer.at(2)), cheer.at(2).then(steering.at(2))
(one,), (swapped,) = both.edits.values(), reverse.edits.values()
x = model.capture(tokens, [best])[Site.parse(best)][0].float()
in_turn = cheer.edits[Site.parse(best)].at(2)(steering.edits[Site.parse(best)].at(2)(x))
off = float((one(x) - in_turn).abs().max())
print(f"composed is one edit of rank {one.U.shape[1]}; off from both in turn by {off:.1e}")
print(f"the other order differs by {float((one(x) - swapped(x)).norm() / (one(x) - x).norm()):.1%} of the change")

# %%
both.save("both")  # safetensors and JSON; knows which model it is for
again = Steering.load("both")
with steered(model, again):
    loaded = model(tokens)
with steered(model, both):
    assert torch.equal(model(tokens), loaded)
sorted(again.provenance)

# %% [markdown]
# ## What was seen, and what it does not show
#
# - At about equal disturbance of neutral activations, MidSteer moves source prompts by 0.96 (p = 0.03), flip by 0.2,
#   adding and projecting by nothing that can be told from chance. An instruction in the prompt: 0.36, at a KL of 0.36.
# - It costs more KL (0.025 nats) than the others at that strength (0.002 to 0.006); perplexity rises from 2.2 to 3.5.
# - Target prompts: 0.01 under MidSteer, -0.18 under the flip; -0.15 with the target kept, which does not help here.
#
# It does not show that MidSteer is better: eight prompts a side, one concept, one layer, a small model, no correction
# for the number of comparisons; the others are weak at this strength and are not measured at strengths that suit them.
# "Exactly" of composition is up to the rounding of float32; the model computes in bfloat16, which rounds more coarsely
# than that.

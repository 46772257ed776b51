"""One process of a model cut in two: `torchrun --nproc-per-node 2 tests/tensor_parallel_child.py FOLDER PLAN`.

PLAN is auto, or one that has to be refused. Does with FOLDER/model what `work` does, and writes what it found to
FOLDER/RANK.safetensors; then what `part` does, to FOLDER/part-RANK.safetensors. The test does the same with the whole
model.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

T = 11


def edited(x: Tensor, where) -> Tensor:
    """An edit that no permutation of heads or features leaves alone."""
    places = where.positions.reshape(*where.positions.shape, *[1] * (x.ndim - 2))
    ramp = torch.linspace(0.9, 1.2, x[0, 0].numel()).reshape(x.shape[2:])
    return x * ramp + 0.03 * places


def work(model, folder: Path) -> dict[str, Tensor]:
    """Captures, edits, gradients, generation and the lens: what a model is asked for, as tensors by name."""
    from interp.compat import all_sites
    from interp.lens import logit_lens
    from interp.sites import Site
    from interp.taps import DERIVED

    tokens = torch.randint(3, 97, (2, T), generator=torch.Generator().manual_seed(1))
    sites, found = all_sites(model), {}
    with torch.no_grad():
        logits, acts = model.run_recorded(tokens, sites)
        found["logits"] = logits
        found |= {f"act {site}": x for site, x in acts.items()}
        found |= {f"head {site}": x for site, x in model.capture(tokens, ["q.1[2]", "k.1[1]", "z.2[3]"]).items()}
        for site in [site for site in sites if site.point not in DERIVED and site.layer in (None, 1)]:
            with model.edited({site: edited}):
                found[f"edit {site}"] = model(tokens)
        with model.edited({Site.parse("z.1[2]"): lambda x, where: 0 * x}):
            found["edit of a head"] = model(tokens)
        found["lens"] = logit_lens(model, acts[Site.parse("resid_post.1")])
        short = torch.tensor([T, 6])
        for cache in (True, False):
            made = model.generate(
                tokens, lengths=short, edits={Site.parse("mlp_post.1"): edited}, max_new_tokens=5, use_cache=cache
            )
            found[f"generated {cache}"] = made
    for name in ("resid_pre.1", "q.1", "z.1", "mlp_post.1", "mlp_out.0"):
        site = Site.parse(name)
        logits, acts = model.run_recorded(tokens, [site])
        (found[f"gradient {site}"],) = torch.autograd.grad(logits.log_softmax(-1)[..., 5].sum(), acts[site])
    return {name: x.detach().clone().contiguous() for name, x in found.items()}


PART = "mlp_post.1"
"""The site up to which a part of the model is loaded."""
DOWN = {"gpt_neox": "gpt_neox.layers.*.mlp.dense_4h_to_h"}
"""The MLP's last matrix where it has a name of its own."""
PART_SITES = ["resid_post.0", "q.1", "k.1[1]", "z.1", PART]


def part(model) -> dict[str, Tensor]:
    """Captures below `PART`, one of them with an edit, as tensors by name."""
    from interp.sites import Site

    tokens = torch.randint(3, 97, (2, T), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = {f"act {site}": x for site, x in model.capture(tokens, PART_SITES).items()}
        with model.edited({Site.parse("z.0"): edited}):
            found["edit z.0"] = next(iter(model.capture(tokens, [PART]).values()))
    return {name: x.detach().clone().contiguous() for name, x in found.items()}


def main() -> None:
    import torch.distributed as dist
    from safetensors.torch import save_file

    from interp.extract import extract
    from interp.model import HookedModel
    from interp.sharded import group_of, together
    from tests.toy_store import token_file

    folder, plan = Path(sys.argv[1]), sys.argv[2]
    cut = "auto" if plan == "auto" else {"model.norm": "sequence_parallel", "model.layers.*.mlp.up_proj": "colwise"}
    model = HookedModel.load(folder / "model", dtype="float32", tp_plan=cut)
    model.hf.requires_grad_(False)
    assert plan != "auto" or any(group_of(module) is not None for module in model.hf.modules()), "the model is not cut"
    save_file(work(model, folder), folder / f"{dist.get_rank()}.safetensors")
    store = together(
        model,
        lambda leader: extract(
            leader, token_file(folder / "tokens", [5, 30, 12], seed=1), ["z.1", "resid_post.1"], folder / "store",
            store_dtype="float32", progress=False,
        ),
    )  # fmt: skip
    assert (store is None) == (dist.get_rank() > 0)
    for name, plan in (
        ("part", "auto"),
        (
            "named",
            {DOWN.get(model.hf.config.model_type, "model.layers.*.mlp.down_proj"): "rowwise", "lm_head": "colwise_rep"},
        ),
    ):
        lower = HookedModel.load(folder / "model", upto=PART, dtype="float32", tp_plan=plan)
        assert lower.loaded_layers == 2 and any(group_of(module) is not None for module in lower.hf.modules())
        save_file(part(lower), folder / f"{name}-{dist.get_rank()}.safetensors")


if __name__ == "__main__":
    main()

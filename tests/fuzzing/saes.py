"""Targets that are files of sparse autoencoders: ours, SAELens's, and every layout of other tools."""

import json
from pathlib import Path

import torch
from fuzzing.mutate import Kind, written
from fuzzing.registry import Prepared, target
from report_samples import features
from sae_layouts import place

from saes.interop.load import load_sae
from saes.sae import SAE, SAEConfig

LAYOUTS = (
    ("saelens_cfg", "saelens/topk", "cfg.json", "json"),
    ("saelens_training_cfg", "saelens/batchtopk", "cfg.json", "json"),
    ("saelens_transcoder_cfg", "saelens/jumprelu_skip_transcoder", "cfg.json", "json"),
    ("saelens_weights", "saelens/jumprelu", "sae_weights.safetensors", "safetensors"),
    ("saelens_legacy_cfg", "saelens_legacy/topk", "cfg.json", "json"),
    ("saelens_legacy_weights", "saelens_legacy/jumprelu", "sae_weights.safetensors", "safetensors"),
    ("sparsify_cfg", "sparsify/layers.15", "cfg.json", "json"),
    ("sparsify_run", "sparsify/layers.15", "../config.json", "json"),
    ("sparsify_weights", "sparsify/layers.15", "sae.safetensors", "safetensors"),
    ("gemma_scope_npz", "gemma_scope", "params.npz", "bytes"),
    ("gemma_scope_2_cfg", "gemma_scope_2/transcoder_all/layer_5_width_16k_l0_small_affine", "config.json", "json"),
    (
        "gemma_scope_2_weights",
        "gemma_scope_2/resid_post/layer_5_width_16k_l0_small",
        "params.safetensors",
        "safetensors",
    ),
    ("llama_scope_cfg", "llama_scope/Llama3_1-8B-Base-L15R-32x", "hyperparams.json", "json"),
    ("llama_scope_weights", "llama_scope/Llama3_1-8B-Base-L15R-32x", "checkpoints/final.safetensors", "safetensors"),
    ("llamascopium_cfg", "llamascopium/jumprelu", "config.json", "json"),
    ("llamascopium_weights", "llamascopium/topk", "sae_weights.safetensors", "safetensors"),
    ("dictionary_learning_cfg", "dictionary_learning/BatchTopKSAE", "config.json", "json"),
    ("dictionary_learning_pickle", "dictionary_learning/AutoEncoderTopK", "ae.pt", "bytes"),
    ("goodfire_pickle", "goodfire", "Llama-3.1-8B-Instruct-SAE-l19.pth", "bytes"),
)


def _used(sae: SAE) -> None:
    """One step of what an SAE is for."""
    x = torch.ones(2, sae.config.d_in)
    codes = sae.encode(x)
    assert sae.decode(codes, x).shape == (2, sae.config.width_out) and sae._facts()
    json.dumps(dict(sae.config.metadata))


def _layout(name: str, case: str, file: str, kind: Kind) -> None:
    @target(name, kind)
    def _(folder: Path) -> Prepared:
        path = place(case, folder)
        return Prepared(lambda _: _used(load_sae(path, trust_pickle=True)), [(path / file).read_bytes()], path / file)


for _case in LAYOUTS:
    _layout(*_case)  # type: ignore[arg-type]


def _own(name: str, file: str, kind: Kind, **config: object) -> None:
    @target(name, kind)
    def _(folder: Path) -> Prepared:
        sae = SAE(SAEConfig(d_in=4, d_sae=6, **config))  # type: ignore[arg-type]
        sae.save(folder / "sae")

        def parse(_: bytes) -> None:
            found = SAE.load(folder / "sae")
            _used(found)
            if found.config.sources:
                found.join(found.split(torch.ones(1, found.config.d_in)))

        return Prepared(parse, [(folder / "sae" / file).read_bytes()], folder / "sae" / file)


_own("sae_cfg", "cfg.json", "json", k=2)
_own("sae_crosscoder_cfg", "cfg.json", "json", k=2, sources=(3, 1), metadata={"hook_name": "blocks.1.hook_resid_post"})
_own("sae_weights", "sae_weights.safetensors", "safetensors", architecture="gated")


@target("features_jsonl", "jsonl")
def _(folder: Path) -> Prepared:
    from saes.examples import load_features, write_features

    path = folder / "features.jsonl"
    write_features(path, features(3, n_examples=2, width=4))
    seed = path.read_bytes()

    def parse(_: bytes) -> None:
        for feature in load_features(path):
            assert all(len(e.tokens) == len(e.activations) and 0 <= e.peak < len(e.tokens) for e in feature.examples)
            assert len(feature.edges) in (0, len(feature.histogram) + 1)

    return Prepared(parse, [seed], path)


@target("sae_evaluation", "json")
def _(folder: Path) -> Prepared:
    from report_samples import evaluation

    from saes.evaluation import Evaluation

    path = folder / "evaluation.json"
    evaluation(features(4)).save(path)

    def parse(_: bytes) -> None:
        found = Evaluation.load(path)
        assert found.text() and json.dumps(found.scalars())

    return Prepared(parse, [path.read_bytes()], path)


@target("sweep_grid", "json")
def _(folder: Path) -> Prepared:
    from saes.sweep_config import load_grids, named

    path = folder / "grid.json"
    grid = {"architecture": ["topk", "batchtopk"], "d_sae": [64, 128], "k": [4, 8], "lr": [1e-3], "base": {"epochs": 2}}

    def parse(_: bytes) -> None:
        assert named(load_grids(path))

    return Prepared(parse, [written(grid), written([grid, {"architecture": "standard", "sparsity": 0.1}])], path)


@target("sweep_summary", "json")
def _(folder: Path) -> Prepared:
    from saes.sweep_summary import FILE, Summary

    member = {"name": "topk-w64", "architecture": "topk", "d_sae": 64, "config": {"k": 4}, "status": "unfinished",
              "error": None, "training": None, "held_out": None, "measured": None}  # fmt: skip
    facts = {"model": "toy", "sites": ["blocks.1.hook_resid_post"], "site_out": None, "rows": 10, "store": "abc"}
    content = {"format": "midlens-sweep", "version": 1, "facts": facts, "members": [member]}

    def parse(_: bytes) -> None:
        summary = Summary.load(folder)
        assert all(summary.has_diverged(name) in (True, False) for name in summary.records)
        assert isinstance(summary.facts["sites"], list)

    return Prepared(parse, [written(content)], folder / FILE)

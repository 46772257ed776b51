"""Hub names and presets: what is asked of the hub and where the SAE is looked for; only the download is replaced."""

import fnmatch
import importlib.util
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from interp.errors import InputError
from interp.presets import PRESETS
from saes.belongs import check_belongs
from saes.interop import load_sae
from saes.presets import SAE_PRESETS
from tests.sae_layouts import expected, place


class Hub:
    """`snapshot_download` of repositories that lie in a local folder: copies only what the patterns let through."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, []

    def __call__(self, repository: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        self.asked.append((repository, revision))
        source, cache = self.folder / "hub" / repository, self.folder / "cache" / repository.replace("/", "--")
        if not source.is_dir():
            raise LocalEntryNotFoundError(f"no such repository: {repository}")
        for path in (path for path in source.rglob("*") if path.is_file()):
            name = path.relative_to(source)
            if any(fnmatch.fnmatch(name.as_posix(), pattern) for pattern in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / name)
        cache.mkdir(parents=True, exist_ok=True)
        return str(cache)

    def put(self, case: str, repository: str, inside: str, scratch: Path) -> None:
        target = self.folder / "hub" / repository / inside
        shutil.copytree(place(case, scratch), target, dirs_exist_ok=True)

    def fetched(self) -> set[str]:
        cache = self.folder / "cache"
        return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def check(sae, case: str) -> None:
    x, codes, out = expected(case)
    torch.testing.assert_close(sae.encode(x).dense(), codes, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sae(x), out, rtol=1e-5, atol=1e-4)


GEMMA, LLAMA = SAE_PRESETS["gemma-scope-9b-it-l20-131k"], SAE_PRESETS["llama-scope-l15r-32x"]


def test_the_preset_of_gemma_scope(hub, tmp_path):
    hub.put("gemma_scope", "google/gemma-scope-9b-it-res", "layer_20/width_131k/average_l0_81", tmp_path / "a")
    hub.put("gemma_scope", "google/gemma-scope-9b-it-res", "layer_20/width_131k/average_l0_24", tmp_path / "b")
    sae = load_sae("gemma-scope-9b-it-l20-131k")
    check(sae, "gemma_scope")
    assert hub.fetched() == {"google--gemma-scope-9b-it-res/layer_20/width_131k/average_l0_81/params.npz"}
    known = sae.config.metadata
    assert known["model_name"] == "google/gemma-2-9b-it" == PRESETS[GEMMA.model].hub_id
    assert known["hook_name"] == "blocks.20.hook_resid_post" == str(GEMMA.site)
    assert known["source"] == GEMMA.source


def test_the_preset_of_llama_scope(hub, tmp_path):
    inside = "Llama3_1-8B-Base-L15R-32x"
    hub.put(f"llama_scope/{inside}", "fnlp/Llama3_1-8B-Base-LXR-32x", inside, tmp_path / "a")
    sae = load_sae("llama-scope-l15r-32x")
    check(sae, f"llama_scope/{inside}")
    assert {name.split("/", 2)[2] for name in hub.fetched()} == {"hyperparams.json", "checkpoints/final.safetensors"}
    assert sae.config.metadata["hook_name"] == "blocks.15.hook_resid_post" == str(LLAMA.site)
    assert sae.config.metadata["model_name"] == "meta-llama/Llama-3.1-8B" == PRESETS["llama-3.1-8b"].hub_id


def test_a_preset_knows_its_layout_should_another_copy_lie_beside(hub, tmp_path):
    inside = "Llama3_1-8B-Base-L15R-32x"
    hub.put(f"llama_scope/{inside}", "fnlp/Llama3_1-8B-Base-LXR-32x", inside, tmp_path / "a")
    hub.put("llamascopium/jumprelu", "fnlp/Llama3_1-8B-Base-LXR-32x", inside, tmp_path / "b")
    check(load_sae("llama-scope-l15r-32x"), f"llama_scope/{inside}")
    with pytest.raises(InputError, match=r"several layouts \(llama_scope: .*; llamascopium: "):
        load_sae(LLAMA.source)


def test_a_preset_s_sae_is_read_on_the_model_it_was_trained_on_and_on_the_preset_s(hub, tmp_path):
    """Its site is checked all the same, and it stays so when it is saved; loaded by the repository's name, it isn't."""
    inside = "Llama3_1-8B-Base-L15R-32x"
    hub.put(f"llama_scope/{inside}", "fnlp/Llama3_1-8B-Base-LXR-32x", inside, tmp_path / "a")
    load_sae("llama-scope-l15r-32x").save(tmp_path / "saved")
    for sae in (load_sae("llama-scope-l15r-32x"), load_sae(tmp_path / "saved")):
        for name in ("llama-3.1-8b", LLAMA.model, "meta-llama/Llama-3.1-8B-Instruct", "models/Llama-3.1-8B-Instruct"):
            check_belongs(sae, model=name, site=LLAMA.site)
            with pytest.raises(InputError, match=r"for the site blocks\.15\.hook_resid_post, and is asked"):
                check_belongs(sae, model=name, site="resid_post.14")
        with pytest.raises(InputError, match=r"for the model meta-llama/Llama-3\.1-8B, and is asked to work on gemma"):
            check_belongs(sae, model="gemma-2-9b-it")
    with pytest.raises(InputError, match=r"for the model meta-llama/Llama-3\.1-8B, and is asked"):
        check_belongs(load_sae(LLAMA.source), model=LLAMA.model)


def test_presets_agree_with_those_of_the_models_and_with_sae_lens_registry():
    for preset in SAE_PRESETS.values():
        model = PRESETS[preset.model]
        assert preset.source.replace(":", "/") in model.saes
        assert (preset.site, preset.chat) == (model.site, model.chat)
    spec = importlib.util.find_spec("sae_lens")  # not imported: it warns
    assert spec and spec.origin
    registry = (Path(spec.origin).parent / "pretrained_saes.yaml").read_text()
    assert re.search(r"path: Llama3_1-8B-Base-L15R-32x\n", registry)
    assert "repo_id: fnlp/Llama3_1-8B-Base-LXR-32x\n" in registry
    assert "path: layer_20/width_131k/average_l0_81\n" in registry and "google/gemma-scope-9b-it-res\n" in registry


@pytest.mark.parametrize(
    ("name", "repository", "inside"),
    [
        ("EleutherAI/sae-pythia-160m-32k:layers.15", "EleutherAI/sae-pythia-160m-32k", "layers.15"),
        ("EleutherAI/sae-pythia-160m-32k/layers.15", "EleutherAI/sae-pythia-160m-32k", "layers.15"),
        ("me/one-sae", "me/one-sae", ""),
    ],
)
def test_names_of_repositories_and_folders_inside(hub, tmp_path, name, repository, inside):
    hub.put("sparsify/layers.15", repository, inside, tmp_path)
    sae = load_sae(name, revision="v2")
    check(sae, "sparsify/layers.15")
    assert hub.asked == [(repository, "v2")]
    assert sae.config.metadata["source"] == (f"{repository}:{inside}" if inside else repository)


def test_the_runs_config_above_a_hookpoint_is_fetched_and_part_is_as_good_as_a_colon(hub, tmp_path):
    hub.put("sparsify/layers.15", "EleutherAI/sae", "layers.15", tmp_path)
    shutil.copy(tmp_path / "sparsify" / "config.json", tmp_path / "hub" / "EleutherAI" / "sae" / "config.json")
    sae = load_sae("EleutherAI/sae", part="layers.15")
    check(sae, "sparsify/layers.15")
    assert sae.config.metadata["model_name"] == "EleutherAI/pythia-160m"


@pytest.mark.parametrize(
    ("repository", "inside", "case"),
    [
        ("canrager/lm_sae", "pythia/trainer_3", "dictionary_learning/MatryoshkaBatchTopKSAE"),
        ("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "", "goodfire"),
    ],
)
def test_pickles_are_fetched_only_when_trusted(hub, tmp_path, repository, inside, case):
    hub.put(case, repository, inside, tmp_path)
    name = f"{repository}:{inside}" if inside else repository
    with pytest.raises(InputError, match="only with trust_pickle=True"):
        load_sae(name)
    assert not any(file.endswith((".pt", ".pth")) for file in hub.fetched())
    check(load_sae(name, trust_pickle=True), case)


def test_a_file_of_a_repository(hub, tmp_path):
    hub.put("goodfire", "Goodfire/saes", "", tmp_path)
    name = "Goodfire/saes:Llama-3.1-8B-Instruct-SAE-l19.pth"
    with pytest.raises(InputError, match=r"is a pickle.*trust_pickle=True"):
        load_sae(name)
    assert hub.asked == []
    sae = load_sae(name, trust_pickle=True)
    check(sae, "goodfire")
    assert sae.config.metadata["hook_name"] == "blocks.19.hook_resid_post"
    hub.put("gemma_scope", "google/gemma-scope-2b-pt-mlp", "layer_3/width_16k/average_l0_9", tmp_path / "b")
    sae = load_sae("google/gemma-scope-2b-pt-mlp:layer_3/width_16k/average_l0_9/params.npz")
    check(sae, "gemma_scope")
    assert sae.config.metadata["model_name"] == "google/gemma-2-2b"
    assert sae.config.metadata["hook_name"] == "blocks.3.hook_mlp_out"


@pytest.mark.parametrize(
    ("repository", "read", "written"),
    [
        ("google/gemma-scope-9b-pt-att", "blocks.3.attn.hook_z", None),
        ("google/gemma-scope-2b-pt-transcoders", "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"),
    ],
)
def test_sites_of_gemma_scope(hub, tmp_path, repository, read, written):
    hub.put("gemma_scope", repository, "layer_3/width_16k/average_l0_9", tmp_path)
    config = load_sae(f"{repository}:layer_3/width_16k/average_l0_9").config
    assert (config.metadata["hook_name"], config.metadata.get("hook_name_out")) == (read, written)
    assert config.is_transcoder == (written is not None)


def test_gemma_scopes_embedding_is_refused(hub, tmp_path):
    hub.put("gemma_scope", "google/gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6", tmp_path)
    with pytest.raises(InputError, match=re.escape("factor sqrt(d)")):
        load_sae("google/gemma-scope-2b-pt-res:embedding/width_4k/average_l0_6")


def test_what_the_hub_says_is_passed_on(hub, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'me/none' is no file or folder here.*no such repository: me/none"):
        load_sae("me/none")
    (tmp_path / "hub" / "me" / "empty").mkdir(parents=True)
    with pytest.raises(InputError, match="me/empty has no layout known here"):
        load_sae("me/empty")
    with pytest.raises(InputError, match=r"me/empty:layers.9 has no layout known here.*no files"):
        load_sae("me/empty:layers.9")

    def invalid(*_, **__):
        raise HFValidationError("Repo id must use alphanumeric chars\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", invalid)
    with pytest.raises(InputError, match=r"could not be fetched from the hub: Repo id must use alphanumeric chars$"):
        load_sae("a b/c d")


def test_a_local_folder_goes_before_the_hub(hub, tmp_path, monkeypatch):
    place("sparsify/layers.15", tmp_path)
    monkeypatch.chdir(tmp_path)
    check(load_sae("sparsify/layers.15"), "sparsify/layers.15")
    assert hub.asked == []

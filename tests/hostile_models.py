"""Attacks on model folders and GGUF files. See `tests/hostile_samples.py`."""

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.hostile_samples import Attack, Open, canary, canary_code, sparse
from tests.tiny_folder import tiny_folder

DIGITS = 5000  # of a number that Python's own limit on conversions refuses


def model_in(folder: Path) -> Path:
    """A good model folder in `folder`."""
    tiny_folder(folder)
    return folder / "model"


def _load(path: Path, **options: Any) -> Open:
    from interp.loading import load_hf

    return lambda: load_hf(path, dtype="float32", device="cpu", **options)


def _both(change: Callable[[Path], object]) -> list[tuple[str, Callable[[Path], Open]]]:
    """A change of a good model folder, opened whole and in part."""

    def prepare(folder: Path, options: dict[str, Any]) -> Open:
        change(model_in(folder))
        return _load(folder / "model", **options)

    return [("", partial(prepare, options={})), (", in part", partial(prepare, options={"upto": "resid_post.0"}))]


def _settings(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _changed(changes: dict[str, Any]) -> Callable[[Path], None]:
    return lambda model: _settings(model, **changes)


def _only_pickle(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(canary(model))


def _honest_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def _pickle_by_safe_name(model: Path) -> None:
    (model / "model.safetensors").write_bytes(canary(model))


def _pickle_index(model: Path) -> None:
    _only_pickle(model)
    (model / "pytorch_model.bin").rename(model / "pytorch_model-00001-of-00001.bin")
    names = dict.fromkeys(["lm_head.weight"], "pytorch_model-00001-of-00001.bin")
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def _index(name: str) -> Callable[[Path], None]:
    """An index that leads to `name`, where the weights indeed are if it can be reached."""

    def change(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        target = name.replace("OUT", str(model.parent / "out"))
        (model.parent / "out").mkdir()
        if "\0" not in name:
            (model / target).parent.mkdir(parents=True, exist_ok=True)
            save_file(weights, model / target, metadata={"format": "pt"})
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, target)}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def _pickle_in_safe_index(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    (model / "weights.bin").write_bytes(canary(model))
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "weights.bin")})
    )


def _index_text(text: str) -> Callable[[Path], None]:
    return lambda model: (model / "model.safetensors.index.json").write_text(text) and None


def _remote_code(model: Path, *, kind: str = "unheard_of") -> None:
    (model / "modeling.py").write_text(canary_code(model))
    names = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model", "AutoModel": "modeling.Model"}
    _settings(model, model_type=kind, auto_map=names)


def _tokenizer_code(model: Path) -> None:
    (model / "tokens.py").write_text(canary_code(model))
    path = model / "tokenizer_config.json"
    known = json.loads(path.read_text())
    known |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokens.Evil", "tokens.Evil"]}}
    path.write_text(json.dumps(known))


def _tokenizer_text(text: str) -> Callable[[Path], None]:
    return lambda model: (model / "tokenizer.json").write_text(text) and None


def _adapter(model: Path) -> None:
    """Where peft is installed, transformers would follow this to any other place."""
    (model / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(model.parent / "elsewhere")})
    )


def _adapter_alone(model: Path) -> None:
    _adapter(model)
    (model / "model.safetensors").unlink()
    (model / "adapter_model.bin").write_bytes(canary(model))


def _weights_named_in_config(model: Path) -> None:
    _only_pickle(model)
    (model / "pytorch_model.bin").rename(model / "adapter_model.bin")
    _settings(model, transformers_weights="adapter_model.bin")


def _header(text: bytes | str, *, length: int | None = None, body: bytes = b"") -> Callable[[Path], None]:
    def change(model: Path) -> None:
        raw = text.encode() if isinstance(text, str) else text
        (model / "model.safetensors").write_bytes(
            struct.pack("<Q", len(raw) if length is None else length) + raw + body
        )

    return change


def _sparse_weights(model: Path) -> None:
    """A file of a terabyte whose header is right about it."""
    side = 1 << 19
    _settings(model, vocab_size=side, hidden_size=side)
    entry = {"dtype": "F32", "shape": [side, side], "data_offsets": [0, 4 * side * side]}
    text = json.dumps({"model.embed_tokens.weight": entry}).encode()
    sparse(model / "model.safetensors", 8 + len(text) + 4 * side * side, struct.pack("<Q", len(text)) + text)


SAFETENSORS = {
    "header longer than the file": ("{}", {"length": 1 << 20}),
    "header of gigabytes claimed": ("{}", {"length": 1 << 33}),
    "header length 2**63": ("{}", {"length": 1 << 63}),
    "header is no JSON": ("{]", {}),
    "header is a list": ("[]", {}),
    "header nested 100,000 deep": ("[" * 100_000 + "]" * 100_000, {}),
    "empty header": ("{}", {}),
    "offsets beyond the end": (
        '{"lm_head.weight":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', {"body": b"\0" * 4},
    ),
    "offsets overlapping": (
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        {"body": b"\0" * 12},
    ),
    "offsets negative": ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}', {}),
    "shape and bytes that differ": (
        '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', {"body": b"\0" * 8},
    ),
    "shape whose product overflows": (
        '{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}', {},
    ),
    "unknown dtype": ('{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}', {"body": b"\0" * 8}),
    "one name twice": (
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        {"body": b"\0" * 8},
    ),
    "metadata that is no table of texts": ('{"__metadata__":{"a":[1]}}', {}),
    "not UTF-8": (b'{"\xff\xfe":1}', {}),
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "a billion layers": {"num_hidden_layers": 10**9},
    "10**18 layers": {"num_hidden_layers": 10**18},
    "no layer": {"num_hidden_layers": 0},
    "-1 layers": {"num_hidden_layers": -1},
    "layers as text": {"num_hidden_layers": "3"},
    "layers as a fraction": {"num_hidden_layers": 1.5},
    "layers as a list": {"num_hidden_layers": [3]},
    "layers missing": {"num_hidden_layers": None},
    "a vocabulary of 10**12": {"vocab_size": 10**12},
    "a vocabulary of -5": {"vocab_size": -5},
    "a width of 2**40": {"hidden_size": 2**40},
    "a width of 0": {"hidden_size": 0},
    "a width as text": {"hidden_size": "48"},
    "an MLP of 10**12": {"intermediate_size": 10**12},
    "a vocabulary of 2**31": {"vocab_size": 2**31},
    "a width of 2**30": {"hidden_size": 2**30},
    "an MLP of 2**31": {"intermediate_size": 2**31},
    "2,000 layers": {"num_hidden_layers": 2000},
    "a head of 2**40": {"head_dim": 2**40},
    "a head of -1": {"head_dim": -1},
    "no head": {"num_attention_heads": 0},
    "10**9 heads": {"num_attention_heads": 10**9},
    "heads that do not divide": {"num_attention_heads": 5, "num_key_value_heads": 3},
    "an unknown activation": {"hidden_act": "__import__"},
    "an unknown attention": {"attn_implementation": "evil/kernel"},
    "an unknown attention, inner name": {"_attn_implementation": "evil/kernel"},
    "a quantiser that is not known": {"quantization_config": {"quant_method": "evil"}},
    "a quantiser that is no table": {"quantization_config": "evil"},
    "rope of an unknown kind": {"rope_parameters": {"rope_type": "evil", "rope_theta": 1.0}},
    "rope as text": {"rope_parameters": "evil"},
    "a dtype that is none": {"dtype": "os.system", "torch_dtype": "os.system"},
    "a model type that is a list": {"model_type": ["llama"]},
    "a model type of 1 MB": {"model_type": "x" * (1 << 20)},
    "an unknown model type": {"model_type": "evil"},
}

CONFIG_TEXTS = {
    "a list": "[]",
    "cut short": '{"model_type": "llama",',
    "nested 100,000 deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a number of 5,000 digits": '{"model_type": "llama", "hidden_size": ' + "9" * DIGITS + "}",
    "not UTF-8": b'{"model_type": "\xff"}',
    "NaN for a width": '{"model_type": "llama", "hidden_size": NaN}',
    "Infinity for layers": '{"model_type": "llama", "num_hidden_layers": Infinity}',
    "empty": "",
}


def _config_text(text: str | bytes) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights are a pickle that runs code": _only_pickle,
    "weights are an honest pickle": _honest_pickle,
    "a pickle under the name model.safetensors": _pickle_by_safe_name,
    "an index of pickles": _pickle_index,
    "a safetensors index that leads to a pickle": _pickle_in_safe_index,
    "an index that leads up and out": _index("../out/w.safetensors"),
    "an index with an absolute path": _index("OUT/w.safetensors"),
    "an index that leads into a subfolder and out": _index("sub/../../out/w.safetensors"),
    "an index with a NUL in a name": _index("w\0.safetensors"),
    "an index of numbers": _index_text('{"weight_map": {"lm_head.weight": 7}}'),
    "an index nested 100,000 deep": _index_text('{"weight_map":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "an index whose map is a list of lists": _index_text('{"weight_map": [["a", "b"]]}'),
    "code in an unknown model type": _remote_code,
    "code in the tokenizer": _tokenizer_code,
    "a tokenizer nested 100,000 deep": _tokenizer_text("[" * 100_000),
    "a tokenizer that is a list": _tokenizer_text("[]"),
    "a tokenizer of an unknown kind": _tokenizer_text('{"model": {"type": "evil"}}'),
    "an adapter beside the weights": _adapter,
    "an adapter alone, pickled": _adapter_alone,
    "pickled weights named in the config": _weights_named_in_config,
    "a sparse file of a terabyte": _sparse_weights,
    **{f"safetensors: {name}": _header(text, **more) for name, (text, more) in SAFETENSORS.items()},
    **{f"config: {name}": _changed(changes) for name, changes in CONFIGS.items()},
    **{f"config.json: {name}": _config_text(text) for name, text in CONFIG_TEXTS.items()},
}  # fmt: skip

ATTACKS = [
    Attack("model folder", name + how, prepare) for name, change in CHANGES.items() for how, prepare in _both(change)
]

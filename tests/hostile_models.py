"""Attacks on model folders and GGUF files. See `tests/hostile_samples.py`."""

import json
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.hostile_samples import Attack, Open, canary, canary_code, sparse
from tests.tiny_folder import tiny_folder
from tests.tiny_gguf import write_qwen2_gguf
from tests.tiny_models import tiny

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


def _index_text(text: str) -> Callable[[Path], object]:
    return lambda model: (model / "model.safetensors.index.json").write_text(text)


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


def _tokenizer_text(text: str) -> Callable[[Path], object]:
    return lambda model: (model / "tokenizer.json").write_text(text)


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


ENCODERS = (
    "weights are a pickle that runs code",
    "weights are an honest pickle",
    "a pickle under the name model.safetensors",
    "an index of pickles",
    "an index that leads up and out",
    "an adapter beside the weights",
    "pickled weights named in the config",
    "config: a billion layers",
    "config: 2,000 layers",
    "config: a vocabulary of 2**31",
    "config: a width of 2**30",
    "config: an unknown attention",
    "config.json: nested 100,000 deep",
    "safetensors: header of gigabytes claimed",
)


def _encoder(name: str) -> Callable[[Path], Open]:
    """The same changes of a BERT, as a survey of attention opens it."""

    def prepare(folder: Path) -> Open:
        from transformers import BertConfig, BertModel

        from interp.attention.survey_models import open_model

        sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6}
        config = BertConfig(vocab_size=31, intermediate_size=32, **sizes)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder / "model")
        CHANGES[name](folder / "model")
        return lambda: open_model(str(folder / "model"))

    return prepare


def gguf_string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def gguf(
    *fields: bytes, tensors: bytes = b"", n_keys: int | None = None, n_tensors: int = 0, version: int = 3
) -> bytes:
    """A GGUF header of these fields."""
    keys = len(fields) if n_keys is None else n_keys
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, keys) + b"".join(fields) + tensors


def _u32(key: str, value: int) -> bytes:
    return gguf_string(key) + struct.pack("<II", 4, value)


def _array(kind: int, count: int, body: bytes = b"") -> bytes:
    return gguf_string("a") + struct.pack("<IIQ", 9, kind, count) + body


def _tensor_entry(shape: tuple[int, ...], *, kind: int = 0, offset: int = 0, axes: int | None = None) -> bytes:
    count = len(shape) if axes is None else axes
    return gguf_string("t") + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


NAMED = gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string("qwen2")
BYTES: dict[str, bytes] = {
    "no bytes": b"",
    "4 bytes": b"GGUF",
    "zeros": b"\0" * 4096,
    "2**60 keys": gguf(n_keys=1 << 60),
    "2**64 - 1 keys": gguf(n_keys=(1 << 64) - 1),
    "2**60 tensors": gguf(n_tensors=1 << 60),
    "version 2**31": gguf(NAMED, version=1 << 31),
    "a key of 2**60 bytes": gguf(gguf_string("k", 1 << 60)),
    "a key of 4 GiB": gguf(gguf_string("k", 1 << 32)),
    "a text of 2**63 bytes": gguf(gguf_string("k") + struct.pack("<I", 8) + gguf_string("x", 1 << 63)),
    "a key that is no UTF-8": gguf(gguf_string(b"\xff\xfe") + struct.pack("<II", 4, 1)),
    "a value of an unknown type": gguf(gguf_string("k") + struct.pack("<I", 99)),
    "an array of 2**60 numbers": gguf(_array(4, 1 << 60)),
    "an array of 2**62 texts": gguf(_array(8, 1 << 62)),
    "an array of 2**61 truths": gguf(_array(7, 1 << 61)),
    "an array of an unknown type": gguf(_array(99, 5)),
    "arrays nested 10,000 deep": gguf(_array(9, 1, struct.pack("<IQ", 9, 1) * 10_000)),
    "arrays of 2**60 arrays": gguf(_array(9, 1 << 60, struct.pack("<IQ", 9, 1 << 60) * 10)),
    "alignment 0": gguf(NAMED, _u32("general.alignment", 0)),
    "alignment 2**32 - 1": gguf(NAMED, _u32("general.alignment", (1 << 32) - 1)),
    "an architecture that is a number": gguf(_u32("general.architecture", 7)),
    "no architecture": gguf(),
    "an unknown architecture": gguf(gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string("evil")),
    "a tensor with 2**32 - 1 axes": gguf(NAMED, tensors=_tensor_entry((), axes=(1 << 32) - 1), n_tensors=1),
    "a tensor of 2**62 numbers": gguf(NAMED, tensors=_tensor_entry((1 << 62,)), n_tensors=1),
    "a tensor of 2**160 numbers": gguf(NAMED, tensors=_tensor_entry((1 << 40,) * 4), n_tensors=1),
    "a tensor at byte 2**63": gguf(NAMED, tensors=_tensor_entry((1,), offset=1 << 63), n_tensors=1),
    "a tensor of an unknown type": gguf(NAMED, tensors=_tensor_entry((1,), kind=4000), n_tensors=1),
    "one tensor twice": gguf(NAMED, tensors=_tensor_entry((0,)) * 2, n_tensors=2),
    "2**31 layers": gguf(NAMED, _u32("qwen2.block_count", 1 << 31)),
}


def _good_gguf() -> bytes:
    """The bytes of a tiny GGUF model that loads."""
    if "whole" not in _KEPT:
        with tempfile.TemporaryDirectory() as folder:
            model = tiny("qwen2", tie_word_embeddings=False, rms_norm_eps=1e-6)
            _KEPT["whole"] = write_qwen2_gguf(model, Path(folder) / "x.gguf").read_bytes()
    return _KEPT["whole"]


_KEPT: dict[str, bytes] = {}


def _cut(part: int) -> Callable[[], bytes]:
    return lambda: _good_gguf()[: len(_good_gguf()) * part // 16]


def _number(key: str, value: int) -> Callable[[], bytes]:
    """The good file with one u32 of its fields changed."""

    def change() -> bytes:
        whole = _good_gguf()
        at = whole.index(gguf_string(key)) + 8 + len(key) + 4
        return whole[:at] + struct.pack("<I", value) + whole[at + 4 :]

    return change


NUMBERS = {
    f"{key} = {said}": _number(f"qwen2.{key}", value)
    for key in (
        "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    )
    for said, value in {"0": 0, "2**31 - 1": 2**31 - 1, "2**32 - 1": 2**32 - 1, "7": 7}.items()
}  # fmt: skip


def _gguf(content: Callable[[], bytes]) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        (folder / "x.gguf").write_bytes(content())
        return _load(folder / "x.gguf")

    return prepare


def _sparse_gguf(folder: Path) -> Open:
    sparse(folder / "x.gguf", 1 << 42, gguf(n_keys=1 << 36))
    return _load(folder / "x.gguf")


def _vector(content: Callable[[], bytes]) -> Callable[[Path], Open]:
    """The same bytes as a control vector."""

    def prepare(folder: Path) -> Open:
        from interp.steering.vectors import read_control_vector

        (folder / "x.gguf").write_bytes(content())
        return lambda: read_control_vector(folder / "x.gguf")

    return prepare


GGUFS: dict[str, Callable[[], bytes]] = {
    **{name: partial(bytes, content) for name, content in BYTES.items()},
    **{f"cut at {part}/16": _cut(part) for part in range(16)},
    **NUMBERS,
}
ATTACKS = [
    Attack("model folder", name + how, prepare) for name, change in CHANGES.items() for how, prepare in _both(change)
]
ATTACKS += [Attack("encoder folder", name, _encoder(name)) for name in ENCODERS]
ATTACKS += [Attack("GGUF", name, _gguf(content)) for name, content in GGUFS.items()]
ATTACKS += [Attack("GGUF", "a sparse file of 4 TiB, all keys", _sparse_gguf)]
ATTACKS += [Attack("control vector", name, _vector(content)) for name, content in GGUFS.items()]

"""Steering vectors of other libraries, in and out: x ↦ x + β v, an `AffineEdit` that reads nothing (U, V [d 0]).

    steering-vectors   SteeringVector(layer_activations {i: v}, layer_type): adds v to the output of a module of layer i
    repeng, llama.cpp  GGUF, general.architecture = "controlvector", controlvector.model_hint and .layer_count, tensors
                       direction.{i}: adds them to the output of block i

Layers count from 0 in all of them, and block i's output is `resid_post.i` here. repeng leaves block 0 out when it
trains (it keeps layers 1 to n - 1, `direction.i` read from `hidden_states[i + 1]`). llama.cpp refuses `direction.0`,
wants float32 of one axis, and adds `direction.i` behind the feed-forward sum of its block i, also counted from 0 (its
buffer starts at layer 1). steering-vectors' "decoder_block" is `resid_post`, "self_attn" `attn_out`, "mlp" `mlp_out`,
the last two only where no norm stands behind the module (not in Gemma 2 and 3); outputs of norms are no sites here.

steering-vectors steers every token, padding included; repeng all but padding; both are the scope `all`. Neither file
says which weights it was made for: a GGUF names the architecture at most, which is checked when a model is given.

steering-vectors saves nothing itself; people `torch.save` the object. Such a file is a pickle: `steering_from_pt` reads
it with torch's weights-only reader, which builds tensors and plain containers, and one class by name as an empty shell;
anything else in the file is refused unread.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import InputError
from interp.gguf_header import read_header
from interp.model import HookedModel
from interp.sealing import partial_name, publish
from interp.sites import Point, Site
from interp.steering.closed_forms import translation
from interp.steering.edits import AffineEdit
from interp.steering.steering import Steering

_ARCHITECTURE = "controlvector"
_POINTS = {"decoder_block": Point.RESID_POST, "self_attn": Point.ATTN_OUT, "mlp": Point.MLP_OUT}
_STEERING_VECTOR = "steering_vectors.steering_vector.SteeringVector"
_DIRECTION = re.compile(r"direction\.(\d+)")


def steering_from_vectors(
    vectors: Mapping[int, Float[Tensor, " d"]] | Mapping[Site, Float[Tensor, " d"]] | Mapping[str, Float[Tensor, " d"]],
    *,
    method: str = "vector",
    **provenance: Any,
) -> Steering:
    """A steering that adds a vector at each site; a number i stands for `resid_post.i`."""
    edits = {}
    for place, v in vectors.items():
        site = Site(Point.RESID_POST, place) if isinstance(place, int) else Site.parse(place)
        if v.ndim != 1 or not v.is_floating_point():
            raise InputError(
                f"the vector for {site} is {v.dtype} of shape {tuple(v.shape)}: expected (d_model,) of floats"
            )
        edits[site] = translation(v.detach().cpu().to(torch.promote_types(v.dtype, torch.float32)))
    return Steering(edits, "all", provenance, method)


def vectors_of(steering: Steering) -> dict[Site, Float[Tensor, " d"]]:
    """What is added at each site, its strength multiplied in; refuses a steering that does more than add."""
    if steering.scope != "all":
        raise InputError(f"a vector file knows no scopes: it steers every token, this steering {steering.scope!r} only")
    found = {}
    for site, edit in steering.edits.items():
        if not isinstance(edit, AffineEdit) or (edit.beta != 0 and bool(edit.U.any()) and bool(edit.V.any())):
            raise InputError(
                f"the edit at {site} reads the activations ({type(edit).__name__}), which a vector cannot: only edits "
                "that add the same everywhere (method 'add') can be written so. Save the steering itself"
            )
        found[site] = edit(edit.c.new_zeros(edit.d)).float()  # what it makes of 0 is what it adds anywhere
    return found


def read_control_vector(path: str | Path, *, model: HookedModel | None = None) -> Steering:
    """A GGUF control vector of repeng or llama.cpp. With a `model`, its architecture and width are checked."""
    from gguf import GGUFReader

    path = Path(path)
    try:
        read_header(path)  # which bounds everything that the reader takes as it comes
        reader = GGUFReader(path)
    except FileNotFoundError:
        raise InputError(f"{path} is not there; expected a GGUF control vector") from None
    except (ValueError, IndexError, OSError, KeyError, OverflowError) as error:
        raise InputError(f"{path} is no whole GGUF file ({error})") from None
    if (found := _text(reader, "general.architecture")) != _ARCHITECTURE:
        raise InputError(f"{path} is a GGUF file of the architecture {found!r}, expected {_ARCHITECTURE!r}")
    hint, vectors = _text(reader, f"{_ARCHITECTURE}.model_hint"), {}
    for tensor in reader.tensors:
        match = _DIRECTION.fullmatch(tensor.name)
        if match is None or tensor.data.ndim != 1 or tensor.data.dtype not in (np.float32, np.float16):
            raise InputError(
                f"{path}: tensor {tensor.name!r} of {tensor.data.dtype}: expected direction.LAYER, float32"
            )
        vectors[int(match[1])] = torch.from_numpy(np.array(tensor.data, dtype=np.float32))
    if not vectors:
        raise InputError(f"{path} holds no direction")
    if model is not None and hint and (kind := _model_type(model)) != hint:
        raise InputError(f"{path} was made for a {hint} model, not for {model.name}, a {kind}")
    steering = steering_from_vectors(vectors, method="control vector", model_hint=hint)
    if model is not None:
        steering.check(model)
    return steering


def write_control_vector(steering: Steering, path: str | Path, *, model_hint: str) -> None:
    """Write a GGUF that repeng and llama.cpp read; `model_hint` is transformers' model_type, such as "llama"."""
    from gguf import GGUFWriter

    path, vectors = Path(path), vectors_of(steering)
    if other := [str(site) for site in vectors if site.point is not Point.RESID_POST]:
        raise InputError(f"{', '.join(other)}: a control vector is added to resid_post only")
    if any(site.layer == 0 for site in vectors):
        raise InputError("llama.cpp cannot steer the output of block 0 (direction.0): leave resid_post.0 out")
    partial = partial_name(path)
    writer = GGUFWriter(partial, _ARCHITECTURE)
    writer.add_string(f"{_ARCHITECTURE}.model_hint", model_hint)
    writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(vectors))
    for site, v in vectors.items():
        writer.add_tensor(f"direction.{site.layer}", v.cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    publish(partial, path)


def _text(reader: Any, name: str) -> str | None:
    """A string of a GGUF's header."""
    field = reader.get_field(name)
    return None if field is None else bytes(field.parts[-1]).decode(errors="replace")


def _model_type(model: HookedModel) -> str:
    return str(getattr(getattr(model.hf, "config", None), "model_type", model.cfg.family))


def steering_from_steering_vector(vector: Any, *, model: HookedModel) -> Steering:
    """A `SteeringVector` of the steering-vectors package (the object, or its two fields as a dict), for a model."""
    given = vector if isinstance(vector, Mapping) else vars(vector)
    layers, kind = given.get("layer_activations"), given.get("layer_type", "decoder_block")
    if not isinstance(layers, Mapping) or not layers:
        raise InputError("no SteeringVector: expected layer_activations {layer: vector} and layer_type")
    if kind not in _POINTS:
        raise InputError(f"layer_type {kind!r} is no site here: expected one of {', '.join(_POINTS)}")
    point = _POINTS[kind]
    steering = steering_from_vectors(
        {Site(point, layer): v for layer, v in layers.items()}, method="steering vector", layer_type=kind
    )
    steering.check(model)
    if point is not Point.RESID_POST:
        out = model.anatomy.at(model.hf, 0, getattr(model.anatomy, point.short))
        writer = model.anatomy.at(model.hf, 0, model.anatomy.o if kind == "self_attn" else model.anatomy.mlp_post)
        if out is not writer and not isinstance(out, nn.Dropout):
            raise InputError(
                f"layer_type {kind!r} is in front of a norm in {model.cfg.family}, which is no site here; steer "
                "'decoder_block' instead"
            )
    return steering


def steering_vector_of(steering: Steering) -> dict[str, Any]:
    """The fields of a `SteeringVector`: `SteeringVector(**steering_vector_of(steering))`."""
    vectors = vectors_of(steering)
    kinds = {kind for kind, point in _POINTS.items() for site in vectors if site.point is point}
    if len(kinds) != 1 or any(site.point not in _POINTS.values() for site in vectors):
        raise InputError(
            f"a SteeringVector is of one kind of layer ({', '.join(_POINTS)}); this steers "
            f"{', '.join(map(str, vectors))}"
        )
    return {"layer_activations": {site.layer: v for site, v in vectors.items()}, "layer_type": kinds.pop()}


class _Shell:
    """Takes the fields of a pickled SteeringVector, and nothing of its code."""


def steering_from_pt(path: str | Path, *, model: HookedModel) -> Steering:
    """What `torch.save` wrote of a `SteeringVector`, or of a dict of its fields; see the module's docstring."""
    try:
        with torch.serialization.safe_globals([(_Shell, _STEERING_VECTOR)]):
            found = torch.load(Path(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is not there; expected a saved SteeringVector") from None
    except Exception as error:  # the reader names what it refuses in errors of many kinds
        raise InputError(
            f"{path} is no file of tensors and a SteeringVector that torch.save wrote, so it is not read "
            f"({str(error).splitlines()[0]}). Save it with torch.save, in the program that made it"
        ) from None
    if not isinstance(found, Mapping | _Shell):
        raise InputError(f"{path} holds a {type(found).__name__}, expected a SteeringVector")
    return steering_from_steering_vector(found, model=model)

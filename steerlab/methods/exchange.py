"""Steering vectors as other tools represent them: llama.cpp, repeng, steering-vectors, vllm-lens, EasySteer, hotwire.

All of these count layers as steerlab does: k is the output of block k, from 0. None of them scales or shifts a vector.
Their formats hold no strength or keep it beside the vector, so `alpha` is an argument here.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerlab._support import files
from steerlab._support.checks import as_number, check_type
from steerlab.errors import DataError, LoadError, SteeringError
from steerlab.methods.vector import SteeringVector, Vectors, added_vectors, as_steerer
from steerlab.models.model import Model
from steerlab.models.ready import check_ready
from steerlab.models.sites import Site

# what a file says where its vectors are added at the layers of their names; other tools write the last three
_GGUF_KEYS = {
    "general.architecture": ("controlvector",), "glp.mode": (None, "add"), "dspark.mode": (None, "add"),
    "turbospark.layer_base": (None,),
}  # fmt: skip
_POINTS = {"block_out": "decoder_block", "attn_out": "self_attn", "mlp_out": "mlp"}


def to_gguf(model: Model, vector: SteeringVector | Vectors, path: str | Path, *, alpha: float = 1.0) -> Path:
    """Write a control vector for llama.cpp (`llama-cli --control-vector FILE`), and for repeng and EasySteer.

    Example:
        >>> every = steerlab.PCA(range(1, model.n_layers)).fit(model, pairs)
        >>> to_gguf(model, every, "polite.gguf", alpha=1.5)

    Args:
        model: that the vector is for; llama.cpp must run the same one.
        vector: of outputs of blocks, without the first: llama.cpp never steers block 0.
        path: the file.
        alpha: multiplied into the vectors; a GGUF file has no place for it.

    Raises:
        SteeringError: block 0, or a site that is no output of a block. LoadError: gguf is not installed.
        StorageError: the file can't be written.

    Source: llama.cpp, common/common.cpp and src/llama-adapter.cpp: `direction.N` is added to the output of block N.
    """
    check_ready(model)
    layers = _layers(model, vector)
    if 0 in layers:
        raise SteeringError(
            "llama.cpp can't steer the first block (layer 0), and would refuse the file: fit the vector at other "
            f"layers, such as PCA(range(1, {model.n_layers}))"
        )
    gguf = _gguf()

    def write(partial: Path) -> None:
        writer = gguf.GGUFWriter(partial, "controlvector")
        writer.add_string("controlvector.model_hint", str(model.hf.config.model_type))
        writer.add_uint32("controlvector.layer_count", len(layers))
        for layer, values in sorted(layers.items()):
            writer.add_tensor(f"direction.{layer}", (as_number("alpha", alpha) * values).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    files.write_atomically(Path(path), write)
    return Path(path)


def from_gguf(path: str | Path) -> SteeringVector:
    """The control vector in a GGUF file, at the layers where llama.cpp adds it.

    Example:
        >>> vector = from_gguf("polite.gguf")

    Raises:
        LoadError: no such file, one without a control vector, or one that is not added to states.
    """
    hint = "Give a control vector that llama.cpp, repeng or to_gguf wrote"
    directions: dict[int, Tensor] = {}
    gguf = _gguf()
    with files.reading(Path(path), hint):
        reader = gguf.GGUFReader(path)
        for key, usual in _GGUF_KEYS.items():
            found = reader.get_field(key)
            value = None if found is None else found.contents()
            if value not in usual:
                raise LoadError(f"it says {key}={value!r}, which is not a vector that is added to states")
        for tensor in reader.tensors:
            name = re.fullmatch(r"direction\.(\d+)", tensor.name)
            if name is None or tensor.tensor_type != gguf.GGMLQuantizationType.F32:
                raise LoadError(f"it holds {tensor.name!r} ({tensor.tensor_type.name}), which is no direction")
            directions[int(name[1])] = torch.from_numpy(np.array(tensor.data, dtype=np.float32))
        return SteeringVector(directions)


def to_repeng(model: Model, vector: SteeringVector | Vectors) -> Any:
    """A `repeng.ControlVector`.

    Example:
        >>> control = to_repeng(model, vector)

    Args:
        model: that the vector is for.
        vector: `(hidden,)` for each layer, of outputs of blocks.

    Raises:
        LoadError: repeng is not installed. SteeringError: a site that is no output of a block.
    """
    try:
        from repeng import ControlVector
    except Exception as error:  # its release fails with AttributeError on NumPy 2
        raise LoadError(f"repeng can't be imported ({error}): install a version of it that can") from error
    layers = {layer: values.numpy() for layer, values in _layers(model, vector).items()}
    return ControlVector(model_type=str(model.hf.config.model_type), directions=layers)


def from_repeng(vector: Any) -> SteeringVector:
    """The vector in a `repeng.ControlVector`, or in anything with `directions` by layer.

    Example:
        >>> vector = from_repeng(control)

    Raises:
        DataError: no `directions` by layer.
    """
    directions = check_type("directions", getattr(vector, "directions", None), Mapping, "a repeng.ControlVector")
    return SteeringVector({int(layer): np.asarray(values) for layer, values in directions.items()})


def to_steering_vectors(vector: SteeringVector | Vectors) -> Any:
    """A `steering_vectors.SteeringVector`: outputs of blocks, of attention or of MLPs, all of one kind.

    Example:
        >>> theirs = to_steering_vectors(vector)

    Raises:
        LoadError: steering-vectors is not installed. SteeringError: sites of several kinds, or of none of these.
    """
    try:
        import steering_vectors
    except ImportError as error:
        raise LoadError("steering-vectors is not installed: pip install --no-deps steering-vectors") from error
    found = _vector(vector).directions
    points = {site.point if site.part == "text" else site.part for site in found}
    if len(points) != 1 or not points <= set(_POINTS):
        raise SteeringError(f"the vectors are at {', '.join(map(str, found))}: expected one kind of {list(_POINTS)}")
    activations = {site.layer: values.clone() for site, values in found.items()}
    return steering_vectors.SteeringVector(activations, layer_type=_POINTS[points.pop()])


def from_steering_vectors(vector: Any) -> SteeringVector:
    """The vector in a `steering_vectors.SteeringVector`.

    Example:
        >>> vector = from_steering_vectors(theirs)

    Raises:
        DataError: a layer type that is no site of steerlab.
    """
    kinds = {theirs: point for point, theirs in _POINTS.items()}
    if getattr(vector, "layer_type", None) not in kinds:
        raise DataError(f"layer_type={getattr(vector, 'layer_type', None)!r}: expected one of {list(kinds)}")
    point = kinds[vector.layer_type]
    return SteeringVector({Site(int(layer), point): values for layer, values in vector.layer_activations.items()})


def to_vllm_lens(vector: SteeringVector | Vectors, *, alpha: float = 1.0) -> dict[str, str]:
    """What a request to vllm-lens carries as `vllm_xargs`, or as `extra_args` of `SamplingParams`.

    Example:
        >>> body = {"prompt": "Hi", "vllm_xargs": to_vllm_lens(vector, alpha=2.0)}

    Args:
        vector: `(hidden,)` for each layer, of outputs of blocks.
        alpha: stands beside the vector in the request.

    Raises:
        SteeringError: a site that is no output of a block.
    """
    layers = _layers(None, vector)
    values = torch.stack(list(layers.values())).numpy()
    activations = {
        "data": b64encode(values.tobytes()).decode(), "dtype": "float32", "original_dtype": "torch.float32",
        "shape": list(values.shape),
    }  # fmt: skip
    one = {
        "activations": activations, "layer_indices": list(layers), "scale": as_number("alpha", alpha),
        "norm_match": False, "position_indices": None,
    }  # fmt: skip
    return {"apply_steering_vectors": json.dumps([one])}


def from_vllm_lens(request: Mapping[str, Any]) -> tuple[SteeringVector, float]:
    """The vector and alpha of a request to vllm-lens that steers all tokens.

    Example:
        >>> vector, alpha = from_vllm_lens(body["vllm_xargs"])

    Raises:
        DataError: several vectors, or one that is compressed, rescaled, or added at some positions only.
    """
    (one,) = _one_of(json.loads(request.get("apply_steering_vectors", "[]")))
    stored = one["activations"]
    shape = tuple(stored["shape"])
    other = (stored.get("compression"), one.get("norm_match"), one.get("position_indices"))
    if any(other) or stored["dtype"] != "float32" or len(shape) != 2:
        raise DataError("expected plain float32 vectors (layers, hidden) that are added at all tokens as they are")
    rows = np.frombuffer(b64decode(stored["data"]), "<f4").reshape(shape)
    return SteeringVector(dict(zip(one["layer_indices"], rows, strict=True))), float(one["scale"])


def to_easysteer(
    vector: SteeringVector | Vectors, *, alpha: float = 1.0, positions: Sequence[str] = ("prompt", "generated")
) -> dict[str, Any]:
    """The `steering` of a request to EasySteer.

    Example:
        >>> body = {"prompt": "Hi", "steering": to_easysteer(vector, alpha=2.0, positions=["generated"])}

    Args:
        vector: `(hidden,)` for each layer, of outputs of blocks.
        alpha: stands beside the vector in the request.
        positions: of "prompt", "last" and "generated".

    Raises:
        DataError: no positions, or others. SteeringError: a site that is no output of a block.
    """
    where: dict[str, Any] = {"prompt": {"prompt": "all"}, "last": {"prompt_positions": [-1]}}
    where["generated"] = {"generation": "all"}
    unknown = [name for name in positions if name not in where]
    if unknown or not positions:
        raise DataError(f"positions={list(positions)}: expected some of {list(where)}")
    arrays = {f"layer.{layer}": values.numpy() for layer, values in _layers(None, vector).items()}
    total = hashlib.sha256(b"direction:1")  # the server takes it for the identity of the vector
    for name in sorted(arrays):
        total.update(name.encode() + str(arrays[name].shape).encode() + arrays[name].tobytes())
    tensors = {n: {"shape": list(a.shape), "data": b64encode(a.tobytes()).decode()} for n, a in arrays.items()}
    data = {"version": 1, "kind": "direction", "tensors": tensors, "extra": {}, "sha256": total.hexdigest()}
    apply = {key: value for name in positions for key, value in where[name].items()}
    layers = sorted(int(name.removeprefix("layer.")) for name in arrays)
    one = {"data": data, "algorithm": "direct", "scale": as_number("alpha", alpha), "layers": layers, "apply": apply}
    return {"vectors": [one]}


def from_easysteer(steering: Mapping[str, Any]) -> tuple[SteeringVector, float]:
    """The vector and alpha of the `steering` of a request to EasySteer; not the positions at which it is added.

    Example:
        >>> vector, alpha = from_easysteer(body["steering"])

    Raises:
        DataError: several vectors, or one that is not added as it is.
    """
    (one,) = _one_of(steering.get("vectors", []))
    if one.get("algorithm", "direct") != "direct" or one.get("normalize") or "data" not in one:
        raise DataError("expected one vector with its data that is added as it is (algorithm 'direct')")
    rows = {
        int(name.removeprefix("layer.")): np.frombuffer(b64decode(tensor["data"]), "<f4").reshape(tensor["shape"])
        for name, tensor in one["data"]["tensors"].items()
    }
    chosen = one.get("layers") or list(rows)
    return SteeringVector({layer: rows[layer] for layer in chosen}), float(one.get("scale", 1.0))


def to_hotwire(vector: SteeringVector | Vectors, name: str, *, alpha: float = 1.0, generated_only: bool = False) -> str:
    """What a request to hotwire carries as `hotwire` in `vllm_xargs` or `extra_args`: a vector of its server, by name.

    The server reads `$HOTWIRE_VECTORS/NAME.pt`, which `torch.save` writes: `(layers of the model, hidden)`, with zeros
    where nothing is added.

    Example:
        >>> body = {"prompt": "Hi", "vllm_xargs": {"hotwire": to_hotwire(vector, "polite", alpha=2.0)}}

    Args:
        vector: says which layers are steered; the server has its own copy.
        name: the vector's name on the server.
        alpha: multiplied with the vector by the server.
        generated_only: steer new tokens only, not the prompt.

    Raises:
        SteeringError: a site that is no output of a block.
    """
    entry = {"id": name, "scale": as_number("alpha", alpha), "decode_only": generated_only}
    return json.dumps([entry | {"layer": layer} for layer in _layers(None, vector)])


def _vector(given: SteeringVector | Vectors, n_layers: int | None = None) -> SteeringVector:
    found = as_steerer(given, n_layers)
    if not isinstance(found, SteeringVector):
        raise SteeringError(f"{found.name} has a vector for each input: no other tool represents that")
    added_vectors(found)  # the others add, and refuse nothing
    return found


def _layers(model: Model | None, given: SteeringVector | Vectors) -> dict[int, Tensor]:
    """The vectors by layer, of outputs of blocks that the model has."""
    found = _vector(given, None if model is None else model.n_layers).directions
    if model is not None:
        resolved: dict[Site, Tensor] = {}
        for site, values in found.items():  # -1 and the number of the last layer are one site, where both are added
            resolved[model.site(site)] = resolved.get(model.site(site), torch.zeros_like(values)) + values
        found = resolved
    if wrong := [site for site in found if isinstance(site.label, str)]:
        raise SteeringError(f"there is a vector at {wrong[0]}: other tools steer outputs of blocks, counted from 0")
    return {site.layer: found[site] for site in sorted(found)}


def _one_of(vectors: Sequence[Any]) -> Sequence[Any]:
    if len(vectors) != 1:
        raise DataError(f"the request has {len(vectors)} vectors: give one at a time")
    return vectors


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise LoadError('gguf is not installed: pip install "gguf>=0.17"') from error
    return gguf

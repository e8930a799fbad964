"""Vectors in the formats of other tools: files, objects, requests."""

import hashlib
import json
import sys
from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import steerlab
from steerlab import Site, SteeringVector, methods
from steerlab.errors import DataError, LoadError, SteerlabError
from steerlab.methods import from_easysteer, from_gguf, from_repeng, to_easysteer, to_gguf, to_steering_vectors
from steerlab.testing import tiny_lm

H = 32
VECTOR = SteeringVector({3: torch.arange(float(H)), 1: torch.ones(H)})


def test_gguf_holds_the_vector_of_block_n_as_direction_n(tmp_path: Path) -> None:
    """llama.cpp adds `direction.N` to the output of block N, from 0, and reads nothing but these tensors."""
    path = to_gguf(tiny_lm("llama"), VECTOR, tmp_path / "v.gguf", alpha=2.0)
    reader = gguf.GGUFReader(path)
    assert {t.name: (t.tensor_type.name, list(t.shape)) for t in reader.tensors} == {
        "direction.1": ("F32", [H]), "direction.3": ("F32", [H])
    }  # fmt: skip
    keys = {key: reader.get_field(key).contents() for key in reader.fields if not key.startswith("GGUF")}  # type: ignore[union-attr]
    assert keys == {
        "general.architecture": "controlvector", "controlvector.model_hint": "llama", "controlvector.layer_count": 2
    }  # fmt: skip
    back = from_gguf(path)
    assert back.directions.keys() == VECTOR.directions.keys()
    assert torch.equal(back.at(3), 2 * VECTOR.at(3))


def test_gguf_refuses_what_llama_cpp_would_not_steer(tmp_path: Path) -> None:
    model = tiny_lm("llama")
    for wrong, message in (
        ({0: torch.ones(H)}, r"can't steer the first block.*PCA\(range\(1, 4\)\)"),
        ({4: torch.ones(H)}, "layer 4 does not exist"),
        ({Site(2, "mlp_out"): torch.ones(H)}, "vector at 2.mlp_out"),
    ):
        with pytest.raises(SteerlabError, match=message):
            to_gguf(model, wrong, tmp_path / "w.gguf")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def written(path: Path, tensors: dict[str, np.ndarray], **keys: str) -> Path:
    writer = gguf.GGUFWriter(path, keys.pop("architecture", "controlvector"))
    for key, value in keys.items():
        writer.add_string(key.replace("_", "."), value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    one = np.ones(H, np.float32)
    (tmp_path / "text.gguf").write_text("no gguf")
    for path, message in (
        (written(tmp_path / "a.gguf", {"blk.0.weight": one}, architecture="llama"), "architecture='llama'"),
        (written(tmp_path / "b.gguf", {"direction.1": one, "scale": one}), "'scale'"),
        (written(tmp_path / "c.gguf", {"direction.3.1": one}), r"'direction.3.1'"),
        (written(tmp_path / "d.gguf", {"direction.1": one}, glp_mode="project"), "glp.mode='project'"),
        (written(tmp_path / "e.gguf", {"direction.1": one.astype(np.float16)}), "F16"),
        (tmp_path / "text.gguf", "text.gguf could not be read"),
        (tmp_path / "none.gguf", "no file"),
    ):
        with pytest.raises(LoadError, match=message):
            from_gguf(path)


def test_steering_vectors_adds_the_same_vector_at_the_same_layer() -> None:
    pytest.importorskip("steering_vectors")
    model = tiny_lm("llama")
    theirs = to_steering_vectors(VECTOR)
    ids = model.tokenizer("hello there", return_tensors="pt")["input_ids"]
    with theirs.apply(model.hf, multiplier=2.0), torch.no_grad():
        expected = model.hf(ids).logits
    with steerlab.steer(model, VECTOR, alpha=2.0), torch.no_grad():
        found = model.hf(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert methods.from_steering_vectors(theirs).directions.keys() == VECTOR.directions.keys()
    attention = SteeringVector({Site(2, "attn_out"): torch.ones(H)})
    assert list(methods.from_steering_vectors(to_steering_vectors(attention)).directions) == [Site(2, "attn_out")]
    with pytest.raises(SteerlabError, match="expected one kind"):
        to_steering_vectors(attention + VECTOR)
    theirs.layer_type = "input_layernorm"
    with pytest.raises(DataError, match="layer_type='input_layernorm'"):
        methods.from_steering_vectors(theirs)


@dataclass
class ControlVector:
    """The two fields of repeng's class; its release can't be imported beside NumPy 2."""

    model_type: str
    directions: dict[int, Any] = field(default_factory=dict)


def test_repeng_has_the_vectors_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("repeng")
    module.ControlVector = ControlVector  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "repeng", module)
    theirs = methods.to_repeng(tiny_lm("llama"), VECTOR)
    assert theirs.model_type == "llama" and theirs.directions[3].dtype == np.float32
    assert torch.equal(from_repeng(theirs).at(3), VECTOR.at(3))
    with pytest.raises(DataError, match=r"repeng\.ControlVector"):
        from_repeng(object())


def test_vllm_lens_request_is_read_back() -> None:
    request = methods.to_vllm_lens(VECTOR, alpha=1.5)
    (one,) = json.loads(request["apply_steering_vectors"])
    assert one["layer_indices"] == [1, 3] and one["scale"] == 1.5 and one["activations"]["shape"] == [2, H]
    back, alpha = methods.from_vllm_lens(request)
    assert alpha == 1.5 and torch.equal(back.at(3), VECTOR.at(3))
    one["norm_match"] = True
    with pytest.raises(DataError, match="as they are"):
        methods.from_vllm_lens({"apply_steering_vectors": json.dumps([one])})
    with pytest.raises(DataError, match="2 vectors"):
        methods.from_vllm_lens({"apply_steering_vectors": json.dumps([one, one])})


def test_easysteer_request_is_read_back_and_has_the_servers_hash() -> None:
    steering = to_easysteer(VECTOR, alpha=0.5, positions=["last", "generated"])
    (one,) = steering["vectors"]
    assert one["apply"] == {"prompt_positions": [-1], "generation": "all"} and one["layers"] == [1, 3]
    raw = {name: b64decode(tensor["data"]) for name, tensor in one["data"]["tensors"].items()}
    said = b"direction:1" + b"".join(name.encode() + f"({H},)".encode() + raw[name] for name in sorted(raw))
    assert one["data"]["sha256"] == hashlib.sha256(said).hexdigest()
    back, alpha = from_easysteer(json.loads(json.dumps(steering)))
    assert alpha == 0.5 and torch.equal(back.at(1), VECTOR.at(1))
    with pytest.raises(DataError, match=r"positions=.*expected some of"):
        to_easysteer(VECTOR, positions=["user"])
    one["algorithm"] = "erase"
    with pytest.raises(DataError, match="added as it is"):
        from_easysteer(steering)


def test_hotwire_request_names_the_vector_at_each_layer() -> None:
    assert json.loads(methods.to_hotwire(VECTOR, "polite", alpha=2.0, generated_only=True)) == [
        {"id": "polite", "scale": 2.0, "decode_only": True, "layer": 1},
        {"id": "polite", "scale": 2.0, "decode_only": True, "layer": 3},
    ]

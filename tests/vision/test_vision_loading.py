"""Loading image-text models: from folders and objects, with and without images."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from image_models import OTHER, encoded, families, rows_of, vlm
from transformers import LlavaProcessor

from steerlab import generate, load
from steerlab.errors import EncodingError, LoadError
from steerlab.models import vision
from steerlab.models.check import self_check
from steerlab.models.families import has_rope_index
from steerlab.testing import tiny_hf, tiny_processor, tiny_tokenizer, tiny_vlm, tiny_vlm_hf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a saved tiny model with its processor."""

    @cache
    def saved(family: str) -> Path:
        place = tmp_path_factory.mktemp("models") / family
        vlm(family).hf.save_pretrained(place)
        vlm(family).vision.processor.save_pretrained(place)
        return place

    return saved


@families
def test_saved_folder_loads_as_the_same_model(folder: Callable[[str], Path], family: str) -> None:
    model = load(folder(family), task="image-text", device="cpu", backend="hooks")
    original, rows = vlm(family), rows_of(family)
    assert load(folder(family), device="cpu", backend="hooks", check=False).vision is not None
    assert type(model.vision.processor) is type(original.vision.processor) and model.chat == original.chat
    assert model.id == family and model.info()["image_processor"].endswith("ImageProcessor")
    found, expected = encoded(model, rows), encoded(original, rows)
    assert found.input_ids.tolist() == expected.input_ids.tolist() and found.rows == expected.rows
    assert generate(model, rows, max_new_tokens=4).ids == generate(original, rows, max_new_tokens=4).ids


def test_object_with_a_processor_that_is_copied(folder: Callable[[str], Path]) -> None:
    hf, processor = vlm("llava").hf, tiny_processor("llava")
    processor.tokenizer.pad_token = None
    for given in (processor, str(folder("llava"))):
        model = load(hf, processor=given)
        assert model.vision is not None and model.tokenizer is model.vision.processor.tokenizer
        assert generate(model, rows_of("llava"), max_new_tokens=2).ids
        assert model.tokenizer.pad_token is not None
    assert processor.tokenizer.pad_token is None, "the caller's tokenizer is not changed"
    assert load(hf, tokenizer=tiny_tokenizer(), check=False).vision is None, "an object without its processor"


def test_images_with_other_logits_or_tokens_than_hugging_faces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_vlm("qwen2_vl")
    self_check(model)
    assert has_rope_index(model.hf) and not has_rope_index(tiny_hf("llama"))
    assert model.hf.model.rope_deltas is None, "what a cached step of the caller would use"
    model.accepted_inputs.add("position_ids")  # one number for each token, not three
    with pytest.raises(LoadError, match=r"a row with an image logits that are .* off those of plain Hugging Face"):
        self_check(model)
    assert [vlm(family).vision.placeholder for family in ("gemma3", "llava")] == ["<start_of_image>", "<image>"]
    plain = LlavaProcessor.__call__

    def joined(self: Any, text: list[str], **options: Any) -> Any:
        return plain(self, text=[one.replace("<image><image>", "<image> <image>") for one in text], **options)

    monkeypatch.setattr(LlavaProcessor, "__call__", joined)
    model = load(tiny_vlm_hf("llava"), processor=tiny_processor("llava"), chat=False)
    assert model.encode("<image>a<image>", images=[OTHER, OTHER]).kind("image")
    with pytest.raises(EncodingError, match="images side by side, which LlavaProcessor turns into other tokens"):
        model.encode("<image><image>", images=[OTHER, OTHER])


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl"])
def test_prompts_of_a_template_that_writes_no_bos_are_those_of_hugging_face(family: str) -> None:
    processor = tiny_processor(family)
    template = processor.tokenizer.chat_template.replace("{{ bos_token }}", "")
    processor.tokenizer.chat_template = processor.chat_template = template
    model = load(tiny_vlm_hf(family), processor=processor, backend="hooks")
    chat = [{"role": "user", "content": [{"type": "image", "image": OTHER}, {"type": "text", "text": "Hi there"}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    expected = processor.apply_chat_template(chat, **options)["input_ids"][0].tolist()
    assert list(model.encode("Hi there", images=[OTHER]).ids) == expected
    assert expected[0] == processor.tokenizer.bos_token_id


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_wrong_positions_of_images_are_refused_in_half_precision_too(family: str) -> None:
    model = tiny_vlm(family, backend="hooks")
    with torch.no_grad():
        for weight in model.hf.parameters():
            weight.mul_(0.5 if weight.ndim > 1 else 1.0)
    model.hf.to(torch.bfloat16)
    self_check(model)
    model.accepted_inputs.add("position_ids")
    with pytest.raises(LoadError, match="off those of plain Hugging Face"):
        self_check(model)


def test_template_of_the_processor_and_a_given_tokenizer_are_used(folder: Callable[[str], Path]) -> None:
    processor = tiny_processor("llava")
    processor.tokenizer.chat_template = "{{ 'no images here' }}"
    assert load(vlm("llava").hf, processor=processor).chat
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.padding_side = "left"
    assert load(folder("llava"), tokenizer=tokenizer, device="cpu", backend="hooks").tokenizer.padding_side == "left"


def test_text_task_has_no_vision(folder: Callable[[str], Path]) -> None:
    model = load(folder("llava"), task="text", device="cpu", backend="hooks")
    assert model.vision is None and "image_processor" not in model.info()
    with pytest.raises(EncodingError, match="reads text only"):
        model.encode("Hi", images=(OTHER,))


def test_folder_without_a_processor_loads_as_text_model(folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folder("llava"), tmp_path / "bare")
    (tmp_path / "bare" / "processor_config.json").unlink()
    assert load(tmp_path / "bare", device="cpu", check=False).vision is None
    with pytest.raises(LoadError, match=r"no processor|no image_processor"):
        load(tmp_path / "bare", device="cpu", task="image-text")
    assert load(tmp_path / "bare", device="cpu", processor=str(folder("llava"))).vision is not None


def test_images_for_a_text_model_are_refused() -> None:
    with pytest.raises(LoadError, match="task='image-text' was given, but LlamaConfig is that of a text-only model"):
        load(tiny_hf("llama"), task="image-text")
    with pytest.raises(LoadError, match="a processor was given, but LlamaConfig"):
        load(tiny_hf("llama"), processor=tiny_processor("llava"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "image-text"}, r"a model object comes without a processor; give load.model, processor=\.\.\.."),
        ({"task": "text", "processor": tiny_tokenizer()}, "task='text' reads no images, but processor= was given"),
        ({"processor": tiny_tokenizer()}, "is no processor of an image-text model: it has no image_processor"),
        ({}, "a model object comes without a tokenizer"),
        ({"task": "video"}, "unknown task 'video'; expected None, 'text' or 'image-text'"),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        load(vlm("llava").hf, **options)


@pytest.mark.parametrize("task", [None, "image-text"])
def test_missing_package_error_names_the_command(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Package `num2words` is required to run SmolVLM processor.")

    monkeypatch.setattr(vision.AutoProcessor, "from_pretrained", missing)
    with pytest.raises(LoadError, match=r"num2words.*pip install 'steerlab\[vision\]'.*task='text'"):
        load(folder("smolvlm"), task=task, device="cpu")
    assert load(folder("smolvlm"), task="text", device="cpu", check=False).vision is None


def test_unsupported_processor_is_found_when_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    process = vision.Vision._process

    def other(self: Any, *args: Any) -> Any:
        found = process(self, *args)
        return replace(found, texts=tuple(text + "!" for text in found.texts))

    monkeypatch.setattr(vision.Vision, "_process", other)
    with pytest.raises(LoadError, match=r"LlavaProcessor: it makes \d+ tokens of a prompt .*, steerlab \d+ with"):
        load(vlm("llava").hf, processor=tiny_processor("llava"))

"""Images in, states out: encoded rows and captured states match the processor and Hugging Face."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import LAYER, block_states, hidden, longer, processed, taken
from image_models import CHATS, OTHER, SQUARE, TALL, WIDE, encoded, engines, example, families, rows_of, states, vlm
from torch import Tensor

from steerlab import Contrast, EncodingError, Example, PositionError, capture
from steerlab.data import coco_objects, pope_questions
from steerlab.models.check import self_check
from steerlab.models.positions import resolve
from steerlab.testing import tiny_vlm

sides = pytest.mark.parametrize("side", ["left", "right"])


# --- the processor and Hugging Face ----------------------------------------------------------------------------


@families
def test_ids_and_pixels_are_those_of_the_processor(family: str) -> None:
    model = vlm(family)
    for row in rows_of(family):
        expected, batch = processed(model, row), encoded(model, [row])
        assert batch.input_ids.tolist() == expected.pop("input_ids").tolist(), row.prompt
        assert torch.equal(batch.attention_mask, expected.pop("attention_mask"))
        for name, tensor in taken(model, expected).items():
            assert torch.equal(batch.extra[name], tensor.to(batch.extra[name].dtype)), name
        assert bool(row.images) == any("pixel" in name for name in batch.extra)


@engines
def test_states_are_those_of_hugging_face_on_the_processors_output(family: str, backend: str) -> None:
    model, plain = vlm(family, backend), vlm(family)
    self_check(model)
    for row in rows_of(family):
        expected = hidden(plain, processed(plain, row))
        assert torch.equal(states(model, row), expected), row.prompt


@families
def test_teacher_forced_answer_extends_the_processors_row(family: str) -> None:
    model = vlm(family)
    for row in rows_of(family):
        batch = encoded(model, [row], answers=["It is the larger one"])
        n = batch.rows[0].n_prompt
        found = block_states(model, model.inputs(batch), {})[0].transpose(0, 1)
        assert torch.equal(found, hidden(model, longer(model, processed(model, row), batch.rows[0].ids[n:])))


# --- batches ---------------------------------------------------------------------------------------------------


@engines
@sides
def test_batch_of_mixed_rows_equals_single_rows(family: str, backend: str, side: Any) -> None:
    model, rows = vlm(family, backend), rows_of(family)
    together = capture(model, rows, positions=["all", "last"], reduce="none", padding=side, progress=False)
    assert len({len(r) for r in encoded(model, rows).rows}) == len(rows), "rows of different lengths: the premise"
    for row in rows:
        alone = capture(model, [row], positions=["all", "last"], reduce="none", progress=False)
        torch.testing.assert_close(together.select(example_id=row.id).values, alone.values, rtol=1e-4, atol=1e-4)


@families
@sides
def test_content_of_pads_changes_nothing(family: str, side: Any) -> None:
    model, rows = vlm(family), rows_of(family)
    batch = encoded(model, rows, side, ["Yes"] * len(rows))
    real = batch.attention_mask.bool()
    assert not real.all(), "the premise"
    inputs = model.inputs(batch)
    clean = block_states(model, inputs, {}).transpose(1, 2)[real]
    garbage = torch.randint(10, 90, batch.input_ids.shape, generator=torch.Generator().manual_seed(0))
    poisoned = inputs | {"input_ids": torch.where(real, batch.input_ids, garbage)}
    torch.testing.assert_close(block_states(model, poisoned, {}).transpose(1, 2)[real], clean, rtol=1e-5, atol=1e-5)


def _apart(a: Tensor, b: Tensor) -> float:
    """The relative distance of two states at the last layer."""
    return float((a[-1] - b[-1]).norm() / a[-1].norm())


# --- where the images are ------------------------------------------------------------------------------------


@families
def test_positions_of_images(family: str) -> None:
    model = vlm(family)
    for row in rows_of(family):
        (found,) = encoded(model, [row], answers=["Yes"]).rows
        images = [i for i, token in enumerate(found.ids) if token == model.hf.config.image_token_id]
        assert resolve("images", found) == images and bool(images) == bool(row.images)
        assert resolve("text", found) == [i for i in range(found.n_prompt) if i not in images]
        assert resolve("last_image", found) == images[-1:]
        assert resolve("after_image", found) == [i + 1 for i in images[-1:]]
        assert sorted(resolve("images+text", found)) == resolve("prompt", found)
        assert row.prompt.removeprefix("<image>" * 2)[-9:] in "".join(
            found.text[slice(*found.offsets[i])] for i in found.kind("user")
        )


@pytest.mark.parametrize("answer", [None, "Yes"])
def test_after_image_is_empty_where_the_prompt_ends_in_an_image(answer: str | None) -> None:
    model = tiny_vlm("llava", backend="hooks")
    model.chat = False
    row = Example("a", "What is this? <image>", images=(SQUARE,), contrast=answer and Contrast(answer, "No"))
    encoded_row = model.encode(row.prompt, answer=answer, images=row.images)
    assert resolve("last_image", encoded_row) == resolve("last", encoded_row), "the premise"
    assert resolve("after_image", encoded_row) == []
    with pytest.raises(PositionError, match=r"position after_image matches no token of the row .'a'.; it has"):
        capture(model, [row], positions="after_image", progress=False)


@families
def test_image_changes_its_states_and_later_ones_but_no_earlier_one(family: str) -> None:
    model = vlm(family)
    first, second = (example(family, "What is this?", (SQUARE, image)) for image in (WIDE, OTHER))
    (row,) = encoded(model, [first]).rows
    images = resolve("images", row)
    a, b = states(model, first), states(model, second)
    changed = (a - b).abs().amax(-1) > 1e-3
    n = len(encoded(model, [example(family, "What is this?", (SQUARE,))]).rows[0].kind("image"))
    second = images[n:]
    assert changed[second].all(), "every token of the second image, at every layer"
    if family == "paligemma":  # a prompt there sees itself both ways
        assert changed[: second[0], 1:].any() and changed[second[-1] + 1 :, -1].all()
    else:
        assert torch.equal(a[: second[0]], b[: second[0]]), "no state before the image, nor of the one before it"
    assert changed[row.n_prompt - 1, -1] and _apart(a[-1], b[-1]) > 0.02


# --- answers ---------------------------------------------------------------------------------------------------

ANSWERS = ("Yes", "No, it is something else", "a")


@families
def test_prompt_states_do_not_depend_on_the_answer(family: str) -> None:
    model = vlm(family)
    for row in rows_of(family)[::2]:  # two images; none, where the family takes that
        plain = states(model, row)
        batch = encoded(model, [row] * 3, "right", ANSWERS)
        n = batch.rows[0].n_prompt
        for row_with_answer in block_states(model, model.inputs(batch), {}):
            torch.testing.assert_close(row_with_answer[:, :n].transpose(0, 1), plain, rtol=1e-4, atol=1e-5)


def test_paligemma_takes_token_types_that_mark_the_answer() -> None:
    model = vlm("paligemma")
    row = rows_of("paligemma")[0]
    last: dict[str, list[Tensor]] = {"types": [], "all prompt": [], "no types": []}
    for answer in ANSWERS[:2]:
        batch = encoded(model, [row], answers=[answer])
        inputs = model.inputs(batch)
        zero = inputs | {"token_type_ids": torch.zeros_like(inputs["token_type_ids"])}
        none = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids"}
        for name, given in (("types", inputs), ("all prompt", zero), ("no types", none)):
            last[name].append(block_states(model, given, {})[0, :, batch.rows[0].n_prompt - 1])
    torch.testing.assert_close(*last["types"], rtol=1e-4, atol=1e-5)
    assert _apart(*last["all prompt"]) > 0.05, "the prompt attends to the answer"
    torch.testing.assert_close(*last["no types"], rtol=1e-4, atol=1e-5)  # causal, but not what the model is:
    assert _apart(last["types"][0], last["no types"][0]) > 0.05
    expected = hidden(model, processed(model, row))[-1]
    torch.testing.assert_close(last["types"][0], expected, rtol=1e-4, atol=1e-5)


def test_gemma3_takes_token_types_that_mark_images() -> None:
    model, row = vlm("gemma3"), rows_of("gemma3")[0]
    inputs = model.inputs(encoded(model, [row]))
    none = inputs | {"token_type_ids": torch.zeros_like(inputs["token_type_ids"])}
    a, b = (block_states(model, given, {})[0, LAYER + 1, -1:] for given in (inputs, none))
    assert _apart(a, b) > 1e-3


def test_paligemma_refuses_a_prompt_without_an_image() -> None:
    with pytest.raises(EncodingError, match="PaliGemma"):
        vlm("paligemma").encode("What is this?")
    with pytest.raises(EncodingError, match="PaliGemma"):
        capture(vlm("paligemma"), [Example("a", "No image")], progress=False)


@pytest.mark.parametrize("family", CHATS)
def test_images_are_placed_where_the_messages_place_them(family: str) -> None:
    """In earlier turns too, and between words."""
    model, image = vlm(family), {"type": "image"}
    see, mark, reply, more = ({"type": "text", "text": text} for text in ("See ", "!", "I see.", "And this?"))
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [see, image, mark]},
        {"role": "assistant", "content": [reply]},
        {"role": "user", "content": [image, more]},
    ]
    row = model.encode(turns, images=(WIDE, TALL))
    text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    expected = model.vision.processor(text=[text], images=[[WIDE, TALL]], return_tensors="pt", add_special_tokens=False)
    assert list(row.ids) == expected["input_ids"][0].tolist()
    history = row.kind("history")
    assert history and row.kind("image")[0] < history[-1] < row.kind("user")[0]


# --- real images -----------------------------------------------------------------------------------------------

PHOTOS = 50


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    """Two questions about each of fifty photographs, adversarial by the counts of all annotated ones."""
    folder = Path(os.environ.get("STEERLAB_DATA", "nowhere")) / "coco_free"
    if not folder.is_dir():
        pytest.skip("STEERLAB_DATA names no folder with coco_free")
    objects = coco_objects(folder / "annotations.jsonl")
    questions = pope_questions(objects, "adversarial", 2, images=folder / "images", name="free")
    return questions[: 2 * PHOTOS]


@pytest.mark.data
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_photographs_are_encoded_and_captured(rows: list[Example], family: str) -> None:
    model = vlm(family)
    assert len({row.meta["image"] for row in rows}) == PHOTOS and [row.behavior for row in rows[:2]] == ["yes", "no"]
    acts = capture(model, rows, positions=["last", "images"], progress=False)
    assert torch.isfinite(acts.values).all()
    for position in ("last", "images"):
        assert acts.select(position=position).index["example_id"].tolist() == [row.id for row in rows]
    spans = acts.select(position="images").index["n_tokens"].tolist()
    for row, n in zip(rows, spans, strict=True):
        places = resolve("images", model.encode(row.prompt, images=row.images))
        assert n == len(places) == model.vision.n_tokens(row.images)
    assert set(spans) == {9} if family == "llava" else len(set(spans)) > 1, "Qwen's counts follow the image's shape"
    last = acts.select(position="last").at(model.n_layers - 1)
    assert len(last.unique(dim=0)) == len(rows), "every image and every question is seen"

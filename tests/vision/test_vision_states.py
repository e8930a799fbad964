"""Pictures in, states out: what is encoded and read is what the processor and Hugging Face make of the row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from image_models import (
    CHATS,
    HOOKED,
    LAYER,
    OTHER,
    SQUARE,
    TALL,
    WIDE,
    encoded,
    example,
    hidden,
    longer,
    processed,
    rows_of,
    states,
    taken,
    vlm,
)  # fmt: skip
from torch import Tensor

from steerlab import Contrast, EncodingError, Example, PositionError, capture
from steerlab.models.check import self_check
from steerlab.models.positions import resolve
from steerlab.models.sites import Site
from steerlab.testing import VLM_FAMILIES, tiny_vlm

families = pytest.mark.parametrize("family", VLM_FAMILIES)
# plain hooks on three families only: what they are compared with is the same
engines = pytest.mark.parametrize(
    ("family", "backend"), [(f, "nnsight") for f in VLM_FAMILIES] + [(f, "hooks") for f in HOOKED]
)
sides = pytest.mark.parametrize("side", ["left", "right"])


# --- the processor and Hugging Face ----------------------------------------------------------------------------


@families
def test_ids_and_pixels_are_the_processors_own(family: str) -> None:
    model = vlm(family)
    for row in rows_of(family):
        theirs, batch = processed(model, row), encoded(model, [row])
        assert batch.input_ids.tolist() == theirs.pop("input_ids").tolist(), row.prompt
        assert torch.equal(batch.attention_mask, theirs.pop("attention_mask"))
        for name, tensor in taken(model, theirs).items():
            assert torch.equal(batch.extra[name], tensor.to(batch.extra[name].dtype)), name
        assert bool(row.images) == any("pixel" in name for name in batch.extra)


@engines
def test_states_are_hugging_faces_on_the_processors_output(family: str, backend: str) -> None:
    model, plain = vlm(family, backend), vlm(family)
    self_check(model)
    for row in rows_of(family):
        expected = hidden(plain, processed(plain, row))
        assert torch.equal(states(model, row), expected), row.prompt


@families
def test_a_teacher_forced_answer_is_the_processors_row_with_the_answers_tokens(family: str) -> None:
    model = vlm(family)
    for row in rows_of(family):
        batch = encoded(model, [row], answers=["It is the larger one"])
        n = batch.rows[0].n_prompt
        with torch.no_grad():
            ours = model.engine.capture_states(model.inputs(batch), {}, [Site(k) for k in range(3)], lambda h: h[0])
        assert torch.equal(ours, hidden(model, longer(model, processed(model, row), batch.rows[0].ids[n:])))


# --- batches ---------------------------------------------------------------------------------------------------


@engines
@sides
def test_a_batch_of_mixed_rows_equals_its_rows_one_by_one(family: str, backend: str, side: Any) -> None:
    model, rows = vlm(family, backend), rows_of(family)
    together = capture(model, rows, positions=["all", "last"], reduce="none", padding=side, progress=False)
    assert len({len(r) for r in encoded(model, rows).rows}) == len(rows), "rows of different lengths: the premise"
    for row in rows:
        alone = capture(model, [row], positions=["all", "last"], reduce="none", progress=False)
        torch.testing.assert_close(together.select(example_id=row.id).values, alone.values, rtol=1e-4, atol=1e-4)


@families
@sides
def test_whatever_the_pads_hold_changes_nothing(family: str, side: Any) -> None:
    model, rows = vlm(family), rows_of(family)
    batch = encoded(model, rows, side, ["Yes"] * len(rows))
    real = batch.attention_mask.bool()
    assert not real.all(), "the premise"
    inputs = model.inputs(batch)
    sites = [Site(k) for k in range(3)]
    clean = model.engine.capture_states(inputs, {}, sites, lambda h: h[real])
    garbage = torch.randint(10, 90, batch.input_ids.shape, generator=torch.Generator().manual_seed(0))
    poisoned = inputs | {"input_ids": torch.where(real, batch.input_ids, garbage)}
    torch.testing.assert_close(
        model.engine.capture_states(poisoned, {}, sites, lambda h: h[real]), clean, rtol=1e-5, atol=1e-5
    )


@families
def test_pictures_belong_to_their_own_row(family: str) -> None:
    """Exchanging the picture of one row changes that row and no other."""
    model = vlm(family)
    rows = [example(family, "What is this?", (image,), str(i)) for i, image in enumerate((WIDE, TALL, SQUARE))]
    other = [rows[0].replace(images=(OTHER,)), *rows[1:]]
    before, after = (capture(model, data, positions="last", progress=False).values for data in (rows, other))
    assert torch.equal(before[1:], after[1:])
    assert _apart(before[0], after[0]) > 0.02


def _apart(a: Tensor, b: Tensor) -> float:
    """The relative distance of two states at the top."""
    return float((a[-1] - b[-1]).norm() / a[-1].norm())


# --- where the pictures are ------------------------------------------------------------------------------------


@families
def test_positions_of_pictures(family: str) -> None:
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
def test_nothing_comes_after_a_picture_at_the_end_of_the_prompt(answer: str | None) -> None:
    model = tiny_vlm("llava", backend="hooks")
    model.chat = False
    row = Example("a", "What is this? <image>", images=(SQUARE,), contrast=answer and Contrast(answer, "No"))
    encoded_row = model.encode(row.prompt, answer=answer, images=row.images)
    assert resolve("last_image", encoded_row) == resolve("last", encoded_row), "the premise"
    assert resolve("after_image", encoded_row) == []
    with pytest.raises(PositionError, match=r"position after_image matches no token of the row .'a'.; it has"):
        capture(model, [row], positions="after_image", progress=False)


@families
def test_a_picture_changes_its_own_states_and_later_ones_but_none_before(family: str) -> None:
    model = vlm(family)
    first, second = (example(family, "What is this?", (SQUARE, image)) for image in (WIDE, OTHER))
    (row,) = encoded(model, [first]).rows
    images = resolve("images", row)
    a, b = states(model, first), states(model, second)
    changed = (a - b).abs().amax(-1) > 1e-3
    n = len(encoded(model, [example(family, "What is this?", (SQUARE,))]).rows[0].kind("image"))
    own = images[n:]
    assert changed[own].all(), "every token of the second picture, at every layer"
    if family == "paligemma":  # a prompt there sees itself both ways
        assert changed[: own[0], 1:].any() and changed[own[-1] + 1 :, -1].all()
    else:
        assert torch.equal(a[: own[0]], b[: own[0]]), "no state before the picture, nor of the one before it"
    assert changed[row.n_prompt - 1, -1] and _apart(a[-1], b[-1]) > 0.02


@families
def test_the_state_at_last_depends_on_the_picture_and_on_the_text(family: str) -> None:
    """The tiny models are no use to any test here if they are not sensitive."""
    model = vlm(family)
    at = [
        capture(model, [example(family, text, (image,))], positions="last", progress=False).values[0]
        for text, image in (("What is this?", WIDE), ("What is this?", OTHER), ("Where is it?", WIDE))
    ]
    assert _apart(at[0], at[1]) > 0.05 and _apart(at[0], at[2]) > 0.05


# --- answers ---------------------------------------------------------------------------------------------------

ANSWERS = ("Yes", "No, it is something else", "a")


@families
def test_prompt_states_do_not_depend_on_the_answer(family: str) -> None:
    model = vlm(family)
    for row in rows_of(family)[::2]:  # two pictures; none, where the family takes that
        plain = states(model, row)
        batch = encoded(model, [row] * 3, "right", ANSWERS)
        n = batch.rows[0].n_prompt
        found = model.engine.capture_states(model.inputs(batch), {}, [Site(k) for k in range(3)], lambda h: h.clone())
        for row_with_answer in found:
            torch.testing.assert_close(row_with_answer[:, :n].transpose(0, 1), plain, rtol=1e-4, atol=1e-5)


def test_paligemma_needs_to_be_told_which_tokens_are_answer() -> None:
    model = vlm("paligemma")
    row = rows_of("paligemma")[0]
    last: dict[str, list[Tensor]] = {"told": [], "all prompt": [], "nothing": []}
    for answer in ANSWERS[:2]:
        batch = encoded(model, [row], answers=[answer])
        at = batch.rows[0].n_prompt - 1
        told = model.inputs(batch)
        zero = told | {"token_type_ids": torch.zeros_like(told["token_type_ids"])}
        none = {name: tensor for name, tensor in told.items() if name != "token_type_ids"}
        for name, inputs in (("told", told), ("all prompt", zero), ("nothing", none)):
            last[name].append(
                model.engine.capture_states(
                    inputs, {}, [Site(k) for k in range(3)], lambda h, at=at: h[0, at : at + 1]
                )[0]
            )
    torch.testing.assert_close(*last["told"], rtol=1e-4, atol=1e-5)
    assert _apart(*last["all prompt"]) > 0.05, "the prompt looks at the answer"
    torch.testing.assert_close(*last["nothing"], rtol=1e-4, atol=1e-5)  # causal, but not what the model is:
    assert _apart(last["told"][0], last["nothing"][0]) > 0.05
    expected = hidden(model, processed(model, row))[-1]
    torch.testing.assert_close(last["told"][0], expected, rtol=1e-4, atol=1e-5)


def test_gemma3_needs_to_be_told_where_pictures_are() -> None:
    model, row = vlm("gemma3"), rows_of("gemma3")[0]
    told = model.inputs(encoded(model, [row]))
    none = told | {"token_type_ids": torch.zeros_like(told["token_type_ids"])}
    a, b = (
        model.engine.capture_states(inputs, {}, [Site(LAYER + 1)], lambda h: h[:, -1])[0] for inputs in (told, none)
    )
    assert _apart(a, b) > 1e-3


def test_a_prompt_without_a_picture_is_no_prompt_to_paligemma() -> None:
    with pytest.raises(EncodingError, match="PaliGemma"):
        vlm("paligemma").encode("What is this?")
    with pytest.raises(EncodingError, match="PaliGemma"):
        capture(vlm("paligemma"), [Example("a", "No picture")], progress=False)


def _said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize("family", CHATS)
def test_pictures_go_where_the_messages_say(family: str) -> None:
    """In earlier turns too, and between words."""
    model = vlm(family)
    assert model.vision is not None
    turns: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "See "}, {"type": "image"}, {"type": "text", "text": "!"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "I see."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
    ]
    row = model.encode(turns, images=(WIDE, TALL))
    text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    theirs = model.vision.processor(text=[text], images=[[WIDE, TALL]], return_tensors="pt", add_special_tokens=False)
    assert list(row.ids) == theirs["input_ids"][0].tolist()
    history = [i for i in row.kind("history")]
    assert history and row.kind("image")[0] < history[-1] < row.kind("user")[0]

"""Rows with images: encoding, states, steering and answers match the processor and plain Hugging Face forwards."""

import os
from pathlib import Path
from typing import Any

import image_models
import pytest
import torch
from by_hand import LAYER, block_states, greedy, hidden, longer, processed, taken
from image_models import CHATS, SQUARE, TALL, WIDE, encoded, engines, example, families, rows_of, states, vlm
from PIL import Image

from steerlab import Contrast, Example, SteeringVector, capture, generate, score, steer
from steerlab._support.images import image_hash
from steerlab.data import coco_objects, pope_questions
from steerlab.errors import EncodingError, PositionError
from steerlab.models.check import self_check
from steerlab.models.positions import resolve
from steerlab.steering import Request
from steerlab.steering.interventions import build_edits
from steerlab.steering.requests import resolve_interventions
from steerlab.testing import tiny_vlm

sides = pytest.mark.parametrize("side", ["left", "right"])


# --- the processor and Hugging Face ----------------------------------------------------------------------------


def test_open_images_are_known_by_what_is_seen_of_them() -> None:
    model = tiny_vlm("llava")
    red, blue = (Image.new("RGB", (48, 48), color).quantize() for color in ("red", "blue"))
    assert red.tobytes() == blue.tobytes() and image_hash(red) != image_hash(blue), "two palettes"

    def read(image: Image.Image) -> torch.Tensor:
        return capture(model, [Example("What is it?", images=(image,), id="a")], layers=[1], progress=False).values

    assert not torch.equal(read(red), read(blue))
    before = read(drawn := Image.new("RGB", (48, 48), "red"))
    drawn.paste("black", (0, 0, 48, 24))
    assert torch.equal(read(drawn), read(drawn.copy())) and not torch.equal(read(drawn), before), "drawn on"


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
        assert torch.equal(states(model, row), hidden(plain, processed(plain, row))), row.prompt


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
    row = Example("What is this? <image>", id="a", images=(SQUARE,), contrast=answer and Contrast(answer, "No"))
    encoded_row = model.encode(row.prompt, answer=answer, images=row.images)
    assert resolve("last_image", encoded_row) == resolve("last", encoded_row), "the premise"
    assert resolve("after_image", encoded_row) == []
    with pytest.raises(PositionError, match=r"position after_image matches no token of the row .'a'.; it has"):
        capture(model, [row], positions="after_image", progress=False)


def test_paligemma_prompt_without_an_image_is_refused() -> None:
    with pytest.raises(EncodingError, match="PaliGemma"):
        vlm("paligemma").encode("What is this?")


# --- answers ---------------------------------------------------------------------------------------------------

ANSWERS = ("Yes", "No, it is something else", "a")


@families
def test_prompt_states_do_not_depend_on_the_answer(family: str) -> None:
    """PaliGemma's prompts see themselves both ways, but by their token types no answer."""
    model = vlm(family)
    for row in rows_of(family)[::2]:  # two images; none, where the family takes that
        plain = states(model, row)
        batch = encoded(model, [row] * 3, "right", ANSWERS)
        n = batch.rows[0].n_prompt
        for row_with_answer in block_states(model, model.inputs(batch), {}):
            torch.testing.assert_close(row_with_answer[:, :n].transpose(0, 1), plain, rtol=1e-4, atol=1e-5)


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


# --- steering --------------------------------------------------------------------------------------------------

DELTA = 3.0 * torch.randn(32, generator=torch.Generator().manual_seed(5))
STEERER = SteeringVector({LAYER: DELTA})
REPLIES = ("the wide one", "ok", "no", "a tall one, I think")
STEPS = 5


@engines
def test_alpha_zero_is_bit_identical_to_no_steering(family: str, backend: str) -> None:
    model, rows = vlm(family, backend), rows_of(family)
    before, scored = generate(model, rows, max_new_tokens=STEPS), score(model, rows, REPLIES[: len(rows)])
    with steer(model, STEERER, alpha=0.0) as run:
        assert run.generate(rows, max_new_tokens=STEPS).ids == before.ids
        assert run.score(rows, REPLIES[: len(rows)])["logprob"].tolist() == scored["logprob"].tolist()


@engines
def test_steering_adds_alpha_v_at_the_positions_only(family: str, backend: str) -> None:
    model, rows = vlm(family, backend), image_models.rows_with_images(family)
    places = {"left": ("images", "after_image", "all"), "right": ("text", "last_image", "last+generated")}
    for side in places:
        batch, alpha = encoded(model, rows, side, REPLIES[: len(rows)]), [1.0, -0.5, 2.0]
        inputs = model.inputs(batch)
        before = block_states(model, inputs, {})
        for positions in places[side]:
            prepared = resolve_interventions(model, [Request(STEERER, alpha, positions)], rows, 16)
            after = block_states(model, inputs, build_edits(model, prepared, batch, range(len(rows))))
            expected = before.clone()
            for i, row in enumerate(batch.rows):
                expected[i, LAYER, [batch.offsets[i] + t for t in resolve(positions, row)]] += alpha[i] * DELTA
            assert torch.equal(after[:, : LAYER + 1], expected[:, : LAYER + 1]), (side, positions)
            assert not torch.equal(after[:, LAYER + 1], before[:, LAYER + 1]), "the model sees what was written"


@engines
@pytest.mark.parametrize("positions", ["images", "all", "last+generated"])
def test_cached_batched_decoding_matches_recomputation_by_row(family: str, backend: str, positions: str) -> None:
    model, plain = vlm(family, backend), vlm(family)
    rows = image_models.rows_with_images(family) if positions == "images" else rows_of(family)
    options: dict[str, Any] = {"steer": STEERER, "positions": positions, "max_new_tokens": STEPS}
    found = generate(model, rows, **options)
    for i, row in enumerate(rows):
        images = encoded(plain, [row]).rows[0].kind("image")
        columns = {
            "images": lambda n, now, images=images: images,
            "all": lambda n, now: list(range(now)),
            "last+generated": lambda n, now: list(range(n - 1, now)),
        }[positions]
        assert found.ids[i] == greedy(plain, row, DELTA, columns, STEPS), row.prompt
    if positions == "images":
        assert found.steered_tokens == sum(len(r.kind("image")) for r in encoded(plain, rows).rows)
    assert generate(model, rows, max_new_tokens=STEPS).ids != found.ids
    assert generate(model, rows, use_cache=False, **options).ids == found.ids
    assert generate(model, rows, batch_size=1, **options).ids == found.ids


@families
def test_scores_match_a_plain_forward(family: str) -> None:
    model, rows = vlm(family), rows_of(family)
    found = score(model, rows, REPLIES[: len(rows)])
    for row, answer, logprob in zip(rows, REPLIES, found["logprob"], strict=False):
        ids = model.tokenizer(answer, add_special_tokens=False).input_ids
        given = longer(model, processed(model, row), ids)
        with torch.no_grad():
            logprobs = model.hf(**taken(model, given), use_cache=False).logits[0].log_softmax(-1)
        places = range(given["input_ids"].shape[1] - len(ids) - 1, given["input_ids"].shape[1] - 1)
        expected = sum(float(logprobs[i, token]) for i, token in zip(places, ids, strict=True))
        assert float(logprob) == pytest.approx(expected, abs=1e-3)


# --- several rows out of one -----------------------------------------------------------------------------------


def copies_of(family: str) -> list[Any]:
    rows = [example(family, "Which is larger?", (WIDE, TALL), "0"), example(family, "What is this?", (SQUARE,), "1")]
    if family in CHATS:
        rows.insert(1, example(family, "Nothing to see.", (), "2"))
    return [*rows, example(family, "Compare these", (TALL, SQUARE, WIDE), "3")]


@engines
@pytest.mark.parametrize("steered", [False, True])
def test_beams_of_rows_with_several_images_are_those_of_the_row_alone(family: str, backend: str, steered: bool) -> None:
    """Hugging Face repeats rows and images by itself; a wrong pairing would show in the beams."""
    model, rows = vlm(family, backend), copies_of(family)
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4}
    if steered:
        options |= {"steer": STEERER, "alpha": 0.5, "positions": "all"}
    together = generate(model, rows, **options)
    assert together.ids == tuple(i for row in rows for i in generate(model, [row], **options).ids)
    assert len(set(together.ids)) > len(rows)


@engines
def test_every_copy_of_a_row_gets_the_images_of_the_row(family: str, backend: str) -> None:
    """Drawn from the single likeliest token, each copy is the greedy answer."""
    model, rows = vlm(family, backend), copies_of(family)
    drawn = generate(model, rows, max_new_tokens=4, do_sample=True, top_k=1, num_return_sequences=3)
    single = tuple(greedy(vlm(family), row, DELTA, lambda n, now: [], 4) for row in rows)
    assert drawn.ids == tuple(ids for ids in single for _ in range(3))
    assert len(set(single)) == len(rows), "the premise"


# --- real images -----------------------------------------------------------------------------------------------


@pytest.mark.data("coco_free")
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_photographs_are_encoded_and_captured(family: str) -> None:
    """Two questions about each of fifty photographs, adversarial by the counts of all annotated ones."""
    folder = Path(os.environ["STEERLAB_DATA"]) / "coco_free"
    objects, model = coco_objects(folder / "annotations.jsonl"), vlm(family)
    rows = pope_questions(objects, "adversarial", 2, images=folder / "images", name="free")[:100]
    assert len({row.meta["image"] for row in rows}) == 50 and [row.behavior for row in rows[:2]] == ["yes", "no"]
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

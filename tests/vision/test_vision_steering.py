"""Steering of rows with images matches plain forwards of one row at a time without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import LAYER, block_states, greedy, longer, processed, taken
from image_models import CHATS, SQUARE, TALL, WIDE, encoded, engines, example, families, rows_of, rows_with_images, vlm

from steerlab import MeanDifference, generate, score, steer
from steerlab.models.positions import resolve
from steerlab.steering import Request
from steerlab.steering.interventions import build_edits, resolve_interventions

DELTA = 3.0 * torch.randn(32, generator=torch.Generator().manual_seed(5))
STEERER = MeanDifference.from_tensor(LAYER, DELTA)
ANSWERS = ("the wide one", "ok", "no", "a tall one, I think")
STEPS = 5


@engines
def test_alpha_zero_is_bit_identical_to_no_steering(family: str, backend: str) -> None:
    model, rows = vlm(family, backend), rows_of(family)
    before, scored = generate(model, rows, max_new_tokens=STEPS), score(model, rows, ANSWERS[: len(rows)])
    with steer(model, STEERER, alpha=0.0) as run:
        assert run.generate(rows, max_new_tokens=STEPS).ids == before.ids
        assert run.score(rows, ANSWERS[: len(rows)])["logprob"].tolist() == scored["logprob"].tolist()


@engines
def test_steering_adds_alpha_v_at_the_positions_and_nothing_elsewhere(family: str, backend: str) -> None:
    model, rows = vlm(family, backend), rows_with_images(family)
    places = {"left": ("images", "after_image", "all"), "right": ("text", "last_image", "last+generated")}
    for side in places:
        batch, alpha = encoded(model, rows, side, ANSWERS[: len(rows)]), [1.0, -0.5, 2.0]
        inputs = model.inputs(batch)
        before = block_states(model, inputs, {})
        for positions in places[side]:
            prepared = resolve_interventions(model, [Request(STEERER, alpha, positions)], rows, 16)
            after = block_states(model, inputs, build_edits(model, prepared, batch, range(len(rows)), len(rows)))
            expected = before.clone()
            for i, row in enumerate(batch.rows):
                expected[i, LAYER, [batch.offsets[i] + t for t in resolve(positions, row)]] += alpha[i] * DELTA
            assert torch.equal(after[:, : LAYER + 1], expected[:, : LAYER + 1]), (side, positions)
            assert not torch.equal(after[:, LAYER + 1], before[:, LAYER + 1]), "the model sees what was written"


@engines
@pytest.mark.parametrize("positions", ["images", "all", "last+generated"])
def test_cached_batched_decoding_matches_recomputation_by_row(family: str, backend: str, positions: str) -> None:
    model, rows = vlm(family, backend), rows_of(family)
    if positions == "images":
        rows = [row for row in rows if row.images]
    found = generate(model, rows, steer=STEERER, positions=positions, max_new_tokens=STEPS)
    plain = vlm(family, "hooks")
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
    options: dict[str, Any] = {"steer": STEERER, "positions": positions, "max_new_tokens": STEPS}
    assert generate(model, rows, use_cache=False, **options).ids == found.ids
    assert generate(model, rows, batch_size=1, **options).ids == found.ids


@families
def test_scores_match_a_plain_forward(family: str) -> None:
    model, rows = vlm(family), rows_of(family)
    found = score(model, rows, ANSWERS[: len(rows)])
    for row, answer, logprob in zip(rows, ANSWERS, found["logprob"], strict=False):
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

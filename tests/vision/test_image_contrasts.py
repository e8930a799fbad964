"""Contrasts of two images, or two scenes, of one prompt: read as the prompt with each of them, and fitted to."""

from typing import Any

import numpy as np
import pytest
import torch
from image_models import OTHER, WIDE, example, rows_with_images, tower_engines, vlm
from PIL import Image

from steerlab import L2S, Contrast, Example, MeanDifference, Site, capture, sweep
from steerlab.data import data_hash
from steerlab.errors import DataError, PositionError
from steerlab.methods import P2S, Context
from steerlab.models.positions import resolve


def mirrored(row: Example) -> Example:
    """A row against the same with its images mirrored."""
    images: list[Any] = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in row.images]  # type: ignore[union-attr]
    return row.replace(contrast=Contrast.of_images(*images))


@tower_engines
@pytest.mark.parametrize(
    ("layers", "position"), [([0, 1], "images"), ([1], "last"), ([Site(1, part="vision")], "images")]
)
def test_both_sides_are_the_prompt_with_each_image(family: str, backend: str, layers: Any, position: str) -> None:
    model, rows = vlm(family, backend), [mirrored(row) for row in rows_with_images(family)]
    options: dict[str, Any] = {"layers": layers, "positions": position, "progress": False, "batch_size": 2}
    acts = capture(model, rows, **options)
    for side in ("positive", "negative"):
        alone = [row.replace(contrast=None) for row in rows]
        if side == "positive":
            alone = [
                one.replace(images=row.contrast.images) for one, row in zip(alone, rows, strict=True) if row.contrast
            ]
        wanted = capture(model, alone, **options).values
        torch.testing.assert_close(acts.select(side=side).values, wanted, atol=1e-4, rtol=1e-4)
    assert (acts.select(side="positive").values - acts.select(side="negative").values).abs().max() > 1e-3


def test_the_vector_of_each_input_is_the_difference_of_its_two_images() -> None:
    model, rows = vlm("llava"), [mirrored(row) for row in rows_with_images("llava")]
    acts = capture(model, rows, layers=[1], progress=False)
    assert set(acts.index["position"]) == {"images", "last"}  # the contrast and the context of the plain prompt
    ids, contrasts = acts.contrast(1)
    assert ids == [row.id for row in rows]
    torch.testing.assert_close(MeanDifference(1).fit(model, rows).vector_, contrasts.mean(0), atol=1e-5, rtol=1e-4)
    context = Context(tuple(ids), acts.select(side="prompt"))
    own = P2S(1).fit(acts).vectors(context)
    torch.testing.assert_close(own, contrasts, atol=1e-5, rtol=1e-4)
    assert L2S(1, net="linear").fit(acts).vectors(context).shape == own.shape
    whole = model.encode(rows[0].prompt, images=rows[0].images)
    span = resolve("images", whole)
    assert [resolve(f"images[{k}]", whole) for k in range(len(span))] == [[token] for token in span]
    assert resolve(f"images[{len(span)}]", whole) == []


def test_identical_or_mixed_contrasts_of_images_are_refused_and_images_count_in_the_fingerprint() -> None:
    row = example("llava", "What is it?", [WIDE])
    with pytest.raises(DataError, match="have the same images"):
        row.replace(contrast=Contrast.of_images(WIDE))
    with pytest.raises(DataError, match=r"a pair of images has no texts: give Contrast.of_images"):
        Contrast("Yes", "No", images=(WIDE,))
    with pytest.raises(DataError, match="a pair of images has no answers: leave suffix="):
        Contrast("", "", images=(WIDE,), suffix="Why?")
    said = r"one is 3 .int.: expected a file, an open image or a scene|Actual value: \(3,\)"  # the latter at night
    with pytest.raises((DataError, TypeError), match=said):
        row.replace(contrast=Contrast.of_images(3))  # type: ignore[arg-type]
    with pytest.raises(PositionError, match=r"unknown position 'image\[3\]'; .*'images\[3\]'"):
        resolve("image[3]", vlm("llava").encode("What is it?", images=[WIDE]))
    dark = Image.fromarray(np.asarray(OTHER) // 2)
    hashes = {data_hash([row.replace(contrast=Contrast.of_images(one))]) for one in (OTHER, OTHER.copy(), dark)}
    assert len(hashes) == 2
    rows = [row.replace(contrast=Contrast.of_images(OTHER))]
    vector = MeanDifference(1).fit(vlm("llava"), rows)
    with pytest.raises(DataError, match=r"change the prompt .* or other images.*they have no answers"):
        sweep(vlm("llava"), rows, vector, progress=False)

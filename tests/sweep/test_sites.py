"""Every site, and rows with images: each setting equals a plain hook, or `steer` with the same method."""

from itertools import product
from typing import Any

import pytest
import torch
from nightly import by_day
from PIL import Image
from reference import AnyIntervention, by_score, check_settings, expected, questions, random_vector

from steerlab import Contrast, Example, MeanDifference, Site, SteeringVector, sweep
from steerlab.errors import SteeringError
from steerlab.testing import tiny_vlm

ALPHAS = (0.0, -1.0, 2.0)
POSITIONS = ("all", "last+generated")
backends = pytest.mark.parametrize("backend", ["hooks", "nnsight"])


@backends
@pytest.mark.parametrize("family", by_day(("llama", "gpt2", "gemma2"), lambda family: family == "llama"))
@pytest.mark.parametrize("point", ["mlp_out", "attn_out", "heads", "block_in"])
def test_other_points_of_a_block_equal_a_plain_hook_there(lm, family: str, backend: str, point: str) -> None:
    model = lm(family, backend)
    sites = [Site(layer, point) for layer in range(model.n_layers)]
    given: Any = {"v": {site: random_vector(site) for site in sites}}
    frame = sweep(model, questions(), given, sites, ALPHAS, list(POSITIONS), batch_size=20, progress=False)
    assert set(frame["layer"]) == {str(site) for site in sites}

    def one_setting(steerer: MeanDifference, alpha: float, positions: str) -> list[float]:
        delta = alpha * steerer.vector_
        return [expected(lm(family), e, steerer.site, delta, positions)["propensity"] for e in questions()]

    for site, steerer in given["v"].items():
        check_settings(frame[frame["layer"] == str(site)], {"v": steerer}, one_setting)


def rows_with_images() -> list[Example]:
    """Rows with images of different sizes, one of them with two."""
    draw = torch.Generator().manual_seed(0)
    sizes = [(30, 50), (24, 24), (70, 30)]
    made = [Image.fromarray(torch.randint(0, 255, (*s, 3), generator=draw).byte().numpy()) for s in sizes]
    images = [(made[0],), (made[1],), (made[2], made[0])]
    pair = Contrast("(A)", "(B)")
    return [Example("What is it?" * (i + 1), id=f"p{i}", contrast=pair, images=some) for i, some in enumerate(images)]


@backends
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.nightly), 2])
def test_rows_with_images_equal_steer(family: str, backend: str, batch_size: int | None) -> None:
    model, rows, site = tiny_vlm(family, backend=backend), rows_with_images(), Site(0, part="projector")
    text: dict[str, Any] = {"text": random_vector(1), "function": AnyIntervention("function", Site(0))}
    image: dict[str, Any] = {"projector": random_vector(site), "gated": AnyIntervention("gate", site)}
    for methods, positions in ((text, ["all", "images", "last+generated"]), (image, ["images"])):
        given: Any = {name: {one.site: one} for name, one in methods.items()}
        options: dict[str, Any] = {"metric": "logprob_difference", "batch_size": batch_size, "progress": False}
        frame = sweep(model, rows, given, None, ALPHAS, positions, **options)
        check_settings(frame, methods, lambda one, alpha, at: by_score(model, one, rows, alpha, at), abs=1e-3)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next", "smolvlm"])
def test_norm_ratios_of_images_are_those_of_each_input_and_strength(family: str) -> None:
    model, rows, site = tiny_vlm(family), rows_with_images(), Site(0, part="projector")
    given: Any = {"v": {site: random_vector(site)}}
    options: dict[str, Any] = {"metric": "logprob", "progress": False}
    together = sweep(model, rows, given, None, (0.5, 4.0), "images", **options).set_index(["example_id", "alpha"])
    for row, alpha in product(rows, (0.5, 4.0)):
        alone = sweep(model, [row], given, None, (alpha,), "images", **options)["norm_ratio"].item()
        assert together.loc[(row.id, alpha), "norm_ratio"] == pytest.approx(alone, rel=1e-3)


def test_vision_block_with_unused_output_is_refused() -> None:
    model = tiny_vlm("llava")
    site = model.site(Site(-1, part="vision"))
    high = SteeringVector({site: torch.ones(model.width(site) or 1)})
    with pytest.raises(SteeringError, match="would have no effect"):
        sweep(model, rows_with_images(), {"v": {site: high}}, None, (1.0,), "images", progress=False)

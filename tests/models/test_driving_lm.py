"""The model of driving scenes that ships with the package: it loads, and says of scenes made by hand what is there."""

from __future__ import annotations

import json

import numpy as np
import pytest

import steerlab
from steerlab import Example
from steerlab.data import DrivingScene, read_facts
from steerlab.data.driving import SHAPES
from steerlab.models.model import Model
from steerlab.models.smollm2 import SHIPPED

LIGHTS = {"green": 11, "yellow": 12, "red": 13}


@pytest.fixture(scope="module")
def driving() -> Model:
    return steerlab.load("driving-lm", device="cpu", backend="hooks")


def street(cars: int, people: int, light: str = "none") -> DrivingScene:
    """A straight road with oncoming cars, pedestrians on its right, a light after 20 m; usual sizes and speeds."""
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    arrays["route"][:, 0], arrays["route"][:, [3, 6, 8, 9]] = 0.2 * np.arange(1, 31), [1.0, 1.8, 0.25, 0.6]
    arrays["ego"][[1, 5, 6, 7, 8, 14]] = [0.6, 2.33, 1.0, 0.78, 1, 1]
    for i in range(cars):
        x, y = 1.0 + 0.7 * i, 0.35
        arrays["vehicles"][i, [*range(13)]] = [1, 1, 0.8, x, y, 0, -1, 0, 0, 2.33, 0.95, 0.75, 1]
        arrays["vehicles"][i, 18:26] = [x - 0.23, y + 0.1, x - 0.23, y - 0.1, x + 0.23, y + 0.1, x + 0.23, y - 0.1]
        arrays["vehicles"][i, 26:30] = [0.46, 0.39, 0.48, 0.96]
    for i in range(people):
        arrays["pedestrians"][i, :6] = [1, 1.4, 0.8 + 0.4 * i, -0.5, 0.15, 1]
    if light != "none":
        arrays["route"][9, [10, LIGHTS[light]]] = 1
    return DrivingScene(**arrays)


def test_driving_lm_has_its_card_and_is_small(driving: Model) -> None:
    folder, _ = SHIPPED["driving-lm"]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert driving.id == "driving-lm" and driving.revision == f"small-seed{recipe['seed']}-{recipe['steps']}steps"
    assert sum(recipe["parameters"].values()) == sum(p.numel() for p in driving.hf.parameters())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15 * 2**20
    card = (folder / "README.md").read_text()
    assert all(f"## {word}" in card for word in ("Data", "Recipe", "Seed", "Curve", "What it does", "Limits"))


def test_driving_lm_counts_cars_and_pedestrians_and_sees_the_light(driving: Model) -> None:
    wanted = [(c, p, light) for c in range(4) for p in range(5) for light in ("none", *LIGHTS)]
    examples = [Example("What do you see?", id=str(i), images=(street(*one),)) for i, one in enumerate(wanted)]
    texts = steerlab.generate(driving, examples, max_new_tokens=60, batch_size=40, progress=False)
    said = [read_facts(text) for text in texts]
    right = np.mean([(one.cars, one.pedestrians, one.light) == true for one, true in zip(said, wanted, strict=True)])
    assert right >= 0.8, list(zip(texts, wanted, strict=True))[:8]


def test_plain_hugging_face_says_the_same_as_steerlab(driving: Model) -> None:
    example = Example("What do you see?", images=(street(2, 3, "red"),))
    ours = steerlab.generate(driving, [example], max_new_tokens=60, progress=False)
    inputs = driving.inputs(driving.batch([driving.encode(example.prompt, images=example.images)], "left"))
    ids = driving.hf.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert driving.tokenizer.decode(ids, skip_special_tokens=True) == ours[0]

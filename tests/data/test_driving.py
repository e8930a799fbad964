"""Driving scenes: captions equal the published ones, edits change one fact, bad arrays are named."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab.data import DrivingFacts, DrivingScene, driving_scenes, edited_scenes, read_facts, scene_caption
from steerlab.data.driving import SHAPES
from steerlab.errors import DataError, LoadError

FOLDER = Path(os.environ.get("STEERLAB_DATA", "")) / "driving"


def scene(**rows: dict[int, dict[int, float]]) -> DrivingScene:
    """A straight road with objects: column values by row, for each kind."""
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    arrays["route"][:, 0] = 0.2 * np.arange(30)  # every 2 m, ahead
    arrays["route"][:, 3] = 1.0
    for kind, values in rows.items():
        for row, columns in values.items():
            for column, value in columns.items():
                arrays[kind][row, column] = value
    return DrivingScene(**arrays)


def person(x: float, y: float = 0.0, **more: float) -> dict[int, float]:
    return {0: 1.0, 2: x / 10, 3: y / 10, 5: 1.0, **{int(k): v for k, v in more.items()}}


def car(x: float, y: float = 0.0) -> dict[int, float]:
    return {0: 1.0, 1: 1.0, 3: x / 10, 4: y / 10, 6: -1.0}


@pytest.mark.data("driving")
def test_captions_of_all_published_scenes_have_the_published_lines() -> None:
    records = driving_scenes(FOLDER)
    assert len(records) == 990
    for record in records:
        published = record.caption.split("\n\nHere are my actions")[0]
        lines = [re.sub(r" My attention: \d+%", "", line) for line in published.split("\n")]
        assert Counter(scene_caption(record.scene).split("\n")) == Counter(lines), record.id
    assert sum(len(record.questions) for record in records) > 15_000
    assert not any("\\n" in text for record in records for pair in record.questions for text in pair)


@pytest.mark.data("driving")
def test_edits_of_published_scenes_change_the_fact_that_they_name_and_no_other() -> None:
    changed = {
        "pedestrian added": {"pedestrians"}, "pedestrian removed": {"pedestrians"}, "car removed": {"cars"},
        "car nearer": set(), "light turned": {"light"},
    }  # fmt: skip
    for record in driving_scenes(FOLDER)[::10]:
        before = asdict(read_facts(scene_caption(record.scene)))
        for name, edited in edited_scenes(record.scene).items():
            after = asdict(read_facts(scene_caption(edited)))
            found = {fact for fact in before if before[fact] != after[fact]}
            nearest = {"car_distance"} if name.startswith("car ") else set()  # another car may be the nearest now
            assert changed[name] <= found <= changed[name] | nearest, (record.id, name)
            assert name != "car nearer" or after["car_distance"] <= before["car_distance"]
            if name != "light turned" and changed[name]:
                (fact,) = changed[name]
                assert after[fact] - before[fact] == (1 if name.endswith("added") else -1)
            for kind, first in (("vehicles", 3), ("pedestrians", 2)):
                rows = getattr(edited, kind)
                used = rows[rows[:, 0] > 0]
                assert (np.diff(np.linalg.norm(used[:, first : first + 2], axis=1)) >= -1e-3).all()
            cars = edited.vehicles[edited.vehicles[:, 0] > 0]
            np.testing.assert_allclose(cars[:, 18:26].reshape(-1, 4, 2).mean(1), cars[:, 3:5], atol=0.02)


@given(x=st.floats(-60, 60), y=st.floats(-60, 60), moving=st.booleans())
def test_objects_are_counted_where_the_published_ranges_say(x: float, y: float, moving: bool) -> None:
    distance, angle = np.hypot(x, y), abs(np.degrees(np.arctan2(-y, x)))
    if min(abs(distance - 40), abs(distance - 30), abs(angle - 60), abs(x)) < 1e-3:
        return  # on an edge, where rounding decides
    ahead = x > 0 and angle < 60
    seen = scene(vehicles={0: car(x, y) | {1: float(moving)}}, pedestrians={3: person(x, y)})
    found = read_facts(scene_caption(seen))
    assert found.cars == int(moving and ahead and distance <= 40)
    assert found.pedestrians == int(ahead and distance <= 30)


def test_caption_of_a_small_scene_reads_as_published() -> None:
    light = {10: {10: 1.0, 13: 1.0, 7: 1.0}}
    text = scene_caption(scene(vehicles={2: car(20)}, pedestrians={0: person(10, -10, **{"8": 1.0})}, route=light))
    assert text.split("\n") == [
        "I'm observing 1 cars and 1 pedestrians.",
        "A moving car; Angle in degrees: -0.00; Distance: 20.00m; Direction of travel: opposite direction from me;",
        "A pedestrian; Angle in degrees: 45.00; Distance: 14.14m; Direction of travel: same direction as me; "
        "Crossing: True;",
        "The distance to the closest intersection is 20.00m",
        "There is a traffic light and it is red. It is 20.00m ahead.",
        "My car 0.00m from the lane center and 0.00 degrees right off center.",
        "My current speed is 0.00 mph",
        "Steering wheel is 0.00% right.",
        "I need to go straight for at least 58.00m.",
    ]


def test_facts_are_read_from_texts_of_a_model_and_missing_ones_are_none() -> None:
    text = "I'm observing 3 cars and 12 pedestrians. There is a traffic light and it is red+yellow. It is 7.5m ahead."
    found = read_facts(f"{text} - Accelerator pedal 0% - Brake pedal 40% - Going to steer 7% to the left.")
    assert found == DrivingFacts(3, 12, "red+yellow", 7.5, 0.3, 0.07)
    assert read_facts("steer 7% to the right").steering == -0.07
    assert read_facts("a nice day") == DrivingFacts()
    assert read_facts("There is no traffic lights.").light == "none"


def test_scenes_are_copies_that_nothing_changes() -> None:
    arrays = scene(pedestrians={0: person(10)}).tensors
    mutable = {name: array.copy() for name, array in arrays.items()}
    made = DrivingScene(**mutable)
    mutable["pedestrians"][0, 2] = 99
    assert made.pedestrians[0, 2] == 1 and made != DrivingScene(**arrays)
    with pytest.raises(ValueError, match="read-only"):
        made.pedestrians[0, 2] = 2


def test_scenes_with_too_many_objects_nan_or_meters_are_refused() -> None:
    good = scene().tensors
    with pytest.raises(DataError, match="there are 20 slots"):
        DrivingScene(**{**good, "pedestrians": np.zeros((21, 9))})
    with pytest.raises(DataError, match="ego of a scene holds NaN"):
        DrivingScene(**{**good, "ego": np.full(31, np.nan)})
    with pytest.raises(DataError, match="units of 10 m"):
        DrivingScene(**{**good, "route": good["route"] * 10})
    with pytest.raises(LoadError):
        driving_scenes("nowhere")

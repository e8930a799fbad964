"""What counts as a moved fact in the driving study, and that training scenes say what their captions say."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from driving import FACTS, Pair, judged, pairs_of
from train_driving import PARTS, Mixer, by_stretch, short_caption

from steerlab import Example
from steerlab.data import driving_scenes, read_facts, scene_caption
from steerlab.errors import DataError

FOLDER = Path(os.environ.get("STEERLAB_DATA", "")) / "driving"


def caption(cars: int = 2, people: int = 3, near: int = 12, light: str = "red", ahead: int = 20) -> str:
    lines = [f"I'm observing {cars} cars and {people} pedestrians.", f"A moving car; Distance: {near}m;"]
    return "\n".join([*lines, f"There is a traffic light and it is {light}. It is {ahead}m ahead."])


def pair(edit: str, before: str, after: str) -> Pair:
    return Pair(Example("What do you see?", id="0"), edit, read_facts(before), read_facts(after))


@pytest.mark.parametrize(
    ("edit", "truth", "said", "moved", "exact", "others"),
    [
        ("pedestrian added", caption(people=4), caption(people=4), 1, 1, 0),
        ("pedestrian added", caption(people=4), caption(people=5), 1, 0, 0),
        ("pedestrian added", caption(people=4), caption(people=2), 0, 0, 0),
        ("pedestrian added", caption(people=4), caption(people=4, cars=1), 1, 1, 0.25),
        ("car removed", caption(cars=1, near=30), caption(cars=1, near=31), 1, 1, 0),  # the distance may change
        ("car nearer", caption(near=6), caption(near=10), 0, 0, 0),
        ("car nearer", caption(near=6), caption(near=8), 1, 1, 0),
        ("light turned", caption(light="green"), caption(light="green", ahead=22), 1, 1, 0),  # meters are not exact
        ("light turned", caption(light="green"), caption(light="yellow", ahead=30), 0, 0, 0.25),
        ("light turned", caption(light="green"), "broken", 0, 0, 1),
    ],
)  # fmt: skip
def test_moved_is_in_the_direction_of_the_truth_and_other_facts_count_as_changed(
    edit: str, truth: str, said: str, moved: float, exact: float, others: float
) -> None:
    found = judged(pair(edit, caption(), truth), caption(), said)
    assert found == {"moved": moved, "exact": exact, "others": others, "alone": float(moved == 1 and others == 0)}


@pytest.mark.data("driving")
def test_short_captions_say_what_the_published_captions_say_in_whole_meters() -> None:
    for record in driving_scenes(FOLDER)[::10]:
        whole, short = (read_facts(make(record.scene)) for make in (scene_caption, short_caption))
        assert (whole.cars, whole.pedestrians, whole.light) == (short.cars, short.pedestrians, short.light)
        for name in ("car_distance", "light_distance"):
            one, other = getattr(whole, name), getattr(short, name)
            assert one == other if one is None else abs(one - other) <= 0.5


@pytest.mark.data("driving")
def test_mixed_scenes_are_the_same_for_a_step_and_show_every_light() -> None:
    mixer = Mixer([record.scene for record in driving_scenes(FOLDER)[slice(*PARTS["train"])]], seed=0)
    batch = mixer.batch(3, 60)
    for one, other in zip(batch, mixer.batch(3, 60), strict=True):
        assert all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert {read_facts(short_caption(scene)).light for scene in batch} == {
        "none", "green", "yellow", "red", "red+yellow",
    }  # fmt: skip


@pytest.mark.data("driving")
def test_pairs_differ_in_the_edited_fact_and_too_few_are_refused() -> None:
    scenes = {i: record.scene for i, record in enumerate(driving_scenes(FOLDER)[:300:10])}
    for edit, fact in FACTS.items():
        for one in pairs_of(scenes, edit):
            assert getattr(one.before, fact) != getattr(one.after, fact) and one.images != one.example.images
    with pytest.raises(DataError, match="0 of 0 scenes have an object for 'light turned': give a larger --limit"):
        pairs_of({}, "light turned")


def test_intervals_resample_stretches_of_frames() -> None:
    frames = list(range(800, 1000))
    same, mixed = ([float(value % 2) for value in values] for values in ([f // 20 for f in frames], frames))
    wide, narrow = by_stretch(same, frames, 0), by_stretch(mixed, frames, 0)
    assert wide["value"] == narrow["value"] == 0.5 and wide["n"] == 10
    assert wide["high"] - wide["low"] > 0.4 and narrow["high"] == narrow["low"] == 0.5

"""What the published caption says of a driving scene, read back from a text, and scenes that differ in one object."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steerlab.data.driving import METERS, DrivingScene, Rows

MPH = 5.0 * 2.23694  # of a unit of speed
LIGHTS = ("green", "yellow", "red", "red+yellow")
FIELD_OF_VIEW, CAR_RANGE, PEDESTRIAN_RANGE, LIGHT_RANGE = 60.0, 40.0, 30.0, 30.0  # degrees to each side; meters
STEERING_SCALE = 455.0  # degrees of the steering wheel that count as 100 %
# columns: of vehicles, pedestrians, the route and the car itself
ACTIVE, DYNAMIC, CAR_X, CAR_DIRECTION, CORNERS = 0, 1, 3, 6, range(18, 26)  # corners: x and y in turn
PERSON_X, PERSON_DIRECTION, CROSSING = 2, 5, 8
ROUTE_DIRECTION, JUNCTION, HAS_LIGHT, LIGHT = 3, 7, 10, 11
EGO_SPEED, EGO_STEERING = 1, 3
_NUMBER = r"(-?\d+(?:\.\d+)?)"


def scene_caption(scene: DrivingScene) -> str:
    """The published description of a scene, which its vectors decide: objects in the order of their rows.

    Moving cars count up to 40 m and pedestrians up to 30 m away, within 60 degrees to both sides.

    Example:
        >>> scene_caption(record.scene).splitlines()[0]                                         # doctest: +SKIP
        "I'm observing 0 cars and 3 pedestrians."

    Source: arXiv 2310.01957, the released caption function (Apache-2.0).
    """
    cars, people = visible_cars(scene), visible_pedestrians(scene)
    lines = [f"I'm observing {len(cars)} cars and {len(people)} pedestrians."]
    lines += [] if cars or people else [""]  # as published
    for row in scene.vehicles[cars]:
        lines.append(f"A moving car; {_place(row, CAR_X)}; Direction of travel: {_heading(row, CAR_DIRECTION)};")
    for row in scene.pedestrians[people]:
        heading, crossing = _heading(row, PERSON_DIRECTION), bool(row[CROSSING] > 0)
        lines.append(f"A pedestrian; {_place(row, PERSON_X)}; Direction of travel: {heading}; Crossing: {crossing};")
    return "\n".join([*lines, *_road(scene), *_own_state(scene), _way(scene)])


def visible_cars(scene: DrivingScene) -> list[int]:
    """Rows of the moving cars that the caption counts."""
    rows = scene.vehicles
    seen = (rows[:, ACTIVE] == 1) & (rows[:, DYNAMIC] == 1) & _in_view(rows, CAR_X, CAR_RANGE)
    return [int(i) for i in np.flatnonzero(seen)]


def visible_pedestrians(scene: DrivingScene) -> list[int]:
    """Rows of the pedestrians that the caption counts."""
    rows = scene.pedestrians
    return np.flatnonzero((rows[:, ACTIVE] == 1) & _in_view(rows, PERSON_X, PEDESTRIAN_RANGE)).tolist()


def light_of(scene: DrivingScene) -> tuple[str, float] | None:
    """State and distance in meters of the first traffic light of the route, however far it is."""
    points = np.flatnonzero(scene.route[:, HAS_LIGHT] > 0)
    if not len(points):
        return None
    row = scene.route[points[0]]
    on = np.flatnonzero(row[LIGHT : LIGHT + len(LIGHTS)] > 0)
    if not len(on):
        return None
    return LIGHTS[int(on[0])], float(np.linalg.norm(row[:2] * np.float32(METERS)))


@dataclass(frozen=True)
class DrivingFacts:
    """What a text says of a scene; None where it says nothing.

    Attributes:
        cars, pedestrians: how many.
        car_distance: of the nearest moving car, in meters.
        light: the state of the traffic light, or "none".
        light_distance: in meters.
        acceleration: from 0, full braking, to 1.
        steering: from -1, full lock to the right, to 1.
    """

    cars: int | None = None
    pedestrians: int | None = None
    light: str | None = None
    light_distance: float | None = None
    acceleration: float | None = None
    steering: float | None = None
    car_distance: float | None = None


def read_facts(text: str) -> DrivingFacts:
    """The facts in a caption or in a list of actions.

    Example:
        >>> found = read_facts("I'm observing 2 cars and 1 pedestrians. There is no traffic lights.")
        >>> found.cars, found.pedestrians, found.light
        (2, 1, 'none')

    Source: the released evaluation of arXiv 2310.01957, in its units.
    """
    cars, people = re.search(r"(\d+) cars?\b", text), re.search(r"(\d+) pedestrians?\b", text)
    light, distance = None, re.search(rf"traffic light and it is [a-z+]+\. It is {_NUMBER}m ahead", text)
    if stated := re.search(r"traffic light and it is (red\+yellow|green|yellow|red)\b", text):
        light = stated[1]
    elif re.search(r"no traffic light", text):
        light = "none"
    nearest = min(map(float, re.findall(rf"A moving car;[^\n]*?Distance: {_NUMBER}m", text)), default=None)
    pedals = [re.search(rf"{name} pedal (\d+)%", text) for name in ("Accelerator", "Brake")]
    accelerate, brake = (None if one is None else int(one[1]) / 100 for one in pedals)
    steer = re.search(r"steer (\d+)% to the (left|right)", text)
    return DrivingFacts(
        None if cars is None else int(cars[1]),
        None if people is None else int(people[1]),
        light,
        None if distance is None else float(distance[1]),
        None if accelerate is None or brake is None else (accelerate - brake + 1) / 2,
        None if steer is None else int(steer[1]) / 100 * (1 if steer[2] == "left" else -1),
        nearest,
    )


def edited_scenes(scene: DrivingScene) -> dict[str, DrivingScene]:
    """Scenes that differ from this one in one object, by what was done; only what the caption shows.

    Objects stay in the order of their distance, as published.

    Example:
        >>> sorted(edited_scenes(record.scene))                                                 # doctest: +SKIP
        ['light turned', 'pedestrian added', 'pedestrian removed']

    Returns:
        Of "pedestrian added" (15 m ahead, standing), "pedestrian removed" and "car removed" (the one farthest away),
        "car nearer" (the farthest at half its distance) and "light turned" (green to red, anything else to green).
    """
    found: dict[str, DrivingScene] = {}
    free = np.flatnonzero(scene.pedestrians[:, ACTIVE] == 0)
    if len(free):
        person = {ACTIVE: 1.0, PERSON_X: 15.0 / METERS, PERSON_DIRECTION: 1.0}
        found["pedestrian added"] = _by_distance(scene.with_row("pedestrians", int(free[0]), person), "pedestrians")
    if people := visible_pedestrians(scene):
        gone = dict.fromkeys(range(scene.pedestrians.shape[1]), 0.0)
        found["pedestrian removed"] = _by_distance(scene.with_row("pedestrians", people[-1], gone), "pedestrians")
    if cars := visible_cars(scene):
        gone = dict.fromkeys(range(scene.vehicles.shape[1]), 0.0)
        found["car removed"] = _by_distance(scene.with_row("vehicles", cars[-1], gone), "vehicles")
        row = scene.vehicles[cars[-1]]
        columns = [(CAR_X + i % 2, column) for i, column in enumerate((CAR_X, CAR_X + 1, *CORNERS))]
        nearer = {column: float(row[column] - row[center] / 2) for center, column in columns}
        found["car nearer"] = _by_distance(scene.with_row("vehicles", cars[-1], nearer), "vehicles")
    light = light_of(scene)
    if light is not None and light[1] <= LIGHT_RANGE:
        wanted, route = LIGHTS.index("red" if light[0] == "green" else "green"), scene.route.copy()
        same = (route[:, HAS_LIGHT] > 0) & (route[:, LIGHT + LIGHTS.index(light[0])] > 0)  # a road has up to two
        route[same, LIGHT : LIGHT + len(LIGHTS)] = np.eye(len(LIGHTS), dtype=np.float32)[wanted]
        found["light turned"] = replace(scene, route=route)
    return found


def _by_distance(scene: DrivingScene, kind: str) -> DrivingScene:
    """The scene with the rows of a kind in the order of their distance, unused ones last."""
    rows = getattr(scene, kind)
    first = PERSON_X if kind == "pedestrians" else CAR_X
    distance = np.where(rows[:, ACTIVE] > 0, np.linalg.norm(rows[:, first : first + 2], axis=1), np.inf)
    return replace(scene, **{kind: rows[np.argsort(distance, kind="stable")]})


def _place(row: Rows, first: int) -> str:
    xy = row[first : first + 2] * np.float32(METERS)
    return f"Angle in degrees: {_angle(xy[0], xy[1]):.2f}; Distance: {np.linalg.norm(xy):.2f}m"


def _in_view(rows: Rows, first: int, farthest: float) -> np.ndarray:
    xy = rows[:, first : first + 2] * np.float32(METERS)
    angles = np.abs(_angle(xy[:, 0], xy[:, 1]))
    return (xy[:, 0] > 0) & (angles < FIELD_OF_VIEW) & (np.linalg.norm(xy, axis=1) <= farthest)


def _angle(x: Any, y: Any) -> Any:
    """Degrees to the right of straight ahead."""
    return np.arctan2(-y, x) * np.float32(180 / np.pi)


def _route_angles(scene: DrivingScene) -> np.ndarray:
    return _angle(scene.route[:, ROUTE_DIRECTION], scene.route[:, ROUTE_DIRECTION + 1])


def _heading(row: Rows, first: int) -> str:
    angle = float(_angle(row[first], row[first + 1]))
    centers = {0: "same direction as me", 180: "opposite direction from me", -180: "opposite direction from me"}
    centers |= {90: "from left to right", -90: "from right to left"}
    return next((name for center, name in centers.items() if abs(angle - center) < 45), f"{angle} degrees")


def _side(angle: float) -> str:
    return "left" if angle < 0 else "right"


def _road(scene: DrivingScene) -> list[str]:
    """Junction, roundabout and traffic light."""
    junction = junction_distance(scene)
    if junction > 100:
        lines = ["There is no any junction ahead."]
    elif junction < 5:
        lines = ["My car is passing an intersection."]
    else:
        lines = [f"The distance to the closest intersection is {junction:.2f}m"]
        turns = np.diff(_route_angles(scene))
        turns = np.where(turns > 180, turns - 360, np.where(turns < -180, turns + 360, turns))
        if turns[turns > 0].sum() > 30 and -turns[turns < 0].sum() > 30:
            lines.append("It is a roundabout.")
    light = light_of(scene)
    if light is None or light[1] > LIGHT_RANGE:
        return [*lines, "There is no traffic lights."]
    return [*lines, f"There is a traffic light and it is {light[0]}. It is {light[1]:.2f}m ahead."]


def junction_distance(scene: DrivingScene) -> float:
    """Meters to the nearest point of a junction on the route; 0 in it, infinite without one."""
    points = scene.route[:, JUNCTION] > 0
    if points[0] or not points.any():
        return 0.0 if points[0] else float("inf")
    return float(np.linalg.norm(scene.route[points, :2] * np.float32(METERS), axis=1).min())


def _own_state(scene: DrivingScene) -> list[str]:
    """Place in the lane, speed and steering wheel."""
    heading, lines = float(_route_angles(scene)[0]), []
    if not junction_distance(scene) < 5:
        offset = float(scene.route[0, 1] * np.float32(METERS))
        turned = f"{abs(heading):.2f} degrees {_side(-heading)}"
        lines.append(f"My car {offset:.2f}m from the lane center and {turned} off center.")
    steering = float(scene.ego[EGO_STEERING]) / np.pi * 180
    lines.append(f"My current speed is {float(scene.ego[EGO_SPEED]) * MPH:.2f} mph")
    return [*lines, f"Steering wheel is {100 * abs(steering) / STEERING_SCALE:.2f}% {_side(-steering)}."]


def _way(scene: DrivingScene) -> str:
    """Where the route goes."""
    angles = _route_angles(scene)
    now, then = float(angles[0]), float(angles[-1])
    distance = float(np.linalg.norm(scene.route[-1, :2] * np.float32(METERS)))
    if abs(now) > 10:
        return f"The path is currently turning {int(now)} degrees {_side(now)}."
    if abs(then) > 150:
        return f"The next I need to turn around in {distance:.2f}m."
    if abs(then) > 20:
        return f"The next turn is {int(then)} degrees {_side(then)} in {distance:.2f}m."
    return f"I need to go straight for at least {distance:.2f}m."

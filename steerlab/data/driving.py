"""Driving scenes as vectors of objects, what a caption says of them, and scenes that differ in one object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from steerlab._support.images import VectorInput
from steerlab.data._files import read_records
from steerlab.errors import DataError, LoadError

METERS = 10.0  # what a unit of length in the arrays stands for
SHAPES = {"route": (30, 17), "vehicles": (30, 33), "pedestrians": (20, 9), "ego": (31,)}
_NAMES = {"route": "route_descriptors", "vehicles": "vehicle_descriptors", "pedestrians": "pedestrian_descriptors"}
_NAMES |= {"ego": "ego_vehicle_descriptor"}
_FARTHEST = 30.0  # of any coordinate, 300 m: the published scenes stay within 100
Rows = NDArray[Any]  # float32, as soon as they are checked


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class DrivingScene(VectorInput):
    """What a car perceives: rows of numbers, lengths in 10 m and speeds in 5 m/s; x is ahead, y to the left.

    Example:
        >>> scene = driving_scenes("data/driving")[0].scene                                     # doctest: +SKIP
        >>> print(scene_caption(scene))                                                         # doctest: +SKIP

    Attributes:
        route: `(30, 17)`, points of the way ahead: position, direction, junction, traffic light.
        vehicles: `(30, 33)`; the first column says whether a row is used.
        pedestrians: `(20, 9)`, likewise.
        ego: `(31,)`, the car itself.

    Raises:
        DataError: an array of another shape, NaN or infinity, or lengths that are meters and not tens of them.

    Source: arXiv 2310.01957 and its released code.
    """

    route: Rows
    vehicles: Rows
    pedestrians: Rows
    ego: Rows

    def __post_init__(self) -> None:
        for name, shape in SHAPES.items():
            array = np.array(getattr(self, name), dtype=np.float32)  # a copy, which nothing can change
            array.setflags(write=False)
            object.__setattr__(self, name, array)
            if array.shape != shape:
                slots = f": there are {shape[0]} slots" if len(shape) == 2 and len(array) > shape[0] else ""
                raise DataError(f"{name} of a scene has shape {array.shape}, expected {shape}{slots}")
            if not np.isfinite(array).all():
                raise DataError(f"{name} of a scene holds NaN or infinity")
        for name, first in (("route", 0), ("vehicles", 3), ("pedestrians", 2)):
            farthest = float(np.abs(getattr(self, name)[:, first : first + 2]).max())
            if farthest > _FARTHEST:
                raise DataError(
                    f"{name} of a scene reach {farthest * METERS:.0f} m: lengths are in units of 10 m, as published"
                )

    @property
    def tensors(self) -> dict[str, Rows]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in SHAPES}

    def with_row(self, kind: str, row: int, values: Mapping[int, float]) -> DrivingScene:
        """A copy with some columns of a row of "route", "vehicles" or "pedestrians" changed."""
        array = getattr(self, kind).copy()
        for column, value in values.items():
            array[row, column] = value
        return replace(self, **{kind: array})


@dataclass(frozen=True)
class DrivingRecord:
    """A published scene with its caption, and questions with their answers.

    Attributes:
        id: "driving/" and its number.
        caption: as published, with how much the published driver attended to each object.
        questions: pairs of a question and an answer, written by a language model.
    """

    id: str
    scene: DrivingScene
    caption: str
    questions: tuple[tuple[str, str], ...]


def driving_scenes(folder: str | Path) -> list[DrivingRecord]:
    """The 990 published test scenes of Driving with LLMs.

    Example:
        >>> len(driving_scenes("data/driving"))                                                 # doctest: +SKIP
        990

    Args:
        folder: with `scenes.safetensors` and `scenes.jsonl.gz`.

    Raises:
        LoadError: a file is missing or damaged.
        DataError: a scene with other shapes or units.

    Source: arXiv 2310.01957; wayveai/Driving-with-LLMs, `vqa_test_1k` (Apache-2.0).
    """
    folder = Path(folder)
    try:
        arrays = load_file(folder / "scenes.safetensors")
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{folder / 'scenes.safetensors'} could not be read: {error}") from error
    found = []
    for number, record in enumerate(read_records(folder / "scenes.jsonl.gz")):
        scene = DrivingScene(**{name: arrays[published][number] for name, published in _NAMES.items()})
        pairs = tuple(_questions(record.text("response_content")))
        found.append(DrivingRecord(f"driving/{number}", scene, record.text("input_prompt").strip(), pairs))
    return found


def _questions(text: str) -> Iterator[tuple[str, str]]:
    """Questions and answers of a text of JSON objects; a language model wrote it, and broken ones are left out."""
    for match in re.findall(r"\{.*?\}", text, re.DOTALL):
        try:
            pair = json.loads(match, strict=False)
            yield str(pair["question"]), str(pair["answer"])
        except (json.JSONDecodeError, KeyError):
            continue
